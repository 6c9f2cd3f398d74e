"""This checkout's gateway and another's, in turns: what a change of the gateway costs or saves.

    git worktree add ../before main~1
    python -m tests.load.against ../before [--rounds 10] [--seconds 2]

Both are as `tests.load.overhead` has them: without decoding, in front of one Triton whose model costs nothing. In each
round each has its turn with one, 8 and 32 callers, in another order than in the round before.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from pathlib import Path

import click
from tqdm import tqdm

from tests.load.measure import end_on_sigterm
from tests.load.overhead import ask, gateway, noop_triton
from tests.load.processor import processor_s

CALLERS = (1, 8, 32)
HERE = Path(__file__).parents[2]


def environment(tree: Path) -> dict[str, str]:
    """In which Python finds the packages of `tree` before any that are installed."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(str(tree / part) for part in (".", "service", "build"))}


def measure(other: Path, rounds: int, seconds: float) -> dict[int, list[tuple[float, float]]]:
    """By callers, for each round: this gateway's time of an answer and its processor time of one, over the other's."""
    ratios: dict[int, list[tuple[float, float]]] = {callers: [] for callers in CALLERS}
    with (
        noop_triton() as (triton, repository),
        gateway(triton, repository, environment(HERE)) as ours,
        gateway(triton, repository, environment(other)) as theirs,
    ):
        for turn in tqdm(range(rounds + 1), desc="measuring", unit="round", disable=None):
            for callers in CALLERS:
                both = {}
                for pid, port in (ours, theirs)[:: -1 if turn % 2 else 1]:
                    used = processor_s(pid)
                    spent = asyncio.run(ask(port, callers, seconds))
                    both[pid] = statistics.median(spent), (processor_s(pid) - used) / len(spent)
                if turn:  # the first warms up
                    here, there = both[ours[0]], both[theirs[0]]
                    ratios[callers].append((here[0] / there[0], here[1] / there[1]))
    return ratios


@click.command(context_settings={"show_default": True})
@click.argument("other", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--rounds", type=click.IntRange(1), default=10, help="Rounds; each measures both.")
@click.option("--seconds", type=click.FloatRange(0.2), default=2.0, help="Length of each turn.")
def main(other: Path, rounds: int, seconds: float) -> None:
    """Prints what this checkout's gateway takes of the time and the processor time of that in the folder OTHER."""
    end_on_sigterm()
    if not (other / "service" / "eca_service").is_dir():
        raise click.UsageError(f"{other} is no checkout of this repository")
    for callers, rows in measure(other.absolute(), rounds, seconds).items():
        times, used = zip(*rows, strict=True)
        click.echo(
            f"{callers:2} callers: time of an answer {_told(times)}, processor time {_told(used)} of the other's; "
            f"median and quarters of {rounds} rounds"
        )


def _told(ratios: tuple[float, ...]) -> str:
    if len(ratios) < 2:
        return f"{ratios[0]:.2f}"
    low, middle, high = statistics.quantiles(ratios, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
