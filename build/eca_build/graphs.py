"""Five graphs of the same network: what the gate is computed from, and which operators join it to the map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast, get_args

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from eca_build import custom_nodes
from eca_build.errors import BuildError
from eca_build.networks.attention import ECA, Attention, ChannelAttention
from eca_build.networks.mobilenetv2 import InvertedResidual
from eca_build.networks.resnet import BasicBlock, Bottleneck

AttentionGraph = Literal["plain", "hoisted", "fused", "hoisted-fused", "epilogue"]
ATTENTION_GRAPHS: tuple[AttentionGraph, ...] = get_args(AttentionGraph)
FUSED: tuple[AttentionGraph, ...] = ("fused", "hoisted-fused", "epilogue")  # those with a custom operator at each site


@dataclass(frozen=True)
class Site:
    """A block of a network, its batch norms folded, around its attention.

    It computes act(attention(last(body(x))) + shortcut(x)); `shortcut` is None where nothing is added, the activation
    is a ReLU or nothing.
    """

    body: nn.Module
    last: nn.Conv2d
    attention: Attention
    shortcut: nn.Module | None
    relu: bool

    @property
    def hoistable(self) -> bool:
        """Whether the gate can come from the last convolution's input.

        It must be a gate of the pooled map alone, and pooling must commute with the convolution: that is 1x1, of
        stride 1, in one group.
        """
        conv = self.last
        gated = isinstance(self.attention, ChannelAttention)
        return gated and conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1


class RewrittenBlock(nn.Module):
    """A site under one of the four rewritten graphs: float [N, in, H, W] -> [N, out, H', W'].

    hoisted: global average pooling commutes with a 1x1 convolution and its bias, so the gate comes from the input of
    the last convolution, and needs no pass over its output. fused: one operator from the pooling to the activation.
    hoisted-fused: the hoisted gate, then one operator that scales, adds and activates. epilogue: the hoisted gate, then
    one operator that is the convolution too. All equal the plain graph up to rounding.
    """

    def __init__(self, site: Site, graph: AttentionGraph) -> None:
        super().__init__()
        self.body = site.body
        self.last = site.last
        self.attention = site.attention
        self.shortcut = site.shortcut
        self.relu = site.relu
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.body(x)
        residual: Tensor | None = None if self.shortcut is None else self.shortcut(x)
        if self.graph == "fused":
            taps = cast(ECA, self.attention).conv.weight.flatten()
            return custom_nodes.fused_eca(self.last(h), taps, residual, self.relu)
        weight, bias = self.last.weight.flatten(1), self.last.bias
        assert bias is not None  # the folded batch norm's
        gate = cast(ChannelAttention, self.attention).gate(nn.functional.linear(h.mean((2, 3)), weight, bias))
        if self.graph == "epilogue":
            return custom_nodes.gated_conv1x1(h, weight, bias, gate, residual, self.relu)
        y: Tensor = self.last(h)
        if self.graph == "hoisted-fused":
            return custom_nodes.scale_add_relu(y, gate, residual, self.relu)
        y = y * gate[:, :, None, None]
        y = y if residual is None else y + residual
        return y.relu() if self.relu else y


def fold_batch_norms(module: nn.Module) -> None:
    """Folds each batch norm into the convolution registered just before it, in place; for modules in eval mode."""
    previous: tuple[nn.Module, str, nn.Conv2d] | None = None
    for parent, name, leaf in list(_leaves(module)):
        if isinstance(leaf, nn.BatchNorm2d) and previous is not None:
            holder, its_name, convolution = previous
            setattr(holder, its_name, fuse_conv_bn_eval(convolution, leaf))
            setattr(parent, name, nn.Identity())
        previous = (parent, name, leaf) if isinstance(leaf, nn.Conv2d) else None


def _leaves(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Each module without modules of its own, with its parent and its name there, in the order of registration."""
    for name, child in module.named_children():
        if next(child.children(), None) is None:
            yield module, name, child
        else:
            yield from _leaves(child)


def rewrite(network: nn.Module, graph: AttentionGraph) -> int:
    """Rewrites each attention site of `network`, whose batch norms are folded, in place; the number of sites.

    Raises BuildError where a site cannot be rewritten: all are, or the graph is not what was asked for.
    """
    if graph == "plain":
        return 0
    sites = list(_sites(network))
    fits = [site for *_, site in sites if _fits(site, graph)]
    if not sites or len(fits) < len(sites):
        needs = "ECA" if graph == "fused" else "a gate of the pooled map behind a 1x1 convolution"
        raise BuildError(
            f"--attention-graph {graph} rewrites {needs}, which {len(fits)} of this network's {len(sites)} attention "
            "sites are; use --attention-graph plain"
        )
    for parent, name, site in sites:
        setattr(parent, name, RewrittenBlock(site, graph))
    return len(sites)


def _fits(site: Site, graph: AttentionGraph) -> bool:
    return isinstance(site.attention, ECA) if graph == "fused" else site.hoistable


def _sites(network: nn.Module) -> Iterator[tuple[nn.Module, str, Site]]:
    """Each block with attention, with its parent and its name there."""
    for parent in network.modules():
        for name, block in parent.named_children():
            attention = getattr(block, "attention", None)
            if not isinstance(attention, Attention):
                continue
            if isinstance(block, Bottleneck):
                body = nn.Sequential(block.conv1, nn.ReLU(), block.conv2, nn.ReLU())
                yield parent, name, Site(body, block.conv3, attention, block.downsample, relu=True)
            elif isinstance(block, BasicBlock):
                body = nn.Sequential(block.conv1, nn.ReLU())
                yield parent, name, Site(body, block.conv2, attention, block.downsample, relu=True)
            elif isinstance(block, InvertedResidual):
                *body_layers, last, _ = block.conv
                shortcut = nn.Identity() if block.residual else None
                yield (
                    parent,
                    name,
                    Site(nn.Sequential(*body_layers), cast(nn.Conv2d, last), attention, shortcut, relu=False),
                )
