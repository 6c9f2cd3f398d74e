"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from eca_service.client import Client, Retry
from eca_service.client.calls import DEFAULT_URL
from eca_service.keys import read_secret
from eca_service.paths import PathName
from eca_service.settings import PREFIX, Settings, default_of

Command = TypeVar("Command", bound=Callable[..., Any])
OF_TRITON = "repository triton_host triton_grpc_port triton_log triton_threads otlp_endpoint log_format log_level"


def option(flag: str, *names: str, envvar: str = "", **more: Any) -> Callable[[Command], Command]:
    """An option that is an environment variable too: `envvar`, or ECA_ and its own name, as --help shows."""
    variable = envvar or PREFIX + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(flag, *names, envvar=variable, show_envvar=True, **more)


def with_settings(command: Any) -> Any:
    """Gives a command one option for each setting, with its variable and default in --help."""
    return _with(command, Settings.model_fields)


def with_triton_settings(command: Any) -> Any:
    """The same of those that the embedded Triton alone has."""
    return _with(command, OF_TRITON.split())


def _with(command: Any, names: Iterable[str]) -> Any:
    for name in reversed(list(names)):
        field = Settings.model_fields[name]
        default = f"; default {shown}" if (shown := default_of(field)) else ""
        text = field.description or name
        text = text if text.startswith("gRPC") else text[0].upper() + text[1:]
        command = click.option(
            "--" + name.replace("_", "-"),
            name,
            help=f"{text}  [{PREFIX}{name.upper()}{default}]",
        )(command)
    return command


with_ca = option(
    "--ca",
    type=PathName(dir_okay=False),
    help="Certificate authorities (PEM) to trust instead of the system's.",
)
with_key = option(
    "--api-key-file",
    type=PathName(),
    help="File that holds the API key, if the service needs one.",
)


def with_service(command: Any) -> Any:
    """Gives a command that asks a running service the options --url, --ca and --api-key-file."""
    url = option(
        "--url",
        default=DEFAULT_URL,
        show_default=True,
        help="Address of the running service: http(s)://, or grpc(s)://, which can only classify with one model.",
    )
    for one in (with_key, with_ca, url):
        command = one(command)
    return command


def connect(url: str, ca: Path | None, api_key_file: Path | None) -> Client:
    """A client by the options of `with_service`; it tries for longer than a person would. Raises SettingsError."""
    return Client(url, key=key_of(api_key_file), ca=ca, timeout_s=60, retry=Retry(attempts=8))


def key_of(api_key_file: Path | None) -> str | None:
    """The key that the file of --api-key-file holds. Raises SettingsError."""
    return read_secret(api_key_file, "ECA_API_KEY_FILE") if api_key_file else None
