"""The `eca-serve` command."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from itertools import chain
from pathlib import Path
from typing import Any

import click

from eca_service.errors import ServiceError
from eca_service.settings import PREFIX, Settings, SettingsError, load
from eca_service.triton.server import TritonUnavailable, require_free
from eca_service.triton.supervisor import TritonServer


class _Commands(click.Group):
    """Turns what a user can mend into its sentence and exit code 2."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (SettingsError, TritonUnavailable) as error:
            click.echo(f"eca-serve: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="eca-serve")
def main() -> None:
    """Serves attention-enhanced image classifiers."""


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


@main.command()
@with_settings
def up(**given: str | None) -> None:
    """Triton (embedded) and gateway; Ctrl-C drains and leaves no process.

    \b
    Example:
      eca-serve up --http-port 8090 --repository model_repository
    """
    settings = load(given)
    log(settings)
    _require_models(settings)
    require_free(settings.host, settings.http_port, "the gateway", "ECA_HTTP_PORT")
    require_free(settings.host, settings.grpc_port, "the gateway's gRPC", "ECA_GRPC_PORT")
    triton = _triton(settings)
    triton.start()
    try:
        _gateway(settings.model_copy(update={"triton_url": triton.address, "triton_shared_memory": True}))
    finally:
        triton.stop()


@main.command()
@with_settings
def gateway(**given: str | None) -> None:
    """The gateway alone, in front of a Triton that runs elsewhere (--triton-url)."""
    settings = load(given)
    log(settings)
    _require_models(settings)
    require_free(settings.host, settings.http_port, "the gateway", "ECA_HTTP_PORT")
    require_free(settings.host, settings.grpc_port, "the gateway's gRPC", "ECA_GRPC_PORT")
    _gateway(settings)


@main.command()
@with_settings
def triton(**given: str | None) -> None:
    """The embedded Triton alone."""
    settings = load(given)
    log(settings)
    server = _triton(settings)
    server.start()
    click.echo(f"Triton: {server.address} (gRPC), log in {settings.triton_log}")
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    try:
        done.wait()
    finally:
        server.stop()


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model", envvar="ECA_DEFAULT_MODEL", show_envvar=True, help="Default: the service's.")
@click.option("--top-k", default=5, show_default=True, type=click.IntRange(1))
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, envvar="ECA_URL", show_envvar=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def classify(images: tuple[Path, ...], model: str | None, top_k: int, url: str, as_json: bool) -> None:
    """Classifies image files through a running service; exit code 1 where any of them failed."""
    from eca_service.client import Failure, classify_file

    failed = False
    for path in images:
        answer = classify_file(url, path, model, top_k)
        failed |= isinstance(answer, Failure)
        if isinstance(answer, Failure):
            line = {"file": str(path), "error": {"code": answer.code, "detail": answer.detail}}
            text = f"{path}: {answer.code}: {answer.detail}"
        else:
            line = {"file": str(path), **answer}
            best = answer["results"][0]["predictions"]
            text = f"{path}: " + ", ".join(f"{p['label']} {p['score']:.1%}" for p in best)
        click.echo(json.dumps(line) if as_json else text, err=isinstance(answer, Failure) and not as_json)
    sys.exit(1 if failed else 0)


@main.command()
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


@main.command()
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


def _triton(settings: Settings) -> TritonServer:
    return TritonServer(
        settings.repository,
        settings.triton_grpc_port,
        settings.triton_log,
        settings.triton_threads,
        settings.triton_host,
    )


def log(settings: Settings) -> None:
    """Has the log written to standard error."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _require_models(settings: Settings) -> None:
    from eca_service.preflight import obstacle_of
    from eca_service.registry import Registry

    registry = Registry(settings.repository, settings.default_model, obstacle_of(settings.triton_url))
    if not registry.models:
        raise SettingsError(
            f"{settings.repository} holds no model that can be served here; `eca-build compile CHECKPOINT` makes one"
        )
    if settings.default_model and settings.default_model not in registry.models:
        raise SettingsError(
            f"ECA_DEFAULT_MODEL={settings.default_model} is not in {settings.repository}; "
            f"there are: {', '.join(registry.models)}"
        )


def _gateway(settings: Settings) -> None:
    if settings.workers > 1:
        from eca_service.workers import supervise

        sys.exit(supervise(settings))
    from eca_service.gateway import serve

    serve(settings)
