"""Where `eca-serve` begins: who ends it while its modules are imported sees no trace."""

from __future__ import annotations

from eca_service.importing import imports


def main() -> None:
    """The command line, once it is there."""
    with imports():
        from eca_service.cli import main as command
    command()
