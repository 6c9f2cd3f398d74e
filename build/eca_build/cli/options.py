"""Options and their values that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from eca_build.errors import BuildError

if TYPE_CHECKING:
    from eca_build.networks.attention import Kind

Command = TypeVar("Command", bound=Callable[..., Any])
ATTENTION_HELP = (
    "Fail unless the checkpoint has this attention (see `archs`); default: whatever is detected. SE-Var1 has no "
    "weights to detect, so it must be given."
)


def option(flag: str, *name: str, **more: Any) -> Callable[[Command], Command]:
    """An option that is an environment variable too: ECA_ and its own name, as --help shows."""
    variable = "ECA_" + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(flag, *name, envvar=variable, show_envvar=True, **more)


class FloatRange(click.FloatRange):
    """Refuses NaN too, which is neither below nor above anything."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if number != number:
            self.fail("NaN is no number.", param, ctx)
        return number


def kind_of(given: str | None) -> Kind | None:
    """The attention of that name; None where none is given. Raises BuildError."""
    from eca_build.networks.attention import KINDS

    if given is not None and given not in KINDS:
        raise BuildError(f"there is no attention {given}; there are {', '.join(KINDS)}")
    return next((kind for kind in KINDS if kind == given), None)
