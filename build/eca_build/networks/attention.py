"""Channel attention: a gate in (0, 1) per image and channel, computed from the pooled feature map."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Kind = Literal["none", "se", "eca"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class ChannelAttention(nn.Module, ABC):
    """Scales a feature map by its own gate; subclasses say how the gate comes from the pooled map."""

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
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"an ECA kernel size is odd and positive, not {kernel_size}")
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def gate(self, pooled: Tensor) -> Tensor:
        mixed: Tensor = self.conv(pooled.unsqueeze(1))
        return mixed.squeeze(1).sigmoid()


class SE(ChannelAttention):
    """Squeeze-and-excitation: sigmoid(fc2(relu(fc1(pooled)))) (arXiv 1709.01507, eq. 3)."""

    def __init__(self, channels: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, channels, bias=bias)

    def gate(self, pooled: Tensor) -> Tensor:
        excited: Tensor = self.fc2(torch.relu(self.fc1(pooled)))
        return excited.sigmoid()


class AttentionSites:
    """Hands out one attention module per block, in the order in which a network is built.

    `sizes` holds one number per site: the kernel size for ECA, the hidden width for SE; it is unused for none.
    `take` raises ValueError when the network has more sites than `sizes`, `close` when it has fewer.
    """

    def __init__(self, kind: Kind, sizes: Sequence[int], bias: bool = False) -> None:
        self.kind = kind
        self._sizes: Iterator[int] = iter(sizes)
        self._bias = bias

    def take(self, channels: int) -> ChannelAttention | nn.Identity:
        """The module for the next block, whose output has `channels` channels."""
        if self.kind == "none":
            return nn.Identity()
        size = next(self._sizes, None)
        if size is None:
            raise ValueError("the network has more attention sites than sizes were given")
        return ECA(size) if self.kind == "eca" else SE(channels, size, self._bias)

    def close(self) -> None:
        """Says that the network is complete."""
        if self.kind != "none" and next(self._sizes, None) is not None:
            raise ValueError("the network has fewer attention sites than sizes were given")


def adaptive_kernel_size(channels: int, gamma: float = 2.0, b: float = 1.0) -> int:
    """The paper's size for a layer of `channels` channels: |log2(C) / gamma + b / gamma|, made odd (eq. 12).

    For training only: the published weights do not follow it, so a checkpoint's sizes are read from its weights.
    """
    size = int(abs((math.log2(channels) + b) / gamma))
    return size if size % 2 else size + 1
