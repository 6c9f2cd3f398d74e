"""Writes the table of errors.md from the service's own: python service/docs/write_errors.py."""

from __future__ import annotations

import re
from pathlib import Path

import click
from eca_service.errors import CODES

PAGE = Path(__file__).with_name("errors.md")
TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=\n## )", re.DOTALL)


def table() -> str:
    """All codes, a row each, in Markdown."""
    rows = ["| code | HTTP | gRPC | Retry-After | | what to do |", "|---|---|---|---|---|---|"]
    for code, kind in CODES.items():
        after = "" if kind.retry_after_s is None else f"{kind.retry_after_s} s"
        http = f"{kind.http} (log only)" if kind.http == 499 else str(kind.http)
        rows.append(f"| [{code}](#{code}) | {http} | {kind.grpc} | {after} | {kind.title} | {kind.advice} |")
    return "\n".join(rows) + "\n"


def written(page: str) -> str:
    """`page` with its table as it should be."""
    return TABLE.sub(lambda _: "\n" + table(), page)


@click.command()
def main() -> None:
    """Writes the table in errors.md anew from the service's error codes."""
    PAGE.write_text(written(PAGE.read_text()))


if __name__ == "__main__":
    main()
