"""Which of an operator's plans is launched at each site: the fastest that was measured on this GPU, else the first.

TensorRT needs no table: it times the plans itself, as a plugin's tactics.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from eca_plugin.ahead_of_time import Type
from eca_plugin.descriptor import OPERATORS, VALUE_BYTES, Shapes
from eca_plugin.gated_conv1x1 import WGMMA
from eca_plugin.plan import Plan
from eca_plugin.sources import kernels_sha256


@dataclass(frozen=True)
class Site:
    """One use of an operator, at any batch: `shapes` are [C, H, W] of maps and all of what is constant."""

    operator: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: Type
    nhwc: bool
    residual: bool
    relu: bool

    @property
    def key(self) -> str:
        """The site on one line, for tables."""
        shapes = " ".join(f"{name}={'x'.join(map(str, shape))}" for name, shape in self.shapes)
        options = ["NHWC" if self.nhwc else "NCHW", *["residual"] * self.residual, *["relu"] * self.relu]
        return f"{self.operator} {shapes} {self.dtype} {' '.join(options)}"

    def plans(self, chip: int | None = None) -> tuple[Plan, ...]:
        """The ways to launch it, see `descriptor.Operator`."""
        shapes = {name: (1, *shape) if name in BATCHED else shape for name, shape in self.shapes}
        return OPERATORS[self.operator].plans(shapes, self.nhwc, self.relu, VALUE_BYTES[self.dtype], chip)


BATCHED = {"x", "h", "gate"}


def site(operator: str, shapes: Shapes, dtype: Type, nhwc: bool, residual: bool, relu: bool) -> Site:
    """The site of a call with inputs of `shapes`, N included."""
    kept = tuple((name, shape[1:] if name in BATCHED else shape) for name, shape in shapes.items())
    return Site(operator, kept, dtype, nhwc, residual, relu)


@dataclass(frozen=True)
class Table:
    """Labels of plans by `Site.key`, the fastest first, measured on `gpu` of compute capability `chip` (90 is 9.0)."""

    gpu: str
    chip: int
    choices: dict[str, list[str]] = field(default_factory=dict)
    kernels: str = field(default_factory=kernels_sha256)

    def plan(self, site: Site, traced: bool) -> Plan:
        """The plan to launch: the fastest, of those in the Triton language where `traced`, else the documented one.

        PyTorch compiles for this chip, with wgmma on a Hopper: what was measured without is not what it would launch.
        """
        found = {plan.label: plan for plan in site.plans(self.chip)}
        measured = self.choices.get(site.key, [])
        for label in measured:
            plan = found.get(label)
            if plan and label + WGMMA not in measured and not (traced and plan.is_cuda):
                return plan
        return next(iter(found.values()))

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.write_text(json.dumps(self.__dict__, indent=1, sort_keys=True) + "\n")


def load(path: Path, gpu: str) -> Table | None:
    """The table at `path` if it is of that GPU and of these kernels, else None: it would choose by other figures."""
    try:
        table = Table(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return table if (table.gpu, table.kernels) == (gpu, kernels_sha256()) else None


_current: Table | None = None


@contextmanager
def use(table: Table | None) -> Iterator[None]:
    """Within it, calls of the operators take the table's plans; without one, each site's first."""
    global _current
    before, _current = _current, table
    try:
        yield
    finally:
        _current = before


def plan_of(site: Site, traced: bool) -> Plan:
    """The plan that a call at `site` launches now; where a compiler traces the call, one in the Triton language."""
    return _current.plan(site, traced) if _current else site.plans()[0]
