"""The `eca-build` command."""

from __future__ import annotations

import atexit
import gc
import json
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from tqdm import tqdm

from eca_build.errors import BuildError

if TYPE_CHECKING:
    from eca_build.compile import Built
    from eca_build.graphs import AttentionGraph
    from eca_build.networks.attention import Kind
    from eca_build.targets import Auto, Precision, Runtime, TargetName
    from eca_build.tensorrt_plan import Frontend

Command = TypeVar("Command", bound=Callable[..., Any])
EXAMPLES = """\b
Examples:
  eca-build compile eca_resnet50.pth.tar --labels imagenet.txt
  eca-build compile mine.safetensors --name mine --images photos/ --repository model_repository
"""

INIT_EXAMPLE = """\b
Example:
  eca-build init resnet50 --attention eca -o resnet50-eca.safetensors
  eca-build compile resnet50-eca.safetensors
"""
RGB: dict[str, Any] = {"nargs": 3, "metavar": "R G B"}
ATTENTION_HELP = "Expect this attention (see `archs`); default: found. SE-Var1 has no weights, so it must be given."


def _option(flag: str, *name: str, **more: Any) -> Callable[[Command], Command]:
    """An option that is an environment variable too: ECA_ and its own name, as --help shows."""
    variable = "ECA_" + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(flag, *name, envvar=variable, show_envvar=True, **more)


