"""What can be built: each architecture by name, and a network from its specification."""

from __future__ import annotations

from dataclasses import dataclass

from eca_build.networks.attention import SIZED, AttentionSites, Kind, paper_size
from eca_build.networks.mobilenetv2 import STAGES, MobileNetV2, round_channels
from eca_build.networks.resnet import BasicBlock, Bottleneck, CifarResNet, ResNet, Shape

Network = ResNet | CifarResNet | MobileNetV2

DEEP, TIERED = (32, 32, 64), (24, 32, 64)  # channels of the stems that timm calls so
RESNETS = {
    "resnet18": Shape(BasicBlock, (2, 2, 2, 2)),
    "resnet26": Shape(Bottleneck, (2, 2, 2, 2)),
    "resnet34": Shape(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Shape(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Shape(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Shape(Bottleneck, (3, 8, 36, 3)),
    # timm's, which has weights with ECA of 26t, 50d, 50t, 101d, 269d and light, with SE of 152d, of most with neither
    "resnet10t": Shape(BasicBlock, (1, 1, 1, 1), TIERED, pooled=True),
    "resnet14t": Shape(Bottleneck, (1, 1, 1, 1), TIERED, pooled=True),
    "resnet18d": Shape(BasicBlock, (2, 2, 2, 2), DEEP, pooled=True),
    "resnet26d": Shape(Bottleneck, (2, 2, 2, 2), DEEP, pooled=True),
    "resnet26t": Shape(Bottleneck, (2, 2, 2, 2), TIERED, pooled=True),
    "resnet34d": Shape(BasicBlock, (3, 4, 6, 3), DEEP, pooled=True),
    "resnet50d": Shape(Bottleneck, (3, 4, 6, 3), DEEP, pooled=True),
    "resnet50t": Shape(Bottleneck, (3, 4, 6, 3), TIERED, pooled=True),
    "resnet101d": Shape(Bottleneck, (3, 4, 23, 3), DEEP, pooled=True),
    "resnet152d": Shape(Bottleneck, (3, 8, 36, 3), DEEP, pooled=True),
    "resnet200d": Shape(Bottleneck, (3, 24, 36, 3), DEEP, pooled=True),
    "resnet269d": Shape(Bottleneck, (3, 30, 48, 8), DEEP, pooled=True),
    "resnetlight": Shape(Bottleneck, (1, 1, 11, 3), pooled=True),
}
CIFAR_RESNETS = {
    "resnet14_cifar": 2,
    "resnet20_cifar": 3,
    "resnet32_cifar": 5,
    "resnet44_cifar": 7,
    "resnet56_cifar": 9,
}
# Channels before the classifier at width 1 and below; strides of the stem and of each stage. The paper's strides would
# leave one pixel of a CIFAR image, and its head would be most of the weights.
MOBILENETS: dict[str, tuple[int, tuple[int, ...]]] = {
    "mobilenetv2": (1280, (2, 1, 2, 2, 2, 1, 2, 1)),
    "mobilenetv2_cifar": (640, (1, 2, 1, 2, 1, 1, 2, 1)),
}
ARCHS = (*RESNETS, *CIFAR_RESNETS, *MOBILENETS)


@dataclass(frozen=True)
class NetworkSpec:
    """All that decides a network's shape.

    `sizes` holds one number per attention site, in the order of the blocks: the kernel size of ECA and ECA-NS, the
    hidden width of SE and CBAM, the channels in a group of SE-GC; it is empty for the other kinds. `bias` is that of
    SE's and CBAM's linear layers. `width` multiplies the channels of MobileNetV2 and, as a whole number, of the CIFAR
    ResNets; it is 1 elsewhere.
    """

    arch: str
    attention: Kind
    classes: int
    sizes: tuple[int, ...] = ()
    width: float = 1.0
    bias: bool = False


def site_channels(arch: str, width: float = 1.0) -> tuple[int, ...]:
    """Channels at each attention site, in the order of the blocks. Raises KeyError for an unknown `arch`."""
    if arch in RESNETS:
        block, depths, *_ = RESNETS[arch]
        return tuple(64 * 2**stage * block.expansion for stage, depth in enumerate(depths) for _ in range(depth))
    if arch in CIFAR_RESNETS:
        return tuple(16 * int(width) * 2**stage for stage in range(3) for _ in range(CIFAR_RESNETS[arch]))
    if arch in MOBILENETS:
        return tuple(round_channels(base * width) for _, base, depth in STAGES for _ in range(depth))
    raise KeyError(arch)


def with_formula(arch: str, attention: Kind, classes: int, width: float = 1.0) -> NetworkSpec:
    """The specification for training: ECA's kernels by the paper's formula, the others' sizes as it has them."""
    reduction = 8 if arch in MOBILENETS else 16
    sizes = [paper_size(attention, c, reduction) for c in site_channels(arch, width)] if attention in SIZED else []
    return NetworkSpec(arch, attention, classes, tuple(sizes), width)


def create(spec: NetworkSpec) -> Network:
    """The network with PyTorch's own random initialisation. Raises KeyError for an unknown architecture."""
    sites = AttentionSites(spec.attention, spec.sizes, spec.bias)
    if spec.arch in RESNETS:
        return ResNet(RESNETS[spec.arch], spec.classes, sites)
    if spec.arch in CIFAR_RESNETS:
        return CifarResNet(CIFAR_RESNETS[spec.arch], spec.classes, sites, int(spec.width))
    base_head, strides = MOBILENETS[spec.arch]
    head = round_channels(base_head * max(1.0, spec.width))
    return MobileNetV2(spec.classes, sites, spec.width, head, strides)
