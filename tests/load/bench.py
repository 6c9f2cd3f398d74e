"""The load tests: `make bench`, or python -m tests.load.bench --help."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import click
from tqdm import tqdm

from tests.load import compare, matrix, measure, report
from tests.load.environment import environment
from tests.load.photographs import photographs
from tests.load.summary import failed, taxes

CACHE = Path(".cache/bench")
FOLDER = click.Path(path_type=Path, file_okay=False, writable=True)


@click.command(context_settings={"show_default": True})
@click.option("--preset", type=click.Choice(list(matrix.PRESETS)), default="default", help="How much is measured.")
@click.option("--backbone", "backbones", multiple=True, help="Only this one; may be given several times.")
@click.option("--attention", "attentions", multiple=True, help="Only this one, and plain; may be given several times.")
@click.option("--precision", "precisions", multiple=True, help="Only this one; may be given several times.")
@click.option("--graph", "graphs", multiple=True, help="Only this attention graph; may be given several times.")
@click.option("--rounds", type=click.IntRange(1, 100), help="Default: the preset's.")
@click.option("--seconds", type=click.FloatRange(0.1, 60), help="Length of a block; default: the preset's.")
@click.option("--images", "folder", type=click.Path(path_type=Path, exists=True), help="A folder of JPEGs to send.")
@click.option("--out", type=FOLDER, default=CACHE / "report", help="Folder of the report.")
@click.option("--models", type=FOLDER, default=CACHE, help="Folder for the models built for it.")
@click.option("--compare", "older", type=click.Path(path_type=Path), help="An older bench.json; exit code 1 if worse.")
@click.option(
    "--draw",
    "drawn",
    type=click.Path(path_type=Path),
    help="Measure nothing; draw the report of this bench.json again.",
)
@click.option("--seed", type=int, default=1, help="Seed of the order of blocks, arrivals and images.")
def main(
    preset: str,
    backbones: tuple[str, ...],
    attentions: tuple[str, ...],
    precisions: tuple[str, ...],
    graphs: tuple[str, ...],
    rounds: int | None,
    seconds: float | None,
    folder: Path | None,
    out: Path,
    models: Path,
    older: Path | None,
    drawn: Path | None,
    seed: int,
) -> None:
    """Builds the networks, serves each backbone's on loopback ports, loads them in turns, writes a report.

    With --compare the open loads are those of the older run. Exit code 1 where a request failed, nothing was measured,
    or --compare found something worse or nothing to compare.
    """
    measure.end_on_sigterm()
    try:
        before = report.load(older) if older else None
        again = report.load(drawn) if drawn else None
        plan = matrix.selected(
            matrix.PRESETS[preset], backbones=backbones, attentions=attentions, precisions=precisions, graphs=graphs
        )
        images, source = photographs(folder)
        out.mkdir(parents=True, exist_ok=True)  # rather now than after minutes of measuring
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from None
    plan = matrix.Preset(**(plan.__dict__ | {k: v for k, v in (("rounds", rounds), ("seconds", seconds)) if v}))
    offered = compare.offered(before.cells) if before else {}
    run = again or measured(plan, images, source, models, out, seed, offered)
    changed = compare.changes(run.cells, before.cells) if before else []
    caution = compare.other_machine(run.environment, before.environment) if before else ""
    page = report.write(run, out, changed, caution)
    click.echo("\n".join(report.headlines(taxes(run.cells))))
    for change in changed:
        if change.verdict in ("worse", "better"):
            click.echo(f"{change.verdict}: {change.variant}, {change.level}, {change.figure} {change.change.text(2)}")
    if caution:
        click.echo(f"The older run was made otherwise: {caution}", err=True)
    verdicts = Counter(change.verdict for change in changed)
    if verdicts["unknown"]:
        why = "of one round, or under another load"
        click.echo(f"{verdicts['unknown']} of {len(changed)} changes are unknown: {why}", err=True)
    compared = not before or len(changed) > verdicts["unknown"]
    if not compared:
        click.echo(f"Nothing could be compared with {older}.", err=True)
    for name, why in run.notes.items():
        click.echo(f"not measured: {name}: {why}", err=True)
    if failures := failed(run.cells):
        click.echo(f"requests failed: {dict(failures)}; the figures are of the others", err=True)
    if not run.cells:
        click.echo("Nothing was measured.", err=True)
    click.echo(f"Report: {page}")
    sys.exit(1 if failures or not run.cells or not compared or verdicts["worse"] else 0)


def measured(
    plan: matrix.Preset, images: list[bytes], source: str, models: Path, out: Path, seed: int,
    offered: Mapping[tuple[str, str], float],
) -> report.Run:  # fmt: skip
    """Builds and measures; the bar's time left is that of the blocks. Raises NotServedError.

    What was measured is kept in bench.json after each round: --draw makes a report of it if the rest is cut off, and
    who cuts it off is told so.
    """
    facts = environment(source)  # before the builds, which keep the machine busy themselves
    variants = {name: plan.variants(name) for name in plan.backbones}
    every = [variant for group in variants.values() for variant in group]
    with tqdm(total=len(every), desc="building", unit="model", disable=None) as bar:

        def built(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        notes = matrix.build_all(every, models, built)
    cells: list[measure.Cell] = []
    kept: list[measure.Cell] = []
    total = sum(plan.rounds * len(plan.levels) * len(group) for group in variants.values())
    with tqdm(total=total, desc="measuring", unit="block", disable=None) as bar:

        def step(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        def keep(rounds: list[measure.Cell]) -> None:
            kept[:] = [*cells, *rounds]
            report.save(report.Run(facts, kept, notes), out / "bench.json")

        try:
            for name, group in variants.items():
                served = [variant for variant in group if variant.name not in notes]
                if not served:
                    continue
                with tempfile.TemporaryDirectory(prefix="eca-bench-") as scratch:
                    repository = models / "repositories" / name
                    cells += measure.run(plan, served, repository, images, Path(scratch), seed, step, keep, offered)
        except BaseException:
            bar.close()
            if kept:
                click.echo(f"All whole rounds are in {out / 'bench.json'}; --draw makes a report of them", err=True)
            raise
    return report.Run(facts, cells, notes)


if __name__ == "__main__":
    main()