class _FloatRange(click.FloatRange):
    """Refuses NaN too, which is neither below nor above anything."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if number != number:
            self.fail("NaN is no number.", param, ctx)
        return number


class _Commands(click.Group):
    """Turns a BuildError of any command into its sentence and exit code 2."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BuildError as error:
            click.echo(f"eca-build: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="eca-serve")
def main() -> None:
    """Turns trained checkpoints into verified, published model versions."""
    # `docker stop`: as Ctrl-C, so that what it started ends and nothing it wrote stays
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    atexit.register(gc.freeze)  # else all of torch is looked through for garbage at the end, for a second


@main.command()
def archs() -> None:
    """What can be built: each architecture with the parameters of its variants, and what the variants are."""
    import torch

    from eca_build import cost
    from eca_build.networks import ARCHS, create, with_formula
    from eca_build.networks.attention import FORMULAS, KINDS

    widths = [max(6, len(kind)) for kind in KINDS]
    head = "  ".join(f"{kind:>{width}}" for kind, width in zip(KINDS, widths, strict=True))
    click.echo(f"Parameters in Mi (2**20) by --attention:\n\n{'architecture':<18} {'input':>5}  {head}")
    for arch in ARCHS:
        size, classes = (32, 10) if arch.endswith("_cifar") else (224, 1000)
        with torch.device("meta"):
            counts = [cost.parameters(create(with_formula(arch, kind, classes))) / 2**20 for kind in KINDS]
        row = "  ".join(f"{count:>{width}.2f}" for count, width in zip(counts, widths, strict=True))
        click.echo(f"{arch:<18} {size:>5}  {row}")
    click.echo("\nThe gate of a site of C channels, from its pooled map y, and its weights:\n")
    for kind, (gate, weights) in FORMULAS.items():
        click.echo(f"{kind:<8}  {gate:<58}  {weights}")


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@_option("--attention", help=ATTENTION_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def inspect(checkpoint: Path, attention: str | None, as_json: bool) -> None:
    """Says what CHECKPOINT holds: architecture, attention, kernel sizes, classes, parameters, FLOPs."""
    from eca_build.checkpoint import load
    from eca_build.detect import describe

    found = describe(load(checkpoint, attention=_kind(attention)))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        click.echo(f"{key.replace('_', ' '):<14} {text}")


@main.command("init", epilog=INIT_EXAMPLE)
@click.argument("arch")
@_option("--attention", default="none", help="One of `archs`.")
@_option("--classes", type=click.IntRange(1, 100_000), help="Default: the architecture's, 1000 or 10.")
@_option("--width", type=_FloatRange(0.05, 4), default=1.0, help="Times the channels, where the network can.")
@_option("--seed", type=click.IntRange(0, 2**63 - 1), default=0)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A .safetensors file.")
def init(arch: str, attention: str, classes: int | None, width: float, seed: int, output: Path) -> None:
    """Writes a checkpoint of ARCH with random weights: to measure latency, which needs no trained ones.

    The file, the contract of a model built from it, and all its labels say that the weights are random.
    """
    from eca_build.initial import write

    classes = classes or (10 if arch.endswith("_cifar") else 1000)
    spec = write(output, arch, _kind(attention) or "none", classes, width, seed)
    click.echo(
        f"{output}: {spec.arch}, attention {spec.attention}, {classes} classes, random weights, for latency only"
    )


@main.command("compile", epilog=EXAMPLES)
@click.argument("checkpoints", metavar="CHECKPOINT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_option("--arch", help="Expect this architecture; default: found.")
@_option("--attention", help=ATTENTION_HELP)
@_option("--name", help="Model name; default: the file's name.")
@_option("--labels", type=click.Path(path_type=Path), help="One a line.")
@_option(
    "--images",
    type=click.Path(path_type=Path),
    help="A folder of images to verify on; default: synthetic ones. Where a folder or file is called as a label "
    "(dog/1.jpg, dog-1.jpg) the accuracy is verified too.",
)
@_option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="A folder of images like those to come, which int8 takes its ranges from; default: those of --images.",
)
@_option(
    "--target",
    type=click.Choice(["onnx", "tensorrt", "tensorrt-rtx", "inductor"]),
    default="onnx",
    help="onnx: for CPUs; tensorrt: for the GPU of this machine; tensorrt-rtx: a portable engine for NVIDIA's consumer "
    "GPUs, built without one; inductor: a package of PyTorch's compiler for the GPU of this machine, or its CPU.",
)
@_option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8", "auto"]),
    default="fp32",
    help="onnx: fp32, int8 and, with --runtime openvino, bf16; tensorrt and tensorrt-rtx: fp32, fp16, bf16, int8; "
    "inductor: fp32, fp16, bf16. auto: every one is built, verified and measured on this machine, and the fastest "
    "published.",
)
@_option(
    "--runtime",
    type=click.Choice(["onnxruntime", "openvino", "auto"]),
    default="onnxruntime",
    help="What the embedded Triton runs an onnx engine in. auto: what is installed and fastest.",
)
@_option(
    "--frontend",
    type=click.Choice(["auto", "onnx", "torch-tensorrt"]),
    default="auto",
    help="What makes a TensorRT plan: from ONNX, or Torch-TensorRT from the PyTorch program. auto: all that are "
    "installed, the fastest verified published.",
)
@_option(
    "--attention-graph",
    type=click.Choice(["plain", "hoisted", "fused", "hoisted-fused", "epilogue", "auto"]),
    help="hoisted: the gate from the input of the block's last 1x1 convolution; fused: one operator from the pooling "
    "to the ReLU; hoisted-fused, epilogue: the hoisted gate, joined to the map by one operator behind the convolution "
    "or with it. A CPU runs the fused operators as plain ones. auto: all that the network has, the fastest published; "
    "the default for engines of this machine's GPU. Else plain is, which CPUs run fastest.",
)
@_option(
    "--expose-gates",
    is_flag=True,
    help="The attention's gates as one more output, for explanations; it costs nothing while nobody asks for them.",
)
@_option("--max-batch", type=click.IntRange(1, 1024), default=32)
@_option("--resize", type=click.IntRange(1, 4096), help="Shorter side in pixels; default: the network's.")
@_option("--crop", type=click.IntRange(1, 4096), help="Centre crop in pixels; default: the network's.")
@_option("--filter", "filter_", type=click.Choice(["bilinear", "bicubic"]), help="Of the resize; default: bilinear.")
@_option("--mean", type=_FloatRange(0, 1), **RGB, help="Of R, G, B in [0, 1]; default: the network's.")
@_option("--std", type=_FloatRange(0, 1, min_open=True), **RGB, help="Of R, G, B; default: the network's.")
@_option(
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

    Stops at the first that fails; those before it stay published.
    """
    from eca_build import compile as build
    from eca_build.inputs import default_name
    from eca_build.targets import Wish, usual_graph

    if name and len(checkpoints) > 1:
        raise click.UsageError("--name is for one checkpoint; several are named after their files")
    names = [default_name(checkpoint) for checkpoint in checkpoints]
    if same := [path for path, own in zip(checkpoints, names, strict=True) if names.count(own) > 1]:
        raise click.UsageError(
            f"{' and '.join(map(str, same))} would be versions of one model, for they are named after their files; "
            "build each by itself, with a --name"
        )
    recipe = {"resize": resize, "crop": crop, "filter": filter_, "mean": mean, "std": std}
    graph = attention_graph or usual_graph(target)
    wish = Wish(target, precision, graph, max_batch, expose_gates, runtime, frontend)
    steps = build.steps(wish)
    for checkpoint in checkpoints:
        kind = _kind(attention)
        options = build.Options(checkpoint, repository, recipe, name, arch, labels, images, kind, wish, calibration)
        with tqdm(total=steps, desc=checkpoint.name, unit="step", disable=None, leave=False) as bar:
            click.echo(_sentence(build.compile_checkpoint(options, partial(_show, bar, count()))))


def _kind(given: str | None) -> Kind | None:
    from eca_build.networks.attention import KINDS

    if given is not None and given not in KINDS:
        raise BuildError(f"there is no attention {given}; there are {', '.join(KINDS)}")
    return next((kind for kind in KINDS if kind == given), None)


def _show(bar: tqdm[NoReturn], begun: Iterator[int], what: str) -> None:
    bar.update(min(1, next(begun)))  # what went before has ended
    bar.set_postfix_str(what)


def _sentence(built: Built) -> str:
    if not built.changed:
        return f"{built.folder}: nothing changed since it was built"
    verdict = built.contract.verification
    note = "; random weights, for latency only" if built.contract.weights == "random" else ""
    contract, choice = built.contract, built.contract.choice
    chosen = f"; {contract.runtime or contract.engine} {contract.precision}, {choice.why}" if choice else ""
    return (
        f"{built.folder}: {contract.architecture}, attention {contract.attention}{note}; top-1 agreement "
        f"{verdict.top1_agreement:.0%}, largest difference {verdict.largest_difference:.1e} on {verdict.images} images"
        f"{chosen}"
    )


if __name__ == "__main__":
    sys.exit(main())
