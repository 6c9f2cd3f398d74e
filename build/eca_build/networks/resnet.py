"""ResNets (He et al., arXiv 1512.03385) with attention after each block's last batch norm.

Key names are torchvision's, and timm's where that alone has such a network.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from eca_build.networks.attention import AttentionSites


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; [N, in, H, W] -> [N, planes, H / stride, W / stride]."""

    expansion = 1

    def __init__(self, channels_in: int, planes: int, stride: int, shortcut: nn.Module, sites: AttentionSites) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.attention = sites.take(planes)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.attention(self.bn2(self.conv2(y)))
        return F.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, as in torchvision), 1x1; [N, in, H, W] -> [N, 4 planes, H / stride, W / stride]."""

    expansion = 4

    def __init__(self, channels_in: int, planes: int, stride: int, shortcut: nn.Module, sites: AttentionSites) -> None:
        super().__init__()
        channels_out = planes * self.expansion
        self.conv1 = nn.Conv2d(channels_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.attention = sites.take(channels_out)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.attention(self.bn3(self.conv3(y)))
        return F.relu(y + self.downsample(x))


Block = type[BasicBlock] | type[Bottleneck]


def projection(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """Shortcut of the ImageNet networks: identity where the shape allows it, else a 1x1 convolution (option B)."""
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))


def pooled_projection(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """Shortcut of ResNet-D: means of 2x2 pixels before the 1x1 convolution, which so leaves none of them out.

    [N, in, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)]; the last row and column of an odd map are their own.
    """
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
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


class PaddedShortcut(nn.Module):
    """Shortcut of the CIFAR networks (option A): every `stride`-th pixel, new channels zero; it has no parameters."""

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        half = self.extra_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra_channels - half))


class Shape(NamedTuple):
    """What tells one ImageNet ResNet from another.

    `depths` are the blocks of the four stages. ResNet-D (He et al., arXiv 1812.01187, section 4.2) has a `stem` of
    several 3x3 convolutions, of so many channels, instead of one of 7x7, and `pooled` shortcuts.
    """

    block: Block
    depths: tuple[int, ...]
    stem: tuple[int, ...] = ()
    pooled: bool = False


class ResNet(nn.Module):
    """The ImageNet ResNet: a stem of 64 channels, four stages; float [N, 3, H, W] -> logits [N, classes]."""

    def __init__(self, shape: Shape, classes: int, sites: AttentionSites) -> None:
        super().__init__()
        self.conv1 = deep_stem(shape.stem) if shape.stem else nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        project = pooled_projection if shape.pooled else projection
        block, channels = shape.block, 64
        for stage, depth in enumerate(shape.depths):
            planes = 64 * 2**stage
            blocks: list[nn.Module] = []
            for index in range(depth):
                stride = 2 if stage and index == 0 else 1
                shortcut = project(channels, planes * block.expansion, stride)
                blocks.append(block(channels, planes, stride, shortcut, sites))
                channels = planes * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
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


class CifarResNet(nn.Module):
    """The CIFAR ResNet of section 4.2, depth 6n + 2: 3x3 stem, three stages of n blocks of 16, 32, 64 channels.

    `width` multiplies the channels (Wide Residual Networks, arXiv 1605.07146).
    """

    def __init__(self, blocks_per_stage: int, classes: int, sites: AttentionSites, width: int = 1) -> None:
        super().__init__()
        channels = 16 * width
        self.conv1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        for stage in range(3):
            planes = 16 * width * 2**stage
            blocks: list[nn.Module] = []
            for index in range(blocks_per_stage):
                stride = 2 if stage and index == 0 else 1
                shortcut = nn.Identity() if stride == 1 else PaddedShortcut(planes - channels, stride)
                blocks.append(BasicBlock(channels, planes, stride, shortcut, sites))
                channels = planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)
        sites.close()

    @property
    def head(self) -> nn.Linear:
        """The classifier: weight float [classes, 64 width]."""
        return self.fc

    def feature_map(self, x: Tensor) -> Tensor:
        """The last feature map, float [N, 64 width, H / 4, W / 4]."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.feature_map(x).mean((2, 3)))
        return logits
