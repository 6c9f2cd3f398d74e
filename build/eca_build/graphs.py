"""Other graphs of the same network: what the gate is computed from, and when."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from eca_build.errors import BuildError
from eca_build.networks.attention import ChannelAttention
from eca_build.networks.mobilenetv2 import InvertedResidual
from eca_build.networks.resnet import Bottleneck

AttentionGraph = Literal["plain", "hoisted"]
ATTENTION_GRAPHS: tuple[AttentionGraph, ...] = get_args(AttentionGraph)


class HoistedGate(nn.Module):
    """A block's last 1x1 convolution and its attention, with the gate computed from the convolution's input.

    Global average pooling commutes with a 1x1 convolution and its bias, so the gate needs no pass over the
    convolution's output: float [N, in, H, W] -> [N, out, H, W], equal to the plain graph up to rounding.
    """

    def __init__(self, conv: nn.Conv2d, attention: ChannelAttention) -> None:
        super().__init__()
        self.conv = conv
        self.attention = attention

    def forward(self, h: Tensor) -> Tensor:
        pooled = nn.functional.linear(h.mean((2, 3)), self.conv.weight.flatten(1), self.conv.bias)
        y: Tensor = self.conv(h)
        return y * self.attention.gate(pooled)[:, :, None, None]


def rewrite(network: nn.Module, graph: AttentionGraph) -> int:
    """Rewrites each attention site of `network`, whose batch norms are folded, in place; the number of sites.

    Raises BuildError where a site cannot be rewritten: all are, or the graph is not what was asked for.
    """
    if graph == "plain":
        return 0
    sites = sum(isinstance(module, ChannelAttention) for module in network.modules())
    rewritten = 0
    for block in list(network.modules()):
        if not isinstance(attention := getattr(block, "attention", None), ChannelAttention):
            continue
        if isinstance(block, Bottleneck):
            block.conv3 = HoistedGate(block.conv3, attention)  # type: ignore[assignment]
        elif isinstance(block, InvertedResidual) and isinstance(last := block.conv[-2], nn.Conv2d):
            block.conv[-2] = HoistedGate(last, attention)
        else:
            continue
        block.attention = nn.Identity()
        rewritten += 1
    if not sites or rewritten < sites:
        raise BuildError(
            f"--attention-graph {graph} rewrites attention behind a 1x1 convolution, which {rewritten} of this "
            f"network's {sites} sites are; use --attention-graph plain"
        )
    return rewritten
