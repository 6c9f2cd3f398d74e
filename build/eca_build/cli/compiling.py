"""The command that builds: a checkpoint into a published version."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from tqdm import tqdm

from eca_build.cli.options import ATTENTION_HELP, FloatRange, imports, kind_of, option

if TYPE_CHECKING:
    from eca_build.compile import Built
    from eca_build.graphs import AttentionGraph
    from eca_build.targets import Auto, Precision, Runtime, TargetName
    from eca_build.tensorrt_plan import Frontend

EXAMPLES = """\b
Examples:
  eca-build compile eca_resnet50.pth.tar --labels imagenet.txt
  eca-build compile mine.safetensors --name mine --images photos/ --repository model_repository
"""
RGB: dict[str, Any] = {"nargs": 3, "metavar": "R G B"}


@click.command("compile", epilog=EXAMPLES)
@click.argument("checkpoints", metavar="CHECKPOINT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@option("--arch", help="Expect this architecture; default: found.")
@option("--attention", help=ATTENTION_HELP)
@option(
    "--name",
    help="Model name; default: the file's, or its folder's where that is called model, pytorch_model, model_best, "
    "checkpoint, best or last.",
)
@option("--labels", type=click.Path(path_type=Path), help="One a line.")
@option(
    "--images",
    type=click.Path(path_type=Path),
    help="A folder of images to verify on; default: those of --calibration, else synthetic ones. Where a folder or "
    "file is called as a label (dog/1.jpg, dog-1.jpg) the accuracy is verified too.",
)
@option(
    "--most-images",
    type=click.IntRange(1, 100_000),
    default=128,
    help="So many of --images are used, evenly spread; thousands of labelled ones tell a loss of half a point.",
)
@option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="A folder of images like those to come, which int8 takes its ranges from; default: those of --images.",
)
@option(
    "--target",
    type=click.Choice(["onnx", "tensorrt", "tensorrt-rtx", "inductor"]),
    default="onnx",
    help="onnx: for CPUs; tensorrt: for the GPU of this machine; tensorrt-rtx: a portable engine for NVIDIA's consumer "
    "GPUs, built without one; inductor: a package of PyTorch's compiler for the GPU of this machine, or its CPU.",
)
@option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8", "auto"]),
    default="fp32",
    help="onnx: fp32, int8 and, with --runtime openvino, bf16; tensorrt and tensorrt-rtx: fp32, fp16, bf16, int8; "
    "inductor: fp32, fp16, bf16. auto: every one is built, verified and measured on this machine, and the fastest "
    "published.",
)
@option(
    "--runtime",
    type=click.Choice(["onnxruntime", "openvino", "auto"]),
    default="onnxruntime",
    help="What the embedded Triton runs an onnx engine in. auto: what is installed and fastest.",
)
@option(
    "--frontend",
    type=click.Choice(["auto", "onnx", "torch-tensorrt"]),
    default="auto",
    help="What makes a TensorRT plan: from ONNX, or Torch-TensorRT from the PyTorch program. auto: all that are "
    "installed, the fastest verified published.",
)
@option(
    "--attention-graph",
    type=click.Choice(["plain", "hoisted", "fused", "hoisted-fused", "epilogue", "auto"]),
    help="hoisted: the gate from the input of the block's last 1x1 convolution; fused: one operator from the pooling "
    "to the ReLU; hoisted-fused, epilogue: the hoisted gate, joined to the map by one operator behind the convolution "
    "or with it. A CPU runs the fused operators as plain ones. auto: all that the network has, the fastest published; "
    "the default for engines of this machine's GPU. Else plain is, which CPUs run fastest.",
)
@option(
    "--expose-gates",
    is_flag=True,
    help="The attention's gates as one more output, for explanations; it costs nothing while nobody asks for them.",
)
@option("--max-batch", type=click.IntRange(1, 1024), default=32)
@option("--resize", type=click.IntRange(1, 4096), help="Shorter side in pixels; default: the network's.")
@option("--crop", type=click.IntRange(1, 4096), help="Centre crop in pixels; default: the network's.")
@option(
    "--filter", "filter_", type=click.Choice(["bilinear", "bicubic"]), help="Of the resize; default: the network's."
)
@option("--mean", type=FloatRange(0, 1), **RGB, help="Of R, G, B in [0, 1]; default: the network's.")
@option("--std", type=FloatRange(0, 1, min_open=True), **RGB, help="Of R, G, B; default: the network's.")
@option(
    "--repository",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("model_repository"),
)
def compile_(
    checkpoints: tuple[Path, ...],
    arch: str | None,
    attention: str | None,
    name: str | None,
    labels: Path | None,
    images: Path | None,
    most_images: int,
    calibration: Path | None,
    target: TargetName,
    precision: Precision | Auto,
    runtime: Runtime | Auto,
    frontend: Frontend | Auto,
    attention_graph: AttentionGraph | Auto | None,
    expose_gates: bool,
    max_batch: int,
    resize: int | None,
    crop: int | None,
    filter_: str | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    repository: Path,
) -> None:
    """Builds each CHECKPOINT into a verified, published model version.

    Where timm's config.json is in the CHECKPOINT's folder, as on Hugging Face, what it says of resize, crop, filter,
    mean and std takes the place of the network's own. Stops at the first that fails; those before it stay published.
    """
    with imports():
        from eca_build import compile as build
        from eca_build.inputs import Options, default_name
        from eca_build.targets import Wish, usual_graph

    if name and len(checkpoints) > 1:
        raise click.UsageError("--name is for one checkpoint; several are named after their files or folders")
    called = [(checkpoint.absolute().parent, default_name(checkpoint)) for checkpoint in checkpoints]
    alongside = [called.count(one) > 1 for one in called]
    names = [default_name(*one) for one in zip(checkpoints, alongside, strict=True)]
    if same := [path for path, own in zip(checkpoints, names, strict=True) if names.count(own) > 1]:
        raise click.UsageError(
            f"{' and '.join(map(str, same))} would be versions of one model, for they are named after their files or "
            "folders; build each by itself, with a --name"
        )
    recipe = {"resize": resize, "crop": crop, "filter": filter_, "mean": mean, "std": std}
    graph = attention_graph or usual_graph(target)
    wish = Wish(target, precision, graph, max_batch, expose_gates, runtime, frontend)
    steps = build.steps(wish)
    for checkpoint, has_others in zip(checkpoints, alongside, strict=True):
        kind = kind_of(attention)
        asked = (checkpoint, repository, recipe, name, arch, labels, images, kind, wish, calibration, most_images)
        options = Options(*asked, alongside=has_others)
        with tqdm(total=steps, desc=checkpoint.name, unit="step", disable=None, leave=False) as bar:
            click.echo(_sentence(build.compile_checkpoint(options, partial(_show, bar, count()))))


def _show(bar: tqdm[NoReturn], begun: Iterator[int], what: str) -> None:
    bar.update(min(1, next(begun)))  # what went before has ended
    bar.set_postfix_str(what)


def _sentence(built: Built) -> str:
    if built.restored:
        return f"{built.folder}: {' and '.join(built.restored)} written again, nothing else changed since it was built"
    if not built.changed:
        return f"{built.folder}: nothing changed since it was built"
    verdict = built.contract.verification
    note = "; random weights, for latency only" if built.contract.weights == "random" else ""
    contract, choice = built.contract, built.contract.choice
    chosen = f"; {contract.runtime or contract.engine} {contract.precision}, {choice.why}" if choice else ""
    return (
        f"{built.folder}: {contract.architecture}, attention {contract.attention}{note}; top-1 agreement "
        f"{verdict.top1_agreement:.0%}, largest difference {verdict.largest_difference:.1e} on {verdict.images} images"
        f"{chosen}{_beside(built)}"
    )


def _beside(built: Built) -> str:
    if not built.recipe_beside:
        return ""
    recipe = built.contract.preprocessing
    taken = f"{recipe.filter} to {recipe.resize} pixels, a crop of {recipe.crop}"
    return f"; {taken}, and what else was not asked for is as config.json says"
