"""Options that several of this folder's scripts have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]


def repository(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--repository`, a folder that exists, of which the help says `text`; by default this checkout's."""
    return click.option(
        "--repository",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=ROOT / "model_repository",
        show_default="this checkout's model_repository",
        help=text,
    )
