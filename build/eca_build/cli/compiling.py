"""The command that builds: a checkpoint into a published version."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from eca_service.importing import imports
from eca_service.paths import PathName
from tqdm import tqdm

from eca_build.cli.options import ATTENTION_HELP, FloatRange, kind_of, option
from eca_build.errors import BuildError

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
@click.argument("checkpoints", metavar="CHECKPOINT...", nargs=-1, required=True, type=PathName())
@option("--arch", help="Fail unless the checkpoint has this architecture; default: whatever is detected.")
@option("--attention", help=ATTENTION_HELP)
@option(
    "--name",
    help="Model name; default: the file's name, or its folder's if the file is called model, pytorch_model, "
    "model_best, checkpoint, best or last.",
)
@option(
    "--labels",
    type=PathName(),
    help="File with one label a line, in the order of the classes; default: the classes are numbered.",
)
@option(
    "--images",
    type=PathName(),
    help="A folder of images to verify on; default: those of --calibration, else synthetic ones. If folders or files "
    "are named after labels (dog/1.jpg, dog-1.jpg), accuracy is verified too.",
)
@option(
    "--most-images",
    type=click.IntRange(1, 100_000),
    default=128,
    help="Use at most so many of --images, evenly spread; to see a loss of half a point takes thousands of labelled "
    "ones.",
)
@option(
    "--calibration",
    type=PathName(),
    help="A folder of images typical of later use, which set the ranges of int8; default: those of --images.",
)
@option(
    "--target",
    type=click.Choice(["onnx", "tensorrt", "tensorrt-rtx", "inductor"]),
    default="onnx",
    help="onnx: for CPUs; tensorrt: for this machine's GPU; tensorrt-rtx: a portable engine for NVIDIA's consumer "
    "GPUs, built without a GPU; inductor: compiled by PyTorch for this machine's GPU, or its CPU if it has none.",
)
@option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8", "auto"]),
    default="fp32",
    help="onnx: fp32, int8 and, with --runtime openvino, bf16; tensorrt and tensorrt-rtx: fp32, fp16, bf16, int8; "
    "inductor: fp32, fp16, bf16. auto: builds, verifies and measures all of them on this machine and publishes the "
    "fastest.",
)
@option(
    "--runtime",
    type=click.Choice(["onnxruntime", "openvino", "auto"]),
    default="onnxruntime",
    help="What runs an onnx engine in the embedded Triton. auto: the fastest one that is installed.",
)
@option(
    "--frontend",
    type=click.Choice(["auto", "onnx", "torch-tensorrt"]),
    default="auto",
    help="What builds a TensorRT plan: TensorRT from ONNX, or Torch-TensorRT from the PyTorch program. auto: builds "
    "with all that are installed and publishes the fastest verified plan.",
)
@option(
    "--attention-graph",
    type=click.Choice(["plain", "hoisted", "fused", "hoisted-fused", "epilogue", "auto"]),
    help="plain: as trained; hoisted: computes the gate from the input of the block's last 1x1 convolution; fused: one "
    "operator from the pooling to the ReLU; hoisted-fused, epilogue: the hoisted gate, applied by one operator after "
    "the convolution, or fused with it. A CPU runs the fused operators as plain ones. auto: builds all that fit the "
    "network and publishes the fastest. Default: auto for engines for this machine's GPU, else plain, the fastest on "
    "CPUs.",
)
@option(
    "--expose-gates",
    is_flag=True,
    help="Add the attention's gates as an output, for explanations; it costs nothing unless they are asked for.",
)
@option("--max-batch", type=click.IntRange(1, 1024), default=32, help="Most images in one batch of the engine.")
@option("--resize", type=click.IntRange(1, 4096), help="Resize the shorter side to so many pixels.")
@option("--crop", type=click.IntRange(1, 4096), help="Side of the centre crop in pixels.")
@option("--filter", "filter_", type=click.Choice(["bilinear", "bicubic"]), help="Filter of the resize.")
@option("--mean", type=FloatRange(0, 1), **RGB, help="Mean of R, G and B, which are in [0, 1].")
@option("--std", type=FloatRange(0, 1, min_open=True), **RGB, help="Standard deviation of R, G and B.")
@option(
    "--repository",
    type=PathName(file_okay=False),
    default=Path("model_repository"),
    help="The model repository to publish into.",
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

    Preprocessing (--resize, --crop, --filter, --mean, --std) must be that of the training. By default it is that of
    timm's config.json in the CHECKPOINT's folder, as on Hugging Face, or else the network's usual one. The command
    stops at the first CHECKPOINT that fails; those before it stay published.
    """
    with imports():
        from eca_build import compile as build
        from eca_build.inputs import Options, default_name
        from eca_build.targets import Wish, usual_graph

    if name and len(checkpoints) > 1:
        raise click.UsageError("--name is for a single checkpoint; several are named after their files or folders")
    called = [(checkpoint.absolute().parent, default_name(checkpoint)) for checkpoint in checkpoints]
    alongside = [called.count(one) > 1 for one in called]
    names = [default_name(*one) for one in zip(checkpoints, alongside, strict=True)]
    if same := [path for path, own in zip(checkpoints, names, strict=True) if names.count(own) > 1]:
        raise click.UsageError(
            f"{' and '.join(map(str, same))} would get the same model name, because models are named after their files "
            "or folders; build each by itself, with a --name"
        )
    recipe = {"resize": resize, "crop": crop, "filter": filter_, "mean": mean, "std": std}
    graph = attention_graph or usual_graph(target)
    wish = Wish(target, precision, graph, max_batch, expose_gates, runtime, frontend)
    steps = build.steps(wish)
    for checkpoint, has_others in zip(checkpoints, alongside, strict=True):
        kind = kind_of(attention)
        asked = (checkpoint, repository, recipe, name, arch, labels, images, kind, wish, calibration, most_images)
        options = Options(*asked, alongside=has_others)
        bar = tqdm(total=steps, desc=checkpoint.name, unit="step", disable=None, leave=False)
        with _named(checkpoint, len(checkpoints)), bar:
            built = build.compile_checkpoint(options, partial(_show, bar, count()), _note)
        click.echo(_sentence(built))  # the bar is gone: else it would begin behind it, in the same line


@contextmanager
def _named(checkpoint: Path, of: int) -> Iterator[None]:
    """Within it a BuildError names the checkpoint where there are several, any of which it could be about."""
    try:
        yield
    except BuildError as error:
        if of == 1 or str(checkpoint) in str(error):
            raise
        raise BuildError(f"{checkpoint}: {error}") from None


def _note(what: str) -> None:
    tqdm.write(f"eca-build: {what}", file=sys.stderr)  # above the bar where there is one


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
    rtx = " (its ONNX model; no GPU here runs the engine itself)" if contract.engine == "tensorrt-rtx" else ""
    chosen = f"; {contract.runtime or contract.engine} {contract.precision}, {choice.why}" if choice else ""
    return (
        f"{built.folder}: {contract.architecture}, attention {contract.attention}{note}; top-1 agreement "
        f"{verdict.top1_agreement:.0%}, largest difference {verdict.largest_difference:.1e} on {verdict.images} images"
        f"{rtx}{chosen}{_beside(built)}"
    )


def _beside(built: Built) -> str:
    if not built.recipe_beside:
        return ""
    recipe = built.contract.preprocessing
    taken = f"{recipe.filter} to {recipe.resize} pixels, a crop of {recipe.crop}"
    return f"; {taken}, and all else that was not given, as config.json says"
