"""The modules of ECA-Net's authors (github.com/BangguWu/ECANet) in our words: their keys, their arithmetic."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class EcaLayer(nn.Module):
    """ECA: float [N, C, H, W] -> the same shape."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * gate.transpose(1, 2).unsqueeze(3)


class EcaNsLayer(nn.Module):
    """ECA-NS, a convolution with one group a channel over each channel's neighbours."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        reach = self.conv.kernel_size[0] // 2
        around = F.pad(x.mean((2, 3)), (reach, reach)).unfold(1, self.conv.kernel_size[0], 1)
        gate: Tensor = self.conv(around).sigmoid()
        return x * gate.unsqueeze(3)


def conv_bn_relu(channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Module:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU6())


class InvertedResidual(nn.Module):
    """All of a block is one sequence, the attention its last part."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.shortcut = stride == 1 and channels_in == channels_out
        self.conv = nn.Sequential(
            *([conv_bn_relu(channels_in, hidden)] if expansion > 1 else []),
            conv_bn_relu(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            EcaLayer(1 if channels_out <= 96 else 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.shortcut else y


class EcaMobileNetV2(nn.Module):
    """`eca_mobilenet_v2`: float [N, 3, H, W] -> logits [N, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn_relu(3, 32, 3, 2)]
        channels = 32
        for expansion, wide, blocks, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for index in range(blocks):
                layers.append(InvertedResidual(channels, wide, 1 if index else stride, expansion))
                channels = wide
        self.features = nn.Sequential(*layers, conv_bn_relu(channels, 1280))
        self.classifier = nn.Sequential(nn.Dropout(0.25), nn.Linear(1280, classes))

    @property
    def head(self) -> nn.Module:
        """The classifier."""
        return self.classifier[1]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits
