"""Finds which network a state dict is, from names and shapes alone."""

from __future__ import annotations

import re
from dataclasses import replace
from operator import eq
from pathlib import Path

from torch import Tensor

from eca_build.errors import BuildError
from eca_build.networks import CIFAR_RESNETS, RESNETS, NetworkSpec
from eca_build.networks.attention import SIZED, Kind, paper_size
from eca_build.networks.mobilenetv2 import round_channels
from eca_build.networks.resnet import BasicBlock, Bottleneck, Shape, Stage

State = dict[str, Tensor]
WIDTH_STEP = 0.05  # a MobileNetV2's width is found as a multiple of it
# The weight that tells an attention module by its name, how many axes it has, and which of them holds a site's size.
# SE-Var1 has no weights, so its networks look like plain ones.
MARKS: dict[str, tuple[Kind, int, int]] = {
    "conv.weight": ("eca", 3, 2),
    "taps": ("eca-ns", 2, 1),
    "spatial.weight": ("cbam", 4, 0),
    "fc1.weight": ("se", 2, 0),
    "weight": ("se-var2", 1, 0),
    "fc.weight": ("se-var3", 2, 0),
    "grouped.weight": ("se-gc1", 3, 1),
}


def detect(state: State, path: Path) -> NetworkSpec:
    """The specification of the network in `state`, whose keys are ours; BuildError where it is none of ours."""
    if not state:
        raise BuildError(f"{path} holds no weights; save the network's state_dict() and give that")
    heads = [state[key] for key in ("classifier.1.weight", "fc.weight") if key in state]
    if any(head.ndim != 2 for head in heads):
        raise BuildError(f"{path} has a classifier of {heads[0].ndim} axes; the networks here end in a linear layer")
    if heads and not len(heads[0]):
        raise BuildError(f"{path} has a classifier with no classes")
    if heads and len(heads[0]) == 1:
        raise BuildError(
            f"{path} has a classifier of one class, whose probability would always be 1; if it was trained as yes or "
            "no with a sigmoid, put a zero before its bias and a row of zeros before its weights: class 1 is then yes"
        )
    if "features.0.0.weight" in state and "classifier.1.weight" in state:
        spec = _mobilenet(state, path)
        blocks = [f"features.{index}" for index in range(1, 18)]
    elif ("conv1.weight" in state or "conv1.0.weight" in state) and "fc.weight" in state:
        depths = _depths(state)
        spec = _resnet(state, depths, path)
        blocks = [f"layer{stage}.{index}" for stage, depth in depths.items() for index in range(depth)]
    else:
        begin = sorted({key.partition(".")[0] for key in state})
        more = f" and {len(begin) - 8} more" if len(begin) > 8 else ""
        found = f"its weights are in {', '.join(begin[:8])}{more}"
        # of a network that was trained to give features, or whose classifier has a name of its own
        for kind, last, classifier in (
            ("ResNet", "layer4.0.conv1.weight", "fc"),
            ("MobileNetV2", "features.17.conv.0.0.weight", "classifier.1"),
        ):
            if last in state and f"{classifier}.weight" not in state:
                raise BuildError(
                    f"{path} looks like a {kind} but has no {classifier}.weight, its classifier: {found}; give a file "
                    "of the whole network"
                )
        raise BuildError(f"{path} is not a network known here, {found}; `eca-build archs` lists those that are")
    kind, sizes, bias = _attention(state, blocks, path)
    return replace(spec, attention=kind, sizes=sizes, bias=bias)


def _depths(state: State) -> dict[int, int]:
    """The number of a ResNet's blocks in each of its stages, by the stages' numbers, in their order."""
    depths: dict[int, int] = {}
    for key in state:
        if found := re.match(r"layer(\d{1,3})\.(\d{1,3})\.", key):
            depths[int(found[1])] = max(depths.get(int(found[1]), 0), int(found[2]) + 1)
    return dict(sorted(depths.items()))


def _resnet(state: State, depths: dict[int, int], path: Path) -> NetworkSpec:
    shape, classes = _shape(state, depths, path), len(state["fc.weight"])
    alike = {arch: known for arch, known in RESNETS.items() if known.structure == shape.structure}
    for arch, known in alike.items():
        if shape == known:
            return NetworkSpec(arch, "none", classes)
    for arch, known in alike.items():
        if all(left <= whole for left, whole in zip(shape.channels, known.channels, strict=True)):
            return NetworkSpec(f"{arch}_pruned", "none", classes, shape=shape)
    if alike:  # one that is wider: the comparison of the weights tells where
        closest = max(alike, key=lambda arch: sum(map(eq, shape.channels, alike[arch].channels)))
        return NetworkSpec(closest, "none", classes)
    first = shape.stem[0]
    for arch, count in CIFAR_RESNETS.items():
        if shape.depths == (count,) * 3 and shape.block is BasicBlock and first % 16 == 0:
            return NetworkSpec(arch, "none", classes, width=first / 16)
    kind = "bottleneck" if shape.block is Bottleneck else "basic"
    grouped = f" of {shape.groups} groups" if shape.groups > 1 else ""
    behind = f" behind convolutions of {shape.stem} channels" if len(shape.stem) > 1 else ""
    pooled = ", with pooled shortcuts" if shape.pooled else ""
    raise BuildError(
        f"{path} is a ResNet of {shape.depths} {kind} blocks{grouped}{behind}{pooled}, which is none of those that "
        "`eca-build archs` lists"
    )


