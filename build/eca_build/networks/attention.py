"""The attention modules that ECA-Net's tables compare; each turns a feature map into one of the same shape."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal[
    "none", "se", "se-var1", "se-var2", "se-var3", "se-gc1", "se-gc2", "se-gc3", "eca-ns", "eca", "cbam"
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
SIZED: tuple[Kind, ...] = ("se", "se-gc1", "se-gc2", "se-gc3", "eca-ns", "eca", "cbam")  # those of one number a site
# For people: the gate of a site of C channels from its pooled map y, and how many weights it has.
FORMULAS: dict[Kind, tuple[str, str]] = {
    "none": ("", "0"),
    "se": ("sigmoid(W2 relu(W1 y)), reduced by r = 16 (MobileNetV2: 8)", "2 C^2 / r"),
    "se-var1": ("sigmoid(y)", "0"),
    "se-var2": ("sigmoid(w * y), one weight a channel", "C"),
    "se-var3": ("sigmoid(W y), every channel from every one", "C^2"),
    "se-gc1": ("sigmoid(W y), within each of 16 groups of channels", "C^2 / 16"),
    "se-gc2": ("sigmoid(W y), within groups of 16 channels", "16 C"),
    "se-gc3": ("sigmoid(W y), within groups of 8 channels", "8 C"),
    "eca-ns": ("sigmoid of k neighbours, weights of each channel's own", "k C"),
    "eca": ("sigmoid of k neighbours, weights shared", "k"),
    "cbam": ("SE from mean and maximum, then a 7x7 gate over positions", "2 C^2 / r + 99"),
}


class Attention(nn.Module, ABC):
    """What stands behind a block's last batch norm: float [N, C, H, W] -> the same shape."""


class ChannelAttention(Attention):
    """Scales a feature map by a gate that comes from the pooled map alone; subclasses say how."""

    @abstractmethod
    def gate(self, pooled: Tensor) -> Tensor:
        """Gate from the globally pooled map: float [N, C] -> float [N, C], each value in (0, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, C, H, W] -> the same shape, each channel times its gate."""
        gate: Tensor = self.gate(x.mean((2, 3)))
        return x * gate[:, :, None, None]


