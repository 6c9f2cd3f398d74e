"""The `eca-serve` command."""

from __future__ import annotations

import errno
import io
import os
import sys

import click

from eca_service.cli.asking import classify, explain
from eca_service.cli.evaluating import evaluate
from eca_service.cli.serving import gateway, triton, up
from eca_service.cli.upkeep import doctor, key, rollback
from eca_service.client import ClientError
from eca_service.settings import SettingsError
from eca_service.triton.server import TritonUnavailable

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _Commands(click.Group):
    """Turns what a user can mend into its sentence and exit code 2."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (SettingsError, TritonUnavailable, ClientError) as error:
            click.echo(f"eca-serve: {error.detail if isinstance(error, ClientError) else error}", err=True)
            ctx.exit(2)
        except OSError as error:
            if error.errno not in FULL:
                raise
            full = error.filename2 or error.filename or "the output"  # of a copy the second is what is written
            click.echo(f"eca-serve: {full} cannot be written: {error.strerror}", err=True)
            ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="eca-serve")
def main() -> None:
    """Serves attention-enhanced image classifiers, and sends images to a running service.

    \b
    Shell completion, for bash (likewise for zsh and fish):
      eval "$(_ECA_SERVE_COMPLETE=bash_source eca-serve)"
    """
    for name in ("stdin", "stdout", "stderr"):  # who closed one is as good as nobody, and no socket may take its number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files that are no UTF-8 are written as they are
        sys.stdout.reconfigure(errors="surrogateescape")


for command in (up, gateway, triton, classify, explain, evaluate, rollback, key, doctor):
    main.add_command(command)
