"""Finds which network a state dict is, from names and shapes alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from eca_build import cost
from eca_build.errors import BuildError
from eca_build.networks import CIFAR_RESNETS, RESNETS, NetworkSpec, site_channels
from eca_build.networks.attention import Kind
from eca_build.networks.mobilenetv2 import round_channels
from eca_build.networks.resnet import Bottleneck

if TYPE_CHECKING:
    from eca_build.checkpoint import Checkpoint


def detect(state: dict[str, Tensor], path: Path) -> NetworkSpec:
    """The specification of the network in `state`, whose keys are ours; BuildError where it is none of ours."""
    heads = [state[key] for key in ("classifier.1.weight", "fc.weight") if key in state]
    if any(head.ndim != 2 for head in heads):
        raise BuildError(f"{path} has a classifier of {heads[0].ndim} axes; the networks here end in a linear layer")
    if "features.0.0.weight" in state and "classifier.1.weight" in state:
        arch, width, classes = _mobilenet(state, path)
        blocks = [f"features.{index}" for index in range(1, 18)]
    elif "conv1.weight" in state and "fc.weight" in state:
        (arch, width), classes = _resnet(state, path), len(state["fc.weight"])
        names = {found[0] for key in state if (found := re.match(r"layer\d+\.\d+", key))}
        blocks = sorted(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    else:
        raise BuildError(f"{path} is no network known here; `eca-build archs` lists those that are")
    kind, sizes, bias = _attention(state, blocks, path)
    return NetworkSpec(arch, kind, classes, sizes, width, bias)


def _resnet(state: dict[str, Tensor], path: Path) -> tuple[str, float]:
    depths: dict[int, int] = {}
    for key in state:
        if found := re.match(r"layer(\d+)\.(\d+)\.", key):
            depths[int(found[1])] = max(depths.get(int(found[1]), 0), int(found[2]) + 1)
    counts = tuple(depths[stage] for stage in sorted(depths))
    bottleneck = "layer1.0.conv3.weight" in state
    for arch, (block, wanted) in RESNETS.items():
        if counts == wanted and bottleneck == (block is Bottleneck):
            return arch, 1.0
    stem = len(state["conv1.weight"])
    for arch, count in CIFAR_RESNETS.items():
        if counts == (count,) * 3 and not bottleneck and stem and stem % 16 == 0:
            return arch, stem / 16
    kind = "bottleneck" if bottleneck else "basic"
    raise BuildError(
        f"{path} is a ResNet of {counts} {kind} blocks, which is none of those that `eca-build archs` lists"
    )


def _mobilenet(state: dict[str, Tensor], path: Path) -> tuple[str, float, int]:
    classes, head = state["classifier.1.weight"].shape
    stages = {1: 16, 2: 24, 4: 32, 7: 64, 11: 96, 14: 160, 17: 320}
    found = {}
    for index, base in stages.items():
        key = f"features.{index}.conv.{2 if index == 1 else 3}.weight"
        if key not in state:
            raise BuildError(f"{path} looks like a MobileNetV2 but lacks {key}; it is another network")
        found[base] = len(state[key])
    for hundredths in sorted(range(5, 401, 5), key=lambda h: abs(h - 100)):
        width = hundredths / 100
        if all(round_channels(base * width) == channels for base, channels in found.items()):
            for arch, base_head in (("mobilenetv2", 1280), ("mobilenetv2_cifar", 640)):
                if round_channels(base_head * max(1.0, width)) == head:
                    return arch, width, classes
    raise BuildError(f"{path} is a MobileNetV2 with stages of {list(found.values())} channels, which no width gives")


def _attention(state: dict[str, Tensor], blocks: list[str], path: Path) -> tuple[Kind, tuple[int, ...], bool]:
    eca = [state.get(f"{block}.attention.conv.weight") for block in blocks]
    se = [state.get(f"{block}.attention.fc1.weight") for block in blocks]
    for kind, weights, axis in (("eca", eca, 2), ("se", se, 0)):
        present = [weight for weight in weights if weight is not None]
        if not present:
            continue
        if len(present) != len(blocks):
            raise BuildError(
                f"{path} has {kind.upper()} in {len(present)} of {len(blocks)} blocks; all or none is served"
            )
        if any(weight.ndim <= axis for weight in present):
            raise BuildError(
                f"{path}: {blocks[0]}.attention has weights of {present[0].ndim} axes; it is no {kind.upper()}"
            )
        sizes = tuple(weight.shape[axis] for weight in present)
        if kind == "eca":
            if even := [size for size in sizes if size % 2 == 0]:
                raise BuildError(f"{path} has an ECA kernel of {even[0]} weights; kernel sizes are odd")
            return "eca", sizes, False
        return "se", sizes, f"{blocks[0]}.attention.fc1.bias" in state
    return "none", (), False


def describe(checkpoint: Checkpoint) -> dict[str, object]:
    """What `eca-build inspect` shows; FLOPs are for `input_size` pixels a side, as multiply-adds
    and as ECA-Net's tables count them."""
    spec = checkpoint.spec
    size = 32 if spec.arch.endswith("_cifar") else 224
    return {
        "file": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        "layout": checkpoint.origin,
        "architecture": spec.arch,
        "attention": spec.attention,
        "kernel_sizes": list(spec.sizes) if spec.attention == "eca" else [],
        "se_hidden": list(spec.sizes) if spec.attention == "se" else [],
        "sites": len(site_channels(spec.arch, spec.width)),
        "classes": spec.classes,
        "width": spec.width,
        "input_size": size,
        "parameters": cost.parameters(checkpoint.network),
        "flops": cost.flops(checkpoint.network, size),
        "paper_flops": cost.paper_flops(checkpoint.network, size),
    }
