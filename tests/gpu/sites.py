"""Networks to measure, and the calls of the custom operators in them."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache
from unittest import mock

import torch
from eca_build import custom_nodes
from eca_build.graphs import AttentionGraph, fold_batch_norms, rewrite
from eca_build.networks import NetworkSpec, create, with_formula
from eca_build.networks.attention import Kind
from eca_plugin import tuning
from eca_plugin.ahead_of_time import Type
from eca_plugin.descriptor import OPERATORS, TORCH_NAMES
from eca_plugin.tuning import Site
from torch import Tensor, nn

# The kernel sizes of the published ECA-ResNet-50 and ECA-MobileNetV2 are of their weights; these are the formula's.
ARCHS = ("resnet50", "mobilenetv2")
TINY = "tiny"
NOISE_PX = 64
FUSED: dict[AttentionGraph, str] = {
    "fused": "fused_eca",
    "hoisted-fused": "scale_add_relu",
    "epilogue": "gated_conv1x1",
}


def spec(arch: str, attention: Kind) -> NetworkSpec:
    """The network's sizes; `tiny` is one that an interpreter can run."""
    if arch == TINY:
        return with_formula("mobilenetv2_cifar", attention, 10, 0.1)
    return with_formula(arch, attention, 1000)


def network(arch: str, attention: Kind, graph: AttentionGraph = "plain") -> nn.Module:
    """The network with random weights, batch norms set and folded, rewritten."""
    return _rewritten(copy.deepcopy(_settled(arch, attention)), graph)


def _rewritten(made: nn.Module, graph: AttentionGraph) -> nn.Module:
    fold_batch_norms(made.eval())
    rewrite(made, graph)
    return made


@cache
@torch.inference_mode(False)
@torch.no_grad()
def _settled(arch: str, attention: Kind) -> nn.Module:
    """The network, its batch norms set by noise.

    Without, its maps fade from block to block: to zeros in float16, which a GPU multiplies faster than numbers, and to
    answers that are the same whatever the attention does.
    """
    torch.manual_seed(0)
    made = create(spec(arch, attention))
    for norm in made.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    made.train()(torch.rand(8, 3, NOISE_PX, NOISE_PX))
    return made


def pixels(arch: str) -> int:
    """The side of its images."""
    return 16 if arch == TINY else 224


def uses(arch: str, graph: AttentionGraph, dtype: Type, nhwc: bool = True) -> Counter[Site]:
    """How often the ECA network calls its custom operator at which site, in the order of the network."""
    name = FUSED[graph]
    found: Counter[Site] = Counter()
    definition = getattr(custom_nodes, name)

    def record(*arguments: Tensor | None, **_: object) -> Tensor:
        *inputs, residual, relu = arguments
        tensors = [tensor for tensor in inputs if tensor is not None]
        names = OPERATORS[TORCH_NAMES[name]].inputs
        shapes = {key: tuple(tensor.shape) for key, tensor in zip(names, tensors, strict=True)}
        found[tuning.site(TORCH_NAMES[name], shapes, dtype, nhwc, residual is not None, bool(relu))] += 1
        result: Tensor = definition(*arguments)
        return result

    with torch.device("meta"), mock.patch.object(custom_nodes, name, record), torch.inference_mode():
        side = pixels(arch)
        _rewritten(create(spec(arch, "eca")), graph)(torch.empty(1, 3, side, side))
    return found
