"""The commands that tell what there is: architectures, what a checkpoint holds; and one with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from eca_service.importing import imports
from eca_service.paths import PathName

from eca_build.cli.options import ATTENTION_HELP, FloatRange, kind_of, option

if TYPE_CHECKING:
    from eca_build.checkpoint import Checkpoint

INIT_EXAMPLE = """\b
Example:
  eca-build init resnet50 --attention eca -o resnet50-eca.safetensors
  eca-build compile resnet50-eca.safetensors
"""


@click.command()
def archs() -> None:
    """Lists what can be built: each architecture, the parameters of its variants, and what each attention computes."""
    with imports():
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
            plain = cost.parameters(create(with_formula(arch, "none", classes)))
            counts = [plain + cost.attention_parameters(with_formula(arch, kind, classes)) for kind in KINDS]
        row = "  ".join(f"{count / 2**20:>{width}.2f}" for count, width in zip(counts, widths, strict=True))
        click.echo(f"{arch:<18} {size:>5}  {row}")
    click.echo("\nA ResNet with fewer channels is recognised as NAME_pruned.")
    click.echo(
        "\nHow each attention computes its gate from the pooled map y of C channels, and its number of weights:\n"
    )
    for kind, (gate, weights) in FORMULAS.items():
        click.echo(f"{kind:<8}  {gate:<58}  {weights}")


@click.command()
@click.argument("checkpoint", type=PathName())
@option("--attention", help=ATTENTION_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def inspect(checkpoint: Path, attention: str | None, as_json: bool) -> None:
    """Says what CHECKPOINT holds: architecture, attention, kernel sizes, classes, parameters, FLOPs."""
    with imports():
        from eca_build.checkpoint import load

    found = described(load(checkpoint, attention=kind_of(attention)))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        if value not in ([], ()):  # as the hidden channels of gates that have none
            text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            click.echo(f"{key.replace('_', ' '):<14} {text}")


def described(checkpoint: Checkpoint) -> dict[str, object]:
    """All that is told of a checkpoint; FLOPs are for `input_size` pixels a side, as multiply-adds and as ECA-Net's
    tables count them.
    """
    from eca_build import cost
    from eca_build.networks import site_channels

    spec = checkpoint.spec
    size = 32 if spec.arch.endswith("_cifar") else 224
    return {
        "file": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        "layout": checkpoint.origin,
        "architecture": spec.arch,
        "attention": spec.attention,
        "weights": checkpoint.weights,
        "kernel_sizes": list(spec.sizes) if spec.attention in ("eca", "eca-ns") else [],
        "hidden": list(spec.sizes) if spec.attention in ("se", "cbam") else [],
        "group": list(spec.sizes) if spec.attention.startswith("se-gc") else [],
        "sites": len(site_channels(spec)),
        "classes": spec.classes,
        "width": spec.width,
        "input_size": size,
        "parameters": cost.parameters(checkpoint.network),
        "flops": cost.flops(checkpoint.network, size),
        "paper_flops": cost.paper_flops(checkpoint.network, size),
    }


@click.command(epilog=INIT_EXAMPLE)
@click.argument("arch")
@option("--attention", default="none", help="One of those that `archs` lists.")
@option(
    "--classes", type=click.IntRange(2, 100_000), help="Number of classes; default: the architecture's, 1000 or 10."
)
@option("--width", type=FloatRange(0.05, 4), default=1.0, help="Multiplies the channels, for networks that allow it.")
@option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Seed of the random weights.")
@click.option("-o", "--output", type=PathName(), required=True, help="The .safetensors file to write.")
def init(arch: str, attention: str, classes: int | None, width: float, seed: int, output: Path) -> None:
    """Writes a checkpoint of ARCH with random weights, to measure latency, for which training does not matter.

    The file, the contract of a model built from it, and all its labels say that the weights are random.
    """
    with imports():
        from eca_build.initial import write

    classes = classes or (10 if arch.endswith("_cifar") else 1000)
    spec = write(output, arch, kind_of(attention) or "none", classes, width, seed)
    click.echo(
        f"{output}: {spec.arch}, attention {spec.attention}, {classes} classes, random weights, for latency only"
    )
