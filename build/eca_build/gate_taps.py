"""The attention's gates as an output of the served network."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from eca_service.contract import GateSite
from torch import Tensor, nn

from eca_build.networks import Network
from eca_build.networks.attention import ChannelAttention


def tap(network: nn.Module, taken: dict[str, Tensor]) -> None:
    """Has each attention module of `network` put its gate, float [N, C], into `taken`, in the order in which they run.

    The keys are the names of the blocks, such as "layer1.0". A tapped network must not be copied.
    """
    for path, module in network.named_modules():
        if isinstance(module, ChannelAttention):
            block = path.rpartition(".")[0]
            module.gate = _recorded(module.gate, block, taken)  # type: ignore[assignment,method-assign]


def _recorded(gate: Callable[[Tensor], Tensor], block: str, taken: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def recorded(pooled: Tensor) -> Tensor:
        taken[block] = gate(pooled)
        return taken[block]

    return recorded


@torch.inference_mode()
def gate_sites(network: Network, crop: int) -> tuple[GateSite, ...]:
    """The gates that `network` computes for an image of `crop` x `crop` pixels, in their order.

    There are none without attention.
    """
    taken: dict[str, Tensor] = {}
    tapped = copy.deepcopy(network).eval()
    tap(tapped, taken)
    tapped(torch.zeros(1, 3, crop, crop))
    return tuple(GateSite(block=block, channels=gate.shape[1]) for block, gate in taken.items())
