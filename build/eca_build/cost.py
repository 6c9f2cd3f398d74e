"""Parameters and FLOPs of a network.

One FLOP here is one multiply-add of a convolution or linear layer, as is usual for these networks; batch norms,
activations, pooling and the gate's multiplication count nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eca_build.networks import Network


def parameters(network: nn.Module) -> int:
    """The number of trainable weights."""
    return sum(weight.numel() for weight in network.parameters())


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

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    training = network.training
    try:
        network.eval()(torch.zeros(1, 3, size, size))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return total
