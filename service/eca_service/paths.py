"""Paths as arguments and options of both command lines take them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class PathName(click.Path):
    """click's, as a pathlib.Path; refuses an empty one, which would be the current folder."""

    def __init__(self, **given: Any) -> None:
        super().__init__(path_type=Path, **given)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """As click's."""
        if value == "":
            self.fail("it is empty; is a variable of the shell not set?", param, ctx)
        return super().convert(value, param, ctx)
