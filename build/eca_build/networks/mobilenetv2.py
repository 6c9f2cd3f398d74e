"""MobileNetV2 (arXiv 1801.04381) with attention after each block's projection; torchvision's key names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from eca_build.networks.attention import AttentionSites

# expansion, output channels, blocks (table 2 of the paper)
STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))


def round_channels(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, never below it by more than a tenth nor below `divisor`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def conv_bn_relu6(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution with "same" padding, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection; [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int, sites: AttentionSites) -> None:
        super().__init__()
        hidden = channels_in * expansion
        layers: list[nn.Module] = [conv_bn_relu6(channels_in, hidden, 1)] if expansion != 1 else []
        layers += [
            conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        ]
        self.conv = nn.Sequential(*layers)
        self.attention = sites.take(channels_out)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(self.conv(x))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Float [N, 3, H, W] -> logits [N, classes].

    `width` multiplies the channels, `head_channels` is the width before the classifier, `strides` holds the stem's
    stride and one per stage.
    """

    def __init__(
        self,
        classes: int,
        sites: AttentionSites,
        width: float,
        head_channels: int,
        strides: Sequence[int],
    ) -> None:
        super().__init__()
        stem_stride, *stage_strides = strides
        channels = round_channels(32 * width)
        layers: list[nn.Module] = [conv_bn_relu6(3, channels, 3, stem_stride)]
        for (expansion, base, depth), first_stride in zip(STAGES, stage_strides, strict=True):
            channels_out = round_channels(base * width)
            for index in range(depth):
                stride = first_stride if index == 0 else 1
                layers.append(InvertedResidual(channels, channels_out, stride, expansion, sites))
                channels = channels_out
        layers.append(conv_bn_relu6(channels, head_channels, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(head_channels, classes))
        sites.close()

    @property
    def head(self) -> nn.Linear:
        """The classifier: weight float [classes, head_channels]."""
        linear = self.classifier[1]
        assert isinstance(linear, nn.Linear)
        return linear

    def feature_map(self, x: Tensor) -> Tensor:
        """The last feature map, float [N, head_channels, h, w]."""
        features: Tensor = self.features(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.feature_map(x).mean((2, 3)))
        return logits
