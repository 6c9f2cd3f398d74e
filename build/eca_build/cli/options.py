"""Options and their values that several commands share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def imports() -> Iterator[None]:
    """Within it signals end the process as they do by default; nothing has begun that would be left.

    Of the exception that they raise otherwise a C++ module that is initialised makes a crash, or a failure of its own.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in handlers.items():
        # ignored is SIGINT where it runs in the background; a container's first process ends by no default
        if handler is not signal.SIG_IGN and os.getpid() != 1:
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


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