def _shape(state: State, depths: dict[int, int], path: Path) -> Shape:
    """A ResNet's shape as its weights have it; they need not agree on it."""

    def channels(layer: str) -> int:
        if not (given := len(state.get(f"{layer}.weight", ()))):
            raise BuildError(f"{path} looks like a ResNet but lacks {layer}.weight; that network is not supported")
        return given

    block = Bottleneck if "layer1.0.conv3.weight" in state else BasicBlock
    *before, last = ("conv1", "conv2", "conv3") if block is Bottleneck else ("conv1", "conv2")
    several = [f"conv1.{index}" for index in (0, 3, 6) if f"conv1.{index}.weight" in state]
    stem = tuple(channels(layer) for layer in several or ["conv1"])
    stages = []
    for stage, depth in depths.items():
        blocks = [f"layer{stage}.{index}" for index in range(depth)]
        inner = tuple(tuple(channels(f"{name}.{layer}") for layer in before) for name in blocks)
        stages.append(Stage(channels(f"{blocks[0]}.{last}"), inner))
    if block is BasicBlock and stages:  # nothing changes the channels on the way around its first stage
        stages[0] = stages[0]._replace(channels=stem[-1])
    given, second = channels("layer1.0.conv1"), state["layer1.0.conv2.weight"]
    taken = second.shape[1] if second.ndim == 4 else 0  # of those that are given, by each of its groups
    groups = given // taken if taken and given % taken == 0 else 1
    projection = state.get("layer2.0.downsample.1.weight")  # the pooling before it has no weights, but a number
    return Shape(block, stem, tuple(stages), groups, pooled=projection is not None and projection.ndim == 4)


def _mobilenet(state: State, path: Path) -> NetworkSpec:
    classes, head = state["classifier.1.weight"].shape
    stages = {1: 16, 2: 24, 4: 32, 7: 64, 11: 96, 14: 160, 17: 320}
    found = {}
    for index, base in stages.items():
        key = f"features.{index}.conv.{2 if index == 1 else 3}.weight"
        if key not in state:
            raise BuildError(f"{path} looks like a MobileNetV2 but lacks {key}; that network is not supported")
        found[base] = len(state[key])
    for steps in sorted(range(1, round(4 / WIDTH_STEP) + 1), key=lambda steps: abs(steps * WIDTH_STEP - 1)):
        width = round(steps * WIDTH_STEP, 2)
        if all(round_channels(base * width) == channels for base, channels in found.items()):
            for arch, base_head in (("mobilenetv2", 1280), ("mobilenetv2_cifar", 640)):
                if round_channels(base_head * max(1.0, width)) == head:
                    return NetworkSpec(arch, "none", classes, width=width)
    raise BuildError(f"{path} is a MobileNetV2 with stages of {list(found.values())} channels, which no width gives")


def _attention(state: State, blocks: list[str], path: Path) -> tuple[Kind, tuple[int, ...], bool]:
    for mark, (kind, axes, axis) in MARKS.items():
        found = {block: weight for block in blocks if (weight := state.get(f"{block}.attention.{mark}")) is not None}
        if not found:
            continue
        name = kind.upper().rstrip("1") if kind == "se-gc1" else kind.upper()
        if len(found) != len(blocks):
            raise BuildError(f"{path} has {name} in {len(found)} of {len(blocks)} blocks; it must be in all or none")
        if odd := [(block, weight.ndim) for block, weight in found.items() if weight.ndim != axes]:
            raise BuildError(f"{path}: {odd[0][0]}.attention has weights of {odd[0][1]} axes; it is no {name}")
        sizes = tuple(weight.shape[axis] for weight in found.values())
        if kind in ("eca", "eca-ns") and (even := [size for size in sizes if size % 2 == 0]):
            raise BuildError(f"{path} has an {name} kernel of {even[0]} weights; kernel sizes are odd")
        if kind == "se-gc1":
            return _grouped([len(weight) for weight in found.values()], sizes, path), sizes, False
        first = f"{blocks[0]}.attention.fc1"
        if kind == "cbam":
            sizes = tuple(len(state.get(f"{block}.attention.fc1.weight", ())) for block in blocks)
            if 0 in sizes:
                raise BuildError(f"{path} has CBAM for positions alone; it is served with that for channels")
        return kind, sizes if kind in SIZED else (), kind in ("se", "cbam") and f"{first}.bias" in state
    return "none", (), False


def _grouped(channels: list[int], sizes: tuple[int, ...], path: Path) -> Kind:
    kinds: tuple[Kind, ...] = ("se-gc1", "se-gc2", "se-gc3")
    for kind in kinds:
        if sizes == tuple(paper_size(kind, count, 1) for count in channels):
            return kind
    raise BuildError(f"{path} has SE-GC with groups of {sizes[0]} of {channels[0]} channels, which no variant has")
