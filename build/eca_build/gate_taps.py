"""The attention's gates as an output of the served network."""

from __future__ import annotations

from eca_service.contract import GateSite
from torch import Tensor, nn

from eca_build.errors import BuildError
from eca_build.networks.attention import ChannelAttention


class Tap(ChannelAttention):
    """Another attention module, whose gate is also added to `taken` whenever it is computed."""

    def __init__(self, inner: ChannelAttention, taken: list[Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self._taken = taken

    def gate(self, pooled: Tensor) -> Tensor:
        found = self.inner.gate(pooled)
        self._taken.append(found)
        return found


def tap(network: nn.Module, taken: list[Tensor]) -> tuple[str, ...]:
    """Has every attention module of `network` add its gate, float [N, C], to `taken` in the order in which they run.

    Returns the names of their blocks, in the order of registration, which is that of the run.
    """
    found = [
        (parent, name, module, f"{path}.{name}".rpartition(".")[0])
        for path, parent in network.named_modules()
        for name, module in parent.named_children()
        if isinstance(module, ChannelAttention)
    ]
    for parent, name, module, _ in found:
        setattr(parent, name, Tap(module, taken))
    return tuple(block for *_, block in found)


def sites(network: nn.Module, blocks: tuple[str, ...], taken: list[Tensor]) -> tuple[GateSite, ...]:
    """The sites that `taken` holds after one run. Raises BuildError where a site computed no gate of its own."""
    if len(taken) != len(blocks):
        raise BuildError(
            f"--expose-gates finds {len(taken)} gates in {len(blocks)} attention sites: this graph computes them inside "
            "of other operators; use --attention-graph plain"
        )
    return tuple(GateSite(block=block, channels=gate.shape[1]) for block, gate in zip(blocks, taken, strict=True))