class ECA(ChannelAttention):
    """Efficient channel attention: sigmoid of a k-tap convolution over neighbouring channels (arXiv 1910.03151).

    `kernel_size` is odd and positive, else ValueError; the channel axis is padded with zeros.
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, _odd(kernel_size), padding=kernel_size // 2, bias=False)

    def gate(self, pooled: Tensor) -> Tensor:
        mixed: Tensor = self.conv(pooled.unsqueeze(1))
        return mixed.squeeze(1).sigmoid()


class UnsharedECA(ChannelAttention):
    """ECA-NS: as ECA, but each channel has k weights of its own (eq. 6 of the paper); weight [C, k]."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(_odd(kernel_size))
        self.taps = nn.Parameter(torch.empty(channels, kernel_size).uniform_(-bound, bound))

    def gate(self, pooled: Tensor) -> Tensor:
        channels, taps = self.taps.shape
        padded = F.pad(pooled, (taps // 2, taps // 2))
        mixed = padded[:, :channels] * self.taps[:, 0]
        for shift in range(1, taps):
            mixed = mixed + padded[:, shift : shift + channels] * self.taps[:, shift]
        return mixed.sigmoid()


class SE(ChannelAttention):
    """Squeeze-and-excitation: sigmoid(fc2(relu(fc1(pooled)))) (arXiv 1709.01507, eq. 3)."""

    def __init__(self, channels: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, channels, bias=bias)

    def gate(self, pooled: Tensor) -> Tensor:
        excited: Tensor = self.fc2(torch.relu(self.fc1(pooled)))
        return excited.sigmoid()


class BareGate(ChannelAttention):
    """SE-Var1: the sigmoid of the pooled map itself; it has no parameters."""

    def gate(self, pooled: Tensor) -> Tensor:
        return pooled.sigmoid()


class DiagonalGate(ChannelAttention):
    """SE-Var2: each pooled channel times a weight of its own; weight [C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def gate(self, pooled: Tensor) -> Tensor:
        return (pooled * self.weight).sigmoid()


class FullGate(ChannelAttention):
    """SE-Var3: one linear layer from all channels to all, without a bias; weight [C, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels, bias=False)

    def gate(self, pooled: Tensor) -> Tensor:
        mixed: Tensor = self.fc(pooled)
        return mixed.sigmoid()


class GroupedGate(ChannelAttention):
    """SE-GC: a linear layer within groups of `group` neighbouring channels; weight [C, group, 1].

    `group` divides `channels`, else ValueError.
    """

    def __init__(self, channels: int, group: int) -> None:
        super().__init__()
        self.grouped = nn.Conv1d(channels, channels, 1, groups=channels // group, bias=False)

    def gate(self, pooled: Tensor) -> Tensor:
        mixed: Tensor = self.grouped(pooled.unsqueeze(2))
        return mixed.squeeze(2).sigmoid()


class CBAM(Attention):
    """Convolutional block attention (arXiv 1807.06521): channels gated first, then positions.

    Channels: sigmoid(mlp(mean) + mlp(maximum)) over the plane, one mlp for both. Positions: sigmoid of a 7x7
    convolution over the map's mean and maximum over its channels, in this order. The authors' code has a batch norm
    behind that convolution; in a checkpoint it is folded into the convolution's weight and bias.
    """

    def __init__(self, channels: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, channels, bias=bias)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = torch.stack([x.mean((2, 3)), x.amax((2, 3))], 1)
        gate: Tensor = self.fc2(torch.relu(self.fc1(squeezed))).sum(1).sigmoid()
        x = x * gate[:, :, None, None]
        where: Tensor = self.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))
        return x * where.sigmoid()


class AttentionSites:
    """Hands out one attention module per block, in the order in which a network is built.

    `sizes` holds one number per site for the kinds in SIZED, see `paper_size`; it is unused for the others.
    `take` raises ValueError when the network has more sites than `sizes`, `close` when it has fewer.
    """

    def __init__(self, kind: Kind, sizes: Sequence[int], bias: bool = False) -> None:
        self.kind = kind
        self._sizes: Iterator[int] = iter(sizes)
        self._bias = bias

    def take(self, channels: int) -> Attention | nn.Identity:
        """The module for the next block, whose output has `channels` channels."""
        kind = self.kind
        if kind == "none":
            return nn.Identity()
        if kind == "se-var1":
            return BareGate()
        if kind == "se-var2":
            return DiagonalGate(channels)
        if kind == "se-var3":
            return FullGate(channels)
        size = next(self._sizes, None)
        if size is None:
            raise ValueError("the network has more attention sites than sizes were given")
        if kind == "eca":
            return ECA(size)
        if kind == "eca-ns":
            return UnsharedECA(channels, size)
        if kind == "se":
            return SE(channels, size, self._bias)
        return CBAM(channels, size, self._bias) if kind == "cbam" else GroupedGate(channels, size)

    def close(self) -> None:
        """Says that the network is complete."""
        if self.kind in SIZED and next(self._sizes, None) is not None:
            raise ValueError("the network has fewer attention sites than sizes were given")


def paper_size(kind: Kind, channels: int, reduction: int) -> int:
    """The number that decides a site of one of SIZED, as in the paper, for a layer of `channels` channels.

    ECA: the kernel of eq. 12; ECA-NS: 3, as in table 2; SE and CBAM: the hidden width for `reduction`. SE-GC: channels
    in a group, for 16 groups (1), C / 16 groups (2), C / 8 groups (3). Where these do not divide the channels, which
    happens in MobileNetV2 alone, the number of groups (1) or their width (2, 3) is the largest below that does.
    """
    if kind == "eca":
        return adaptive_kernel_size(channels)
    if kind == "eca-ns":
        return 3
    if kind == "se-gc1":
        return channels // _divisor(channels, 16)
    if kind in ("se-gc2", "se-gc3"):
        return _divisor(channels, 16 if kind == "se-gc2" else 8)
    return max(1, channels // reduction)


def adaptive_kernel_size(channels: int, gamma: float = 2.0, b: float = 1.0) -> int:
    """The paper's size for a layer of `channels` channels: |log2(C) / gamma + b / gamma|, made odd (eq. 12).

    For training only: the published weights do not follow it, so a checkpoint's sizes are read from its weights.
    """
    size = int(abs((math.log2(channels) + b) / gamma))
    return size if size % 2 else size + 1


def _divisor(number: int, most: int) -> int:
    return max(divisor for divisor in range(1, most + 1) if number % divisor == 0)


def _odd(kernel_size: int) -> int:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"an ECA kernel size is odd and positive, not {kernel_size}")
    return kernel_size
