"""ResNets (He et al., arXiv 1512.03385) with attention after each block's last batch norm.

Key names are torchvision's, and timm's where that alone has such a network.
"""

from __future__ import annotations

from itertools import chain, pairwise
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from eca_build.networks.attention import AttentionSites


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, of which `channels` has what each gives.

    [N, in, H, W] -> [N, the last of `channels`, H / stride, W / stride].
    """

    expansion = 1

    def __init__(
        self,
        channels_in: int,
        channels: tuple[int, ...],
        stride: int,
        shortcut: nn.Module,
        sites: AttentionSites,
        groups: int = 1,
    ) -> None:
        super().__init__()
        middle, last = channels
        self.conv1 = nn.Conv2d(channels_in, middle, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, last, 3, 1, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.attention = sites.take(last)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.attention(self.bn2(self.conv2(y)))
        return F.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, as in torchvision), 1x1, of which `channels` has what each gives.

    [N, in, H, W] -> [N, the last of `channels`, H / stride, W / stride].
    """

    expansion = 4

    def __init__(
        self,
        channels_in: int,
        channels: tuple[int, ...],
        stride: int,
        shortcut: nn.Module,
        sites: AttentionSites,
        groups: int = 1,
    ) -> None:
        super().__init__()
        first, middle, last = channels
        self.conv1 = nn.Conv2d(channels_in, first, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, middle, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, last, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(last)
        self.attention = sites.take(last)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.attention(self.bn3(self.conv3(y)))
        return F.relu(y + self.downsample(x))


Block = type[BasicBlock] | type[Bottleneck]


def projection(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """Shortcut of the ImageNet networks where a block changes the map's shape: a 1x1 convolution (option B)."""
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))


def pooled_projection(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """Shortcut of ResNet-D: means of 2x2 pixels before the 1x1 convolution, which so leaves none of them out.

    [N, in, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)]; the last row and column of an odd map are their own.
    """
    pool = nn.Identity() if stride == 1 else nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
    convolution = nn.Conv2d(channels_in, channels_out, 1, bias=False)
    return nn.Sequential(pool, convolution, nn.BatchNorm2d(channels_out))


def deep_stem(channels: tuple[int, ...]) -> nn.Sequential:
    """3x3 convolutions to `channels` each, the first of stride 2; the last one's batch norm is not in it.

    [N, 3, H, W] -> [N, the last of `channels`, ceil(H / 2), ceil(W / 2)].
    """
    layers: list[nn.Module] = []
    for channels_in, channels_out in pairwise((3, *channels)):
        if layers:
            layers += [nn.BatchNorm2d(channels_in), nn.ReLU()]
        layers.append(nn.Conv2d(channels_in, channels_out, 3, 1 if layers else 2, 1, bias=False))
    return nn.Sequential(*layers)


class Stage(NamedTuple):
    """Blocks that all give `channels`; `inner` has, for each block, what its convolutions but the last give."""

    channels: int
    inner: tuple[tuple[int, ...], ...]


class Shape(NamedTuple):
    """What tells one ImageNet ResNet from another, above all the channels that each convolution gives.

    `stem`: of one convolution of 7x7, or of several of 3x3, as ResNet-D has them (He et al., arXiv 1812.01187, section
    4.2), whose shortcuts are `pooled` besides. `groups` are those of each block's second convolution (ResNeXt, arXiv
    1611.05431).
    """

    block: Block
    stem: tuple[int, ...]
    stages: tuple[Stage, ...]
    groups: int = 1
    pooled: bool = False

    @property
    def depths(self) -> tuple[int, ...]:
        """The number of blocks of each stage."""
        return tuple(len(stage.inner) for stage in self.stages)

    @property
    def structure(self) -> tuple[object, ...]:
        """All but the channels: what pruning leaves as it is."""
        return self.block, self.depths, len(self.stem), self.groups, self.pooled

    @property
    def channels(self) -> tuple[int, ...]:
        """What each convolution gives but the shortcuts', in their order."""
        blocks = ((*inner, stage.channels) for stage in self.stages for inner in stage.inner)
        return (*self.stem, *chain.from_iterable(blocks))


def regular(
    block: Block,
    depths: tuple[int, ...],
    stem: tuple[int, ...] = (64,),
    pooled: bool = False,
    groups: int = 1,
    base_width: int = 64,
) -> Shape:
    """The shape of `depths` blocks a stage, whose channels double from stage to stage.

    In the first stage each of the `groups` has `base_width` channels: 64 in the ResNet, 128 in the wide one (arXiv
    1605.07146), fewer in the ResNeXt.
    """
    stages = []
    for planes, depth in zip((64, 128, 256, 512), depths, strict=True):
        width = planes * base_width // 64 * groups
        inner = (width,) if block is BasicBlock else (width, width)
        stages.append(Stage(planes * block.expansion, (inner,) * depth))
    return Shape(block, stem, tuple(stages), groups, pooled)


class ResNet(nn.Module):
    """The ImageNet ResNet: a stem, four stages; float [N, 3, H, W] -> logits [N, classes]."""

    def __init__(self, shape: Shape, classes: int, sites: AttentionSites) -> None:
        super().__init__()
        *_, channels = shape.stem
        self.conv1 = deep_stem(shape.stem) if len(shape.stem) > 1 else nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        project = pooled_projection if shape.pooled else projection
        for number, stage in enumerate(shape.stages, 1):
            blocks: list[nn.Module] = []
            for index, inner in enumerate(stage.inner):
                stride = 2 if number > 1 and index == 0 else 1
                # by the place, not by the channels: those of a pruned network may happen to be equal
                changes = index == 0 and (number > 1 or shape.block.expansion > 1)
                shortcut = project(channels, stage.channels, stride) if changes else nn.Identity()
                blocks.append(shape.block(channels, (*inner, stage.channels), stride, shortcut, sites, shape.groups))
                channels = stage.channels
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)
        sites.close()

    @property
    def head(self) -> nn.Linear:
        """The classifier: weight float [classes, C]."""
        return self.fc

    def feature_map(self, x: Tensor) -> Tensor:
        """The last feature map, float [N, C, H / 32, W / 32]."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.feature_map(x).mean((2, 3)))
        return logits
