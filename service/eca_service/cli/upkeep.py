"""The commands that look after models, keys and machines: rollback, key and doctor."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

import click

from eca_service import disk, logs
from eca_service.addresses import from_here, joined
from eca_service.cli.options import key_of, option, with_ca, with_key, with_settings
from eca_service.errors import ServiceError
from eca_service.keys import make, read_secret
from eca_service.paths import PathName
from eca_service.settings import SettingsError, load


@click.command()
@click.argument("model")
@click.option("--to", "version", type=click.IntRange(1), help="The version to serve; default: the previous one.")
@click.option("--newest", is_flag=True, help="Serve the newest version again.")
@option(
    "--repository",
    type=PathName(),
    default="model_repository",
    show_default=True,
    help="The model repository to change.",
)
@click.option("--url", help="Have this running service do it, instead of changing the repository here.")
@with_ca
@option(
    "--token-file",
    type=PathName(),
    envvar="ECA_MANAGEMENT_TOKEN_FILE",
    help="With --url: file that holds the service's management token.",
)
def rollback(
    model: str,
    version: int | None,
    newest: bool,
    repository: Path,
    url: str | None,
    ca: Path | None,
    token_file: Path | None,
) -> None:
    """Serves an earlier version of MODEL; running services switch within seconds, without losing a request.

    MODEL stays at that version, whatever is built later, until `--newest`.

    \b
    Examples:
      eca-serve rollback resnet14-eca
      eca-serve rollback resnet14-eca --newest
      eca-serve rollback resnet14-eca --url https://images.example.org --token-file token
    """
    if version and newest:
        raise SettingsError("give --to or --newest, not both")
    if url is None:
        version = _roll_back_here(repository, model, version, newest)
    elif token_file is None:
        raise SettingsError("--url needs --token-file, the file that holds the service's management token")
    else:
        version = _roll_back_there(url, ca, token_file, model, version, newest)
    click.echo(f"{model}: {f'version {version}' if version else 'the newest version'} is to be served")


def _roll_back_here(repository: Path, model: str, version: int | None, newest: bool) -> int | None:
    from eca_service.registry import pin, roll_back

    try:
        if version is None and not newest:
            return roll_back(repository, model)
        pin(repository, model, version)
    except ServiceError as error:
        raise SettingsError(error.detail) from None
    except OSError as error:
        raise SettingsError(f"{repository} cannot be written: {error.strerror}") from None
    return version


def _roll_back_there(
    url: str, ca: Path | None, token_file: Path, model: str, version: int | None, newest: bool
) -> int | None:
    from eca_service.client import Client, ClientError

    with Client(url, key=read_secret(token_file, "ECA_MANAGEMENT_TOKEN_FILE"), ca=ca) as client:
        try:
            return client.unpin(model) if newest else client.pin(model, version)
        except ClientError as error:
            if error.code != "404":
                raise
            raise SettingsError(f"{error.detail}; is ECA_MANAGEMENT_TOKEN_FILE set for the service?") from None


@click.command()
@click.argument("name")
def key(name: str) -> None:
    """Makes an API key for NAME. Prints its line for ECA_API_KEYS_FILE on stdout and, only once, the key on stderr.

    To replace a key without interruption, add a second one of the same name, hand it out, then remove the old line.

    \b
    Example:
      eca-serve key team-a >> keys
    """
    secret, line = make(name)
    click.echo(line)
    click.echo(secret, err=True)
    click.echo(f"This is {name}'s key; it is not shown again. Send it as: Authorization: Bearer KEY", err=True)


@click.command()
@option("--url", help="Examine the service at this address, not this machine.")
@option(
    "--seconds",
    default=3.0,
    show_default=True,
    type=click.FloatRange(0.1, 600),
    help="How long to watch the running service.",
)
@with_ca
@with_key
@with_settings
def doctor(url: str | None, seconds: float, ca: Path | None, api_key_file: Path | None, **given: str | None) -> None:
    """Says what is wrong with this machine, its model repository and the running service; if anything is, exits with 1.

    \b
    Examples:
      eca-serve doctor
      docker compose exec gateway eca-serve doctor
      eca-serve doctor --url http://gateway.example:8080 --seconds 10
    """
    from eca_service import doctor as examine
    from eca_service.client import Client, Retry
    from eca_service.registry import Registry

    logs.start("text", "critical")  # what is wrong is said once
    once, secret = Retry(attempts=1), key_of(api_key_file)
    if url:
        findings = examine.service(Client(url, key=secret, ca=ca, retry=once), seconds)
    else:
        settings = load(given)
        registry = disk.patiently(
            lambda: click.echo(f"{settings.repository} does not answer yet; waiting for its file system", err=True),
            *(Registry, settings.repository, settings.default_model),
        )
        own = joined(from_here(settings.host), settings.http_port)
        if settings.tls_cert:  # whatever names it has: it is this one
            client = Client(f"https://{own}", key=secret, ca=ca or settings.tls_cert, pinned=ca is None, retry=once)
        else:
            client = Client(f"http://{own}", key=secret, retry=once)
        findings = chain(
            examine.files(settings),
            examine.machine(settings),
            examine.repository(settings, registry),
            examine.service(client, seconds, registry),
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
