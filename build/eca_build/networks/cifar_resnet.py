"""ResNets for images of 32 pixels (He et al., arXiv 1512.03385, section 4.2), of the ImageNet ones' basic blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from eca_build.networks.attention import AttentionSites
from eca_build.networks.resnet import BasicBlock


class PaddedShortcut(nn.Module):
    """Shortcut of the CIFAR networks (option A): every `stride`-th pixel, new channels zero; it has no parameters."""

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        half = self.extra_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra_channels - half))


class CifarResNet(nn.Module):
    """The CIFAR ResNet of depth 6n + 2: 3x3 stem, three stages of n blocks of 16, 32, 64 channels.

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
                blocks.append(BasicBlock(channels, (planes, planes), stride, shortcut, sites))
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
