"""Options that several commands share."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from eca_service.client import Client, Retry
from eca_service.client.calls import DEFAULT_URL
from eca_service.settings import PREFIX, Settings, SettingsError


def with_settings(command: Any) -> Any:
    """Gives a command one option for each setting, with its variable and default in --help."""
    for name, field in reversed(Settings.model_fields.items()):
        default = "" if field.default is None else f"; default {field.default}"
        command = click.option(
            "--" + name.replace("_", "-"),
            name,
            help=f"{(field.description or name).capitalize()}  [{PREFIX}{name.upper()}{default}]",
        )(command)
    return command


def log(settings: Settings) -> None:
    """Has the log written to standard error."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


def with_service(command: Any) -> Any:
    """Gives a command that asks a running service the options --url, --ca and --api-key-file."""
    for option in (
        click.option(
            "--api-key-file",
            type=click.Path(path_type=Path),
            envvar="ECA_API_KEY_FILE",
            show_envvar=True,
            help="File that holds the key, where the service asks for one.",
        ),
        click.option(
            "--ca",
            type=click.Path(path_type=Path, dir_okay=False),
            envvar="ECA_CA",
            show_envvar=True,
            help="Authorities (PEM) to trust for https, instead of the system's.",
        ),
        click.option(
            "--url",
            default=DEFAULT_URL,
            show_default=True,
            envvar="ECA_URL",
            show_envvar=True,
            help="The running service: http(s):// or grpc(s)://.",
        ),
    ):
        command = option(command)
    return command


def connect(url: str, ca: Path | None, api_key_file: Path | None) -> Client:
    """A client by the options of `with_service`; it tries for longer than a person would. Raises SettingsError."""
    key = None
    if api_key_file:
        try:
            key = api_key_file.read_text().strip()
        except OSError as error:
            raise SettingsError(f"ECA_API_KEY_FILE={api_key_file} cannot be read: {error.strerror}") from None
    return Client(url, key=key, ca=ca, timeout_s=60, retry=Retry(attempts=8))
