"""What the peer test saw of each contender, as a table, and whether what is asked of ours holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.load.generator import Block
from tests.load.intervals import Estimate, mean, over_rounds, percentile, ratio

PEER, LIMIT, ALONE = "plain FastAPI", "no server, every core", "no server, one image"


@dataclass
class Figures:
    """One contender at one number of clients: an entry a round."""

    per_s: list[float] = field(default_factory=list)
    latencies_ms: list[list[float]] = field(default_factory=list)
    processor_ms: list[float] = field(default_factory=list)  # of all its processes, for an image
    waited_ms: list[float] = field(default_factory=list)  # that their threads had no core for it
    meanwhile: list[int] = field(default_factory=list)  # answers to others during each of all requests
    failures: dict[str, int] = field(default_factory=dict)

    def add(self, per_s: float, latencies_s: list[float], processor_s_each: float) -> None:
        """Takes one round."""
        self.processor_ms.append(1000 * processor_s_each)
        self.per_s.append(per_s)
        self.latencies_ms.append([1000 * value for value in latencies_s])

    def take(self, block: Block, processor: float, waited: float) -> None:
        """Takes one round's block, and the seconds that a core was used in it and waited for."""
        answered = max(1, len(block.latencies_s))
        self.add(block.per_s, block.latencies_s, processor / answered)
        self.waited_ms.append(1000 * waited / answered)
        self.meanwhile += block.meanwhile
        for code, count in block.failures.items():
            self.failures[code] = self.failures.get(code, 0) + count


def table(found: dict[tuple[str, int], Figures], ours: list[str], clients: tuple[int, ...]) -> list[str]:
    """The lines to print."""
    limit, lone = found[LIMIT, 0], found[ALONE, 0]
    lone_ms = over_rounds(lone.latencies_ms, percentile(50))
    lines = [
        f"{LIMIT}: {_rate(limit).text(1)} images/s; {ALONE}: {lone_ms.text(1)} ms; "
        f"engine alone in process: {_rate(found['engine in process', 0]).text(1)} images/s",
        f"Processor time of an image in process: {np.mean(limit.processor_ms):.1f} ms, "
        f"of its engine alone {np.mean(found['engine in process', 0].processor_ms):.1f} ms",
        "",
        f"{'service':<44} {'clients':>7} {'images/s':>9} {'of limit':>8} {'p50 ms':>7} {'p99 ms':>7} "
        f"{'others':>7} {'core ms':>8} {'wait ms':>8}  {'x the peer (95 %)':<20} failed",
    ]
    for name in (PEER, *ours):
        for level in clients:
            one, base = found[name, level], found[PEER, level]
            every = np.concatenate(one.latencies_ms) if any(one.latencies_ms) else np.array([np.nan])
            share = ratio(one.per_s, limit.per_s).value
            others = np.percentile(one.meanwhile, 99) if one.meanwhile else np.nan
            against = "" if name == PEER else ratio(one.per_s, base.per_s).text(2)
            lines.append(
                f"{name:<44} {level:>7} {_rate(one).value:>9.1f} {share:>8.2f} {np.percentile(every, 50):>7.1f} "
                f"{np.percentile(every, 99):>7.1f} {others:>7.0f} "
                f"{np.mean(one.processor_ms):>8.1f} {np.mean(one.waited_ms):>8.1f}  {against:<20} "
                f"{sum(one.failures.values())}"
            )
    lines += ["others: answers that other callers were given during a request, 99th percentile", "", "Asked for:"]
    for name in ours:
        lines += [f"  {name}", *(f"    {line}" for line in verdicts(found, name, clients, lone_ms))]
    return lines


def verdicts(
    found: dict[tuple[str, int], Figures], name: str, clients: tuple[int, ...], lone_ms: Estimate
) -> list[str]:
    """What is asked of our service, and whether it holds."""
    lines = []
    for level in clients:
        one, base = found[name, level], found[PEER, level]
        if level == 1:
            ours = over_rounds(one.latencies_ms, percentile(50))
            lines.append(
                _verdict("one client's p50 / one image in process", ours.value / lone_ms.value, 1.1, below=True)
            )
            continue
        lines.append(_verdict(f"throughput at {level} clients / peer's", ratio(one.per_s, base.per_s).value, 1.0))
        if level == max(clients):
            p99 = [over_rounds(each.latencies_ms, percentile(99)).value for each in (one, base)]
            lines.append(_verdict(f"p99 at {level} clients / peer's", p99[0] / p99[1], 0.5, below=True))
    engine = found.get((f"{name}: Triton directly", 8))
    if engine:
        share = ratio(engine.per_s, found["engine in process", 0].per_s).value
        lines.append(_verdict("Triton directly, 8 at once / engine in process", share, 0.95))
    return lines


def _verdict(what: str, value: float, bound: float, below: bool = False) -> str:
    holds = value <= bound if below else value >= bound
    return f"{'yes' if holds else 'NO '}  {what}: {value:.2f} ({'at most' if below else 'at least'} {bound:g})"


def _rate(figures: Figures) -> Estimate:
    return over_rounds([[one] for one in figures.per_s], mean)
