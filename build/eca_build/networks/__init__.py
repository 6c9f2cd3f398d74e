"""What can be built: each architecture by name, and a network from its specification."""

from __future__ import annotations

from dataclasses import dataclass, replace

from eca_build.networks.attention import SIZED, AttentionSites, Kind, paper_size
from eca_build.networks.cifar_resnet import CifarResNet
from eca_build.networks.mobilenetv2 import STAGES, MobileNetV2, round_channels
from eca_build.networks.resnet import BasicBlock, Bottleneck, ResNet, Shape, regular

Network = ResNet | CifarResNet | MobileNetV2

DEEP, TIERED = (32, 32, 64), (24, 32, 64)  # channels of the stems that timm calls so
# Each kind's narrowest first: a pruned one is called after the first that it can come from.
RESNETS = {
    "resnet18": regular(BasicBlock, (2, 2, 2, 2)),
    "resnet26": regular(Bottleneck, (2, 2, 2, 2)),
    "resnet34": regular(BasicBlock, (3, 4, 6, 3)),
    "resnet50": regular(Bottleneck, (3, 4, 6, 3)),
    "resnet101": regular(Bottleneck, (3, 4, 23, 3)),
    "resnet152": regular(Bottleneck, (3, 8, 36, 3)),
    "wide_resnet50_2": regular(Bottleneck, (3, 4, 6, 3), base_width=128),
    "wide_resnet101_2": regular(Bottleneck, (3, 4, 23, 3), base_width=128),
    "resnext50_32x4d": regular(Bottleneck, (3, 4, 6, 3), groups=32, base_width=4),
    "resnext101_32x4d": regular(Bottleneck, (3, 4, 23, 3), groups=32, base_width=4),
    "resnext101_32x8d": regular(Bottleneck, (3, 4, 23, 3), groups=32, base_width=8),
    "resnext101_32x16d": regular(Bottleneck, (3, 4, 23, 3), groups=32, base_width=16),
    "resnext101_32x32d": regular(Bottleneck, (3, 4, 23, 3), groups=32, base_width=32),
    "resnext101_64x4d": regular(Bottleneck, (3, 4, 23, 3), groups=64, base_width=4),
    # timm's, which has weights with ECA of 26t, 50d, 50t, 101d, 269d, light, next26t, pruned 50d and 101d, with SE of
    # 152d, next26d, next26t, next101d, of most with neither
    "resnet10t": regular(BasicBlock, (1, 1, 1, 1), TIERED, pooled=True),
    "resnet14t": regular(Bottleneck, (1, 1, 1, 1), TIERED, pooled=True),
    "resnet18d": regular(BasicBlock, (2, 2, 2, 2), DEEP, pooled=True),
    "resnet26t": regular(Bottleneck, (2, 2, 2, 2), TIERED, pooled=True),
    "resnet26d": regular(Bottleneck, (2, 2, 2, 2), DEEP, pooled=True),
    "resnet34d": regular(BasicBlock, (3, 4, 6, 3), DEEP, pooled=True),
    "resnet50t": regular(Bottleneck, (3, 4, 6, 3), TIERED, pooled=True),
    "resnet50d": regular(Bottleneck, (3, 4, 6, 3), DEEP, pooled=True),
    "resnet101d": regular(Bottleneck, (3, 4, 23, 3), DEEP, pooled=True),
    "resnet152d": regular(Bottleneck, (3, 8, 36, 3), DEEP, pooled=True),
    "resnet200d": regular(Bottleneck, (3, 24, 36, 3), DEEP, pooled=True),
    "resnet269d": regular(Bottleneck, (3, 30, 48, 8), DEEP, pooled=True),
    "resnetlight": regular(Bottleneck, (1, 1, 11, 3), pooled=True),
    "resnext26t_32x4d": regular(Bottleneck, (2, 2, 2, 2), TIERED, pooled=True, groups=32, base_width=4),
    "resnext26d_32x4d": regular(Bottleneck, (2, 2, 2, 2), DEEP, pooled=True, groups=32, base_width=4),
    "resnext50t_32x4d": regular(Bottleneck, (3, 4, 6, 3), TIERED, pooled=True, groups=32, base_width=4),
    "resnext50d_32x4d": regular(Bottleneck, (3, 4, 6, 3), DEEP, pooled=True, groups=32, base_width=4),
    "resnext101d_32x8d": regular(Bottleneck, (3, 4, 23, 3), DEEP, pooled=True, groups=32, base_width=8),
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
    ResNets; it is 1 elsewhere. `shape` is that of a pruned ResNet, which is no architecture's own.
    """

    arch: str
    attention: Kind
    classes: int
    sizes: tuple[int, ...] = ()
    width: float = 1.0
    bias: bool = False
    shape: Shape | None = None


def site_channels(spec: NetworkSpec) -> tuple[int, ...]:
    """Channels at each attention site, in the order of the blocks. Raises KeyError for an unknown architecture."""
    if spec.arch in CIFAR_RESNETS:
        return tuple(16 * int(spec.width) * 2**stage for stage in range(3) for _ in range(CIFAR_RESNETS[spec.arch]))
    if spec.arch in MOBILENETS:
        return tuple(round_channels(base * spec.width) for _, base, depth in STAGES for _ in range(depth))
    stages = (spec.shape or RESNETS[spec.arch]).stages
    return tuple(stage.channels for stage in stages for _ in stage.inner)


def with_formula(arch: str, attention: Kind, classes: int, width: float = 1.0) -> NetworkSpec:
    """The specification for training: ECA's kernels by the paper's formula, the others' sizes as it has them."""
    spec = NetworkSpec(arch, attention, classes, width=width)
    if attention not in SIZED:
        return spec
    reduction = 8 if arch in MOBILENETS else 16
    return replace(spec, sizes=tuple(paper_size(attention, c, reduction) for c in site_channels(spec)))


def create(spec: NetworkSpec) -> Network:
    """The network with PyTorch's own random initialisation. Raises KeyError for an unknown architecture."""
    sites = AttentionSites(spec.attention, spec.sizes, spec.bias)
    if spec.arch in CIFAR_RESNETS:
        return CifarResNet(CIFAR_RESNETS[spec.arch], spec.classes, sites, int(spec.width))
    if spec.arch in MOBILENETS:
        base_head, strides = MOBILENETS[spec.arch]
        head = round_channels(base_head * max(1.0, spec.width))
        return MobileNetV2(spec.classes, sites, spec.width, head, strides)
    return ResNet(spec.shape or RESNETS[spec.arch], spec.classes, sites)
