"""The commands that look after models and machines: rollback and doctor."""

from __future__ import annotations

import logging
import sys
from itertools import chain
from pathlib import Path

import click

from eca_service.cli.options import with_settings
from eca_service.errors import ServiceError
from eca_service.settings import SettingsError, load


@click.command()
@click.argument("model")
@click.option("--to", "version", type=click.IntRange(1), help="The version to serve; default: the one before.")
@click.option("--newest", is_flag=True, help="Serve the newest version again.")
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default="model_repository",
    show_default=True,
    envvar="ECA_REPOSITORY",
    show_envvar=True,
)
def rollback(model: str, version: int | None, newest: bool, repository: Path) -> None:
    """Has MODEL served in an earlier version; running services follow within seconds, without losing a request.

    It stays in that version, whatever is built later, until `--newest`.

    \b
    Examples:
      eca-serve rollback resnet14-eca
      eca-serve rollback resnet14-eca --newest
    """
    from eca_service.registry import pin, roll_back

    if version and newest:
        raise SettingsError("--to and --newest exclude each other")
    try:
        if version is None and not newest:
            version = roll_back(repository, model)
        else:
            pin(repository, model, version)
    except ServiceError as error:
        raise SettingsError(error.detail) from None
    except OSError as error:
        raise SettingsError(f"{repository} cannot be written: {error.strerror}") from None
    click.echo(f"{model}: {f'version {version}' if version else 'the newest version'} is to be served")


@click.command()
@click.option("--url", envvar="ECA_URL", show_envvar=True, help="Look at the service there, and not at this machine.")
@click.option(
    "--seconds", default=3.0, show_default=True, type=click.FloatRange(0.1, 600), help="Watch it for so long."
)
@with_settings
def doctor(url: str | None, seconds: float, **given: str | None) -> None:
    """Says what is wrong with this machine, this repository, this running service; exit code 1 where anything is.

    \b
    Examples:
      eca-serve doctor
      docker compose exec gateway eca-serve doctor
      eca-serve doctor --url http://gateway.example:8080 --seconds 10
    """
    from eca_service import doctor as examine
    from eca_service.registry import Registry

    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    if url:
        findings = examine.service(url.rstrip("/"), seconds)
    else:
        settings = load(given)
        registry = Registry(settings.repository, settings.default_model)
        own = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else settings.host}:{settings.http_port}"
        findings = chain(
            examine.machine(settings),
            examine.repository(settings, registry),
            examine.service(own, seconds, registry),
        )
    wrong = []
    for finding in findings:
        if finding.wrong:
            wrong.append(finding)
        else:
            click.echo(finding.text)
    for finding in wrong:
        click.echo(f"Wrong: {finding.text}", err=True)
    sys.exit(1 if wrong else 0)
