"""The commands that ask a running service about images: classify and explain."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import click

from eca_service.cli.images import PIPED, expand, piped, tell, watched
from eca_service.cli.options import connect, option, with_service
from eca_service.client import Client, ClientError, FileResult
from eca_service.client.files import CONCURRENCY, as_names, joined
from eca_service.paths import PathName

COLUMNS = ("file", "model", "version", "rank", "index", "label", "score", "error", "detail")


@click.command()
@click.argument("images", nargs=-1, required=True, type=PathName(allow_dash=True))
@option("--model", "models", multiple=True, help="May be given several times; default: the service's default model.")
@option("--top-k", type=click.IntRange(1), help="Best classes to list for each image; default: 5, or all if fewer.")
@click.option("--json", "form", flag_value="json", help="Print one JSON object per line.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV, one row for each class of each image.")
@click.option(
    "--table", "form", flag_value="table", default="table", help="Print one line per image, for people; the default."
)
@option(
    "--concurrency", default=CONCURRENCY, show_default=True, type=click.IntRange(1, 256), help="Requests at a time."
)
@with_service
def classify(
    images: tuple[Path, ...],
    models: tuple[str, ...],
    top_k: int | None,
    form: str,
    concurrency: int,
    url: str,
    ca: Path | None,
    api_key_file: Path | None,
) -> None:
    """Classifies IMAGES with a running service: files, folders, quoted patterns, or - for one image on standard input.

    A file that fails shows its error in place of an answer. Exit code 0: all were classified; 1: some were not; 2: the
    service cannot be reached or refuses.

    \b
    Examples:
      eca-serve classify cat.jpg dog.jpg --top-k 3
      eca-serve classify photos/ --csv > answers.csv
      eca-serve classify 'photos/**/*.png' --model resnet14-se --model resnet14-eca --json
      convert photo.heic jpg:- | eca-serve classify -
      eca-serve classify cat.jpg --url https://images.example.org --api-key-file key
    """
    paths = expand(images)
    if PIPED in paths and len(paths) > 1:
        raise click.UsageError("- stands for the one image on standard input; give no other images with it")
    failed = 0
    with connect(url, ca, api_key_file) as client:
        if PIPED in paths:
            results = _piped(client, as_names(models), top_k)
        else:
            # no more than there are files, so that a service that does not answer for a few of them is told soon
            results = client.classify_files(paths, models, top_k=top_k, concurrency=min(concurrency, len(paths)))
        if form == "csv":
            click.echo(",".join(COLUMNS))
        width = min(60, max(len(str(path)) for path in paths))
        total = len(paths) * max(1, len(set(models)))
        for result in watched(results, total, "image"):
            if result.error and result.error.fatal:
                raise result.error
            failed += result.error is not None
            if form == "table":
                (tell if result.error else click.echo)(_line(result, width, len(models) > 1))
            else:
                click.echo(_json(result) if form == "json" else _csv(result))
    if failed:
        click.echo(f"{failed} of {total} failed", err=True)
    sys.exit(1 if failed else 0)


@click.command()
@click.argument("image", type=PathName(dir_okay=False, allow_dash=True))
@click.option(
    "-o",
    "--output",
    default="map.png",
    show_default=True,
    type=PathName(dir_okay=False, allow_dash=True),
    help="The PNG to write; -: standard output.",
)
@option("--model", help="Default: the service's default model.")
@click.option("--class", "wanted", help="Label or index of the class to explain; default: the best one.")
@option("--opacity", default=0.6, show_default=True, type=click.FloatRange(0, 1), help="Opacity of the map.")
@option(
    "--side",
    default=1024,
    show_default=True,
    type=click.IntRange(32, 4096),
    help="Longer side of the picture, in pixels.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the map as numbers instead of writing a picture.")
@with_service
def explain(
    image: Path,
    output: Path,
    model: str | None,
    wanted: str | None,
    opacity: float,
    side: int,
    as_json: bool,
    url: str,
    ca: Path | None,
    api_key_file: Path | None,
) -> None:
    """Draws which parts of IMAGE (-: standard input) speak for a class (warm) and against it (cool) for the model.

    This is the exact class activation map: its values add up to the class's logit minus the bias.

    \b
    Examples:
      eca-serve explain dog.jpg -o map.png
      eca-serve explain dog.jpg --class cat --model resnet14-se --json
    """
    try:
        with connect(url, ca, api_key_file) as client:
            chosen = model or client.default_model()
            content = piped() if image == PIPED else image
            if as_json:
                click.echo(json.dumps(asdict(client.explain(content, chosen, wanted))))
                return
            drawn = client.overlay(content, chosen, wanted, opacity=opacity, side=side)
    except ClientError as error:
        if error.fatal:
            raise
        raise click.ClickException(f"{image}: {error}") from None
    to_pipe = output == PIPED
    try:
        if to_pipe:
            click.echo(drawn.png, nl=False)
        else:
            output.write_bytes(drawn.png)
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}") from None
    explained = drawn.explained
    sees = f"what speaks for {explained.label} ({explained.score:.1%}) in {image}, as {chosen} sees it"
    click.echo(f"{output}: {sees}", err=to_pipe)


def _piped(client: Client, models: list[str], top_k: int | None) -> Iterator[FileResult]:
    """What each model, or the service's default one, says of the image from standard input."""
    try:
        image = piped()
        if len(models) > 1:
            compared = client.compare(image, models, top_k=top_k)
            yield from joined([PIPED], models, [compared[name] for name in models])
        else:
            found = client.classify(image, models[0] if models else None, top_k=top_k)
            yield from joined([PIPED], models, [found])
    except ClientError as error:
        yield from joined([PIPED], models, error)


def _line(result: FileResult, width: int, several: bool) -> str:
    start = f"{result.path!s:<{width}}  " + (f"{result.model or '':<20}  " if several else "")
    if result.answer is None:
        return f"{start}{result.error}"
    return start + "  ".join(f"{one.label} {one.score:.1%}" for one in result.answer.predictions)


def _json(result: FileResult) -> str:
    found: dict[str, object] = {"file": str(result.path)}
    if result.answer is None:
        assert result.error is not None
        found |= {"model": result.model} if result.model else {}
        return json.dumps(found | {"error": {"code": result.error.code, "detail": result.error.detail}})
    return json.dumps(found | asdict(result.answer))


def _csv(result: FileResult) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(_rows(result))
    return out.getvalue().rstrip("\n")


def _rows(result: FileResult) -> Iterator[Iterable[object]]:
    answer = result.answer
    if answer is None:
        assert result.error is not None
        yield result.path, result.model, "", "", "", "", "", result.error.code, result.error.detail
        return
    for rank, one in enumerate(answer.predictions, 1):
        score = f"{one.score:.6g}"
        yield result.path, answer.model, answer.version, rank, one.index, one.label, score, "", ""
