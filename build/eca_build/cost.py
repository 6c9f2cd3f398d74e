"""Parameters and FLOPs of a network.

One FLOP here is one multiply-add of a convolution or linear layer, as is usual for these networks; batch norms,
activations, pooling and the gate's multiplication count nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from eca_build.networks import Network, NetworkSpec, site_channels
from eca_build.networks.attention import AttentionSites, DiagonalGate, UnsharedECA


def parameters(network: nn.Module) -> int:
    """The number of trainable weights."""
    return sum(weight.numel() for weight in network.parameters())


def attention_parameters(spec: NetworkSpec) -> int:
    """How many of the network's trainable weights are its attention's."""
    sites = AttentionSites(spec.attention, spec.sizes, spec.bias)
    return sum(parameters(sites.take(channels)) for channels in site_channels(spec))


@torch.inference_mode()
def flops(network: Network, size: int) -> int:
    """Multiply-adds for one image of `size` x `size` pixels."""
    total = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, (DiagonalGate, UnsharedECA)):  # one for each weight
            total += parameters(module)

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    training = network.training
    try:
        network.eval()(_image(network, size))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return total


class _PaperOperations(TorchDispatchMode):
    """Adds up operations as the paper's tables do; see `paper_flops`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution":
            self.total += int(out.numel() * args[1][0].numel())
        elif name in {"addmm", "mm"}:
            self.total += 2 * int(out.numel() * args[-1].shape[0])
        elif name in {"native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training"}:
            self.total += 4 * int(out[0].numel())
        elif name in {"relu", "hardtanh"}:
            self.total += int(out.numel())
        elif name == "mean" and args[0].ndim == 4 and list(args[1]) == [2, 3]:
            self.total += int(args[0].numel())
        return out


@torch.no_grad()
def paper_flops(network: Network, size: int) -> int:
    """Operations for one image as ECA-Net's tables 2 and 3 count them, found by fitting all their rows.

    One for a convolution's multiply-add, two for a linear layer's, four for each value of a batch norm, one for each
    value of a ReLU and for each that global pooling reads. The tables give them in units of 2**30 (ResNets) or 2**20
    (MobileNetV2), cut off rather than rounded, so they may exceed a table's figure by up to one unit of its last digit.
    """
    operations = _PaperOperations()
    with operations:
        network.eval()(_image(network, size))
    return operations.total


def _image(network: Network, size: int) -> Tensor:
    """On the network's device: on "meta" nothing is computed, and the counts are the same."""
    return torch.zeros(1, 3, size, size, device=network.head.weight.device)
