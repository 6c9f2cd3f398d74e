"""The command that measures accuracy through a running service."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import click

from eca_service.cli.images import below, tell, watched
from eca_service.cli.options import connect, option, with_service
from eca_service.client import Client
from eca_service.client.files import CONCURRENCY
from eca_service.errors import ServiceError
from eca_service.evaluation import Evaluation
from eca_service.labels import class_index
from eca_service.paths import PathName
from eca_service.settings import SettingsError


@click.command()
@click.argument("folder", type=PathName(exists=True, file_okay=False))
@option("--model", "models", multiple=True, help="May be given several times; default: the service's default model.")
@click.option(
    "--confusion",
    type=PathName(dir_okay=False),
    help="Write the models' confusion matrices, side by side, to this PNG.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@option(
    "--concurrency", default=CONCURRENCY, show_default=True, type=click.IntRange(1, 256), help="Requests at a time."
)
@with_service
def evaluate(
    folder: Path,
    models: tuple[str, ...],
    confusion: Path | None,
    as_json: bool,
    concurrency: int,
    url: str,
    ca: Path | None,
    api_key_file: Path | None,
) -> None:
    """Measures accuracy on the images in FOLDER, which has one sub-folder for each class, named after it.

    A sub-folder's name is a label, one of the names listed in a label (_ may stand for a space), or a class index.
    Images that fail are reported and not counted; if there are any, the exit code is 1.

    \b
    Examples:
      eca-serve evaluate photos/
      eca-serve evaluate photos/ --model resnet14-se --model resnet14-eca --confusion confusion.png
    """
    with connect(url, ca, api_key_file) as client:
        names = list(dict.fromkeys(models)) or [client.default_model()]
        evaluations = {name: Evaluation(name, _labels(client, name)) for name in names}
        truths = _truths(folder, evaluations)
        failed: set[Path] = set()
        results = client.classify_files(truths, names, concurrency=min(concurrency, len(truths)))
        for result in watched(results, len(truths) * len(names), "image"):
            if result.answer is None:
                assert result.error is not None
                if result.error.fatal:
                    raise result.error
                if result.path not in failed:
                    tell(f"{result.path}: {result.error}")
                failed.add(result.path)
                continue
            found = evaluations[result.answer.model]
            found.add(truths[result.path][found.model], [one.index for one in result.answer.predictions])
    click.echo(_json(evaluations, len(failed)) if as_json else _table(evaluations, truths.values()))
    if failed:
        click.echo(f"{len(failed)} of {len(truths)} images failed and are not counted", err=True)
    if confusion:  # last: where it cannot be written, the figures are not lost
        _draw(list(evaluations.values()), confusion)
    sys.exit(1 if failed else 0)


def _labels(client: Client, name: str) -> tuple[str, ...]:
    served = {model.name: model.labels for model in client.models()}
    if name not in served:
        raise SettingsError(f"there is no model {name!r}; there are: {', '.join(served) or 'none'}")
    return served[name]


def _truths(folder: Path, evaluations: dict[str, Evaluation]) -> dict[Path, dict[str, int]]:
    """Each image below `folder`, with its class for every model. Raises SettingsError for what is none's class."""
    truths: dict[Path, dict[str, int]] = {}
    _, classes, _ = next(os.walk(folder), ("", [], []))
    for called in sorted(classes):
        images = below(folder / called)
        if images:
            index = {name: _truth(called, found) for name, found in evaluations.items()}
            truths |= dict.fromkeys(images, index)
    if not truths:
        raise SettingsError(f"{folder} has no sub-folder with images; make one for each class, named after its label")
    return truths


def _truth(name: str, evaluation: Evaluation) -> int:
    if name.isdecimal() and name in evaluation.labels:  # "10" comes before "2" where folders gave the labels
        return evaluation.labels.index(name)
    try:
        return class_index(evaluation.labels, name, evaluation.model)
    except ServiceError as error:
        try:
            return class_index(evaluation.labels, name.replace("_", " "), evaluation.model)
        except ServiceError:
            raise SettingsError(f"the folder {name!r} is not named after a class: {error.detail}") from None


def _table(by_model: dict[str, Evaluation], truths: Iterable[dict[str, int]]) -> str:
    """Top-1 and top-5 of each model, then a line for each class that has images: by name, for models may number them
    differently.
    """
    evaluations = list(by_model.values())
    width = max(12, *(len(found.model) for found in evaluations))
    first, labels = evaluations[0], evaluations[0].labels
    lines = [f"{'':<24}" + "".join(f"  {found.model:>{width}}" for found in evaluations)]
    for name, share in (("top-1", "top1"), ("top-5", "top5")):
        lines.append(f"{name:<24}" + "".join(f"  {getattr(found, share):>{width}.2%}" for found in evaluations))
    lines.append(f"{'images':<24}" + "".join(f"  {found.images:>{width}}" for found in evaluations))
    lines += ["", f"recall of each class, and what {first.model} most often takes it for"]
    for indices in sorted({tuple(truth[name] for name in by_model) for truth in truths}):
        counted = list(zip(evaluations, indices, strict=True))
        if not any(found.true[index] for found, index in counted):
            continue
        cells = [f"  {found.recall(index):>{width}.1%}" for found, index in counted]
        taken = first.mistaken_for(indices[0])
        named = f"{labels[indices[0]][:24]:<24}"
        lines.append(named + "".join(cells) + (f"  {labels[taken]}" if taken is not None else ""))
    return "\n".join(lines)


def _json(evaluations: dict[str, Evaluation], failed: int) -> str:
    """A class is named by its label, with its index where several have the same: ImageNet's cranes. Rows and columns of
    the confusion matrix are the classes that occur.
    """

    def figures(found: Evaluation) -> dict[str, object]:
        times = Counter(found.labels)
        classes = {
            label if times[label] == 1 else f"{label} ({index})": {
                "images": found.true[index],
                "recall": found.recall(index),
                "precision": found.precision(index),
            }
            for index, label in enumerate(found.labels)
        }
        return {
            "images": found.images,
            "top1": found.top1,
            "top5": found.top5,
            "classes": classes,
            "occurring": found.occurring,
            "confusion": found.confusion(found.occurring).tolist(),
        }

    return json.dumps({"models": {name: figures(found) for name, found in evaluations.items()}, "failed": failed})


def _draw(evaluations: list[Evaluation], target: Path) -> None:
    from eca_service.confusion import confusion_png

    try:
        target.write_bytes(confusion_png(evaluations))
    except OSError as error:
        raise SettingsError(f"{target} cannot be written: {error.strerror}") from None
