"""The load tests themselves: what they plan, what they count, and a run of seconds against the real service."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from eca_build.networks.attention import Kind
from PIL import Image

from tests.integration import conftest
from tests.integration.conftest import Service
from tests.load import bench, compare, measure, noop, overhead, plots, report, tables
from tests.load.environment import busy
from tests.load.generator import Block, closed_loop
from tests.load.intervals import Estimate, mean, over_rounds, percentile, quantile, ratio, unpaired_ratio
from tests.load.matrix import PRESETS, Variant
from tests.load.measure import Cell, NotServedError, blocks
from tests.load.protocols import GatewayGrpc, Http, TritonGrpc, Way
from tests.load.summary import Row, at_objective, row, taxes


def test_intervals_cover_what_is_known() -> None:
    chance = np.random.default_rng(0)
    for count in (2, 3, 5):
        covered = {"mean": 0, "paired": 0, "unpaired": 0}
        for trial in range(100):
            rounds = [list(chance.normal(10, 2, 30) + chance.normal(0, 1)) for _ in range(count)]
            ours, theirs = (np.exp(chance.normal(0, 0.1, count)).tolist() for _ in range(2))
            covered["mean"] += (found := over_rounds(rounds, mean, trial)).low <= 10 <= found.high
            covered["paired"] += (found := ratio(ours, theirs)).low <= 1 <= found.high
            covered["unpaired"] += (found := unpaired_ratio(ours, theirs)).low <= 1 <= found.high
        assert min(covered.values()) >= 86, f"95 are promised, of {count} rounds: {covered}"
    for count, others in ((2, 20), (10, 2)):  # rounds of two runs, of which the one of few moves more
        covered = {"few": 0}
        for _ in range(100):
            ours = np.exp(chance.normal(0, 0.2 if count < others else 0.02, count)).tolist()
            theirs = np.exp(chance.normal(0, 0.02 if count < others else 0.2, others)).tolist()
            covered["few"] += (found := unpaired_ratio(ours, theirs)).low <= 1 <= found.high
        assert covered["few"] >= 86, f"95 are promised, of {count} and {others} rounds: {covered}"
    found = ratio([11, 22, 33], [10, 20, 30])
    assert (found.value, found.low, found.high) == pytest.approx((1.1, 1.1, 1.1))
    assert np.isnan(over_rounds([[], []], percentile(50)).value)
    for one in (over_rounds([[1, 2, 3]], percentile(50)), ratio([2], [1]), unpaired_ratio([2], [1])):
        assert one.value == pytest.approx(2)
        assert not one.known, "nothing is known of chance from one round"
        assert one.text() == "2.0"


def test_a_p99_of_few_answers_has_no_interval() -> None:
    rounds = [[float(10 * turn + i) for i in range(1, 11)] for turn in range(9)]
    assert quantile(rounds, 50).known
    assert quantile(rounds, 95).known
    assert not quantile(rounds, 99).known, "of 90 answers none is slower"
    assert quantile([*rounds, rounds[0]], 99).known
    assert not quantile(rounds[:1], 95).known
    assert np.isnan(quantile([[]], 99).value)


def cell(variant: str, attention: Kind, level: str, per_s: list[float], offered: float | None = None) -> Cell:
    latencies = [[1000 / one] * 5 for one in per_s]
    late, stages = [0.1] * len(per_s), [{"decode": 1.0, "queue": 0.5, "infer": 2.0, "total": 4.0}] * len(per_s)
    return Cell(
        "resnet50",
        variant,
        attention,
        "fp32",
        "plain",
        level,
        offered,
        per_s,
        latencies,
        late,
        stages,
        [5.0] * len(per_s),
        15,
    )


CELLS = [
    cell("resnet50-plain", "none", "http closed 8", [100, 50, 80]),
    cell("resnet50-se", "se", "http closed 8", [90, 45, 72]),
]


def test_tax_is_of_pairs_side_by_side() -> None:
    (found,) = taxes(CELLS)
    assert (found.throughput.value, found.throughput.low) == pytest.approx((0.1, 0.1)), "drift hit both alike"
    assert found.published == pytest.approx(0.127, abs=0.001)


def test_comparison_flags_what_chance_does_not_explain() -> None:
    slower = [cell("resnet50-plain", "none", "http closed 8", [60, 61, 62]), CELLS[1]]
    before = [cell("resnet50-plain", "none", "http closed 8", [100, 101, 102]), CELLS[1]]
    verdicts = {(c.variant, c.figure): c.verdict for c in compare.changes(slower, before)}
    assert verdicts["resnet50-plain", "throughput"] == "worse"
    assert verdicts["resnet50-plain", "p50"] == "worse"
    assert verdicts["resnet50-se", "throughput"] == "same"
    better = {c.figure: c.verdict for c in compare.changes(before, slower) if c.variant == "resnet50-plain"}
    assert better == {"throughput": "better", "p50": "better"}


def test_a_comparison_tells_what_it_cannot_know(tmp_path: Path) -> None:
    def verdicts(new: list[Cell], old: list[Cell]) -> list[str]:
        return [change.verdict for change in compare.changes(new, old)]

    one_round = [cell("resnet50-plain", "none", "http closed 8", [100.0])]
    assert verdicts(one_round, [cell("resnet50-plain", "none", "http closed 8", [50.0])]) == ["unknown", "unknown"]
    slow = [cell("resnet50-plain", "none", "http poisson 70 %", [10.0, 10.1, 9.9], 70)]
    fast = [cell("resnet50-plain", "none", "http poisson 70 %", [20.0, 20.1, 19.9], 90)]
    assert verdicts(slow, fast) == ["unknown"], "more was offered"
    assert compare.offered(fast) == {("resnet50", "http poisson 70 %"): 90}
    facts = {"when": "now", "images": "of one kind"}
    assert compare.other_machine(facts | {"images": "of another"}, facts)
    report.save(report.Run(facts, one_round, {}), tmp_path / "new.json")
    report.save(report.Run(facts, fast, {}), tmp_path / "old.json")
    files = ["--draw", str(tmp_path / "new.json"), "--compare", str(tmp_path / "old.json")]
    done = CliRunner().invoke(bench.main, [*files, "--out", str(tmp_path / "report")], catch_exceptions=False)
    assert done.exit_code == 1
    assert "Nothing could be compared with" in done.output


def test_throughput_at_an_objective() -> None:
    def at(load: float, p99_ms: float) -> Row:
        base = row(cell("v", "none", "http poisson 50 %", [10.0], load))
        estimate = Estimate(p99_ms, p99_ms, p99_ms)
        return Row(**(base.__dict__ | {"p99_ms": estimate}))

    rows = [at(10, 10), at(20, 40), at(30, 1000)]
    assert at_objective(rows, "v", 2000) == (30, True)
    between, beyond = at_objective(rows, "v", 200)
    assert not beyond
    assert between == pytest.approx(25), "on a log scale"
    assert at_objective(rows, "v", 5) == (0, False)


def test_blocks_are_random_and_complete() -> None:
    preset = PRESETS["default"]
    variants = preset.variants("resnet18")
    order = blocks(preset, variants, 1)
    assert len(order) == len(set(order)) == preset.rounds * len(preset.levels) * len(variants)
    assert order != blocks(preset, variants, 2)
    together = order[: len(variants)]
    assert {variant for *_, variant in together} == set(variants)
    assert len({level for _, level, _ in together}) == 1, "those compared stand side by side"


def test_a_report_says_that_requests_failed(tmp_path: Path) -> None:
    broken = [Cell(**(one.asdict() | {"failures": {"http 503": 2}})) for one in CELLS]  # type: ignore[arg-type]
    run = report.Run({"when": "now", "commit": "abc"}, broken, {"resnet50-cbam-int8": "no such <precision>"})
    page = report.write(run, tmp_path).read_text()
    assert "4 of 30 requests failed (http 503)" in page
    assert "no such &lt;precision&gt;" in page
    assert report.load(tmp_path / "bench.json") == run
    for plot in tmp_path.glob("*.png"):
        with Image.open(plot) as image:
            assert image.info["commit"] == "abc"
    assert tables.table_2().rows[1][:3] == ("SE", "2,514,944", "2,514,944")
    for table in tmp_path.glob("*.csv"):
        assert "# commit: abc" in table.read_text()


def test_failures_of_all_cells_are_added_up_and_nothing_measured_is_no_success(tmp_path: Path) -> None:
    failures: tuple[dict[str, int], ...] = ({"http 503": 2, "no answer": 1}, {"http 503": 3})
    broken = [Cell(**(one.asdict() | {"failures": each})) for one, each in zip(CELLS, failures, strict=True)]  # type: ignore[arg-type]
    report.save(report.Run({"when": "now"}, broken, {}), tmp_path / "old.json")
    draw = ["--draw", str(tmp_path / "old.json"), "--out", str(tmp_path / "report")]
    done = CliRunner().invoke(bench.main, draw, catch_exceptions=False)
    assert done.exit_code == 1
    assert "requests failed: {'http 503': 5, 'no answer': 1}" in done.output
    report.save(report.Run({"when": "now"}, [], {"resnet50-plain": "no disk"}), tmp_path / "old.json")
    done = CliRunner().invoke(bench.main, draw, catch_exceptions=False)
    assert done.exit_code == 1
    assert "Nothing was measured." in done.output
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Nothing was measured." in page
    assert "requests failed" not in page


def test_what_was_measured_outlives_a_full_disk(tmp_path: Path) -> None:
    run, before = report.Run({"when": "now"}, CELLS, {}), resource.getrlimit(resource.RLIMIT_FSIZE)
    report.save(run, tmp_path / "bench.json")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="large"):
            report.save(run, tmp_path / "bench.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert report.load(tmp_path / "bench.json") == run


def test_a_service_that_does_not_start_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotServedError, match="did not become ready"), measure.serving(tmp_path / "none", tmp_path):
        pass


def test_a_report_of_other_precisions_and_graphs(tmp_path: Path) -> None:
    cells = [
        replace(one, backbone="resnet14-demo", variant=f"resnet14-demo-{kind}-int8", precision="int8")
        for one, kind in zip(CELLS, ("plain", "se"), strict=True)
    ]
    cells[1].graph = "hoisted"
    cells += [replace(one, level="http poisson 70 %", offered_per_s=70.0) for one in cells]
    cells += [replace(cells[2], level="http poisson 90 %", offered_per_s=90.0, latencies_ms=[[], [], []])]
    page = report.write(report.Run({"when": "now"}, cells, {}), tmp_path).read_text()
    assert "SE costs resnet14-demo, int8, hoisted graph 10.0 (10.0 to 10.0) % of its throughput" in page
    assert at_objective([row(one) for one in cells], cells[0].variant, 100) == (70, False), "90 were not answered"


def test_a_report_without_the_plain_network(tmp_path: Path) -> None:
    report.write(report.Run({"when": "now"}, CELLS[1:], {"resnet50-plain": "refused"}), tmp_path)
    assert (tmp_path / "stages.png").exists()


def test_networks_of_like_accuracy_are_told_apart() -> None:
    kinds: tuple[tuple[str, Kind], ...] = (("plain", "none"), ("se", "se"), ("eca", "eca"))
    cells = [cell(f"resnet14-demo-{name}", kind, "http closed 1", [20.0, 90.0]) for name, kind in kinds]
    figure = plots.accuracy([row(replace(one, backbone="resnet14-demo")) for one in cells])
    assert figure is not None
    figure.canvas.draw()
    (axis,) = figure.axes
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == len(kinds)
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert axis.get_xlim()[0] >= 0, "no latency is below zero"


def test_a_busy_machine_makes_figures_provisional() -> None:
    assert busy({"load at the start": "3.0 (1 minute)", "cores": "2"}).startswith("Others kept 3.0 of 2 cores busy")
    assert busy({"load at the start": "0.3 (1 minute)", "cores": "2"}) == ""


def test_other_files_than_ours_are_refused(tmp_path: Path) -> None:
    report.save(report.Run({}, CELLS, {}), tmp_path / "ours.json")
    ours = (tmp_path / "ours.json").read_text()
    for content in (
        "{}",
        "[1]",
        "\xff",
        ours.replace('"se"', '"magic"'),
        ours.replace("[90, 45, 72]", '["a", 45, 72]'),
    ):
        (tmp_path / "old.json").write_bytes(content.encode("latin-1"))
        done = CliRunner().invoke(bench.main, ["--compare", str(tmp_path / "old.json")])
        assert done.exit_code == 2
        assert "no bench.json of ours" in done.output
    done = CliRunner().invoke(bench.main, ["--preset", "smoke", "--out", str(tmp_path / "old.json" / "report")])
    assert done.exit_code == 2, "before anything is measured"
    done = CliRunner().invoke(bench.main, ["--attention", "magic"])
    assert "magic is none of the attentions" in done.output


def test_demo_weights_are_used_where_they_are_there() -> None:
    trained = Variant("resnet14-demo", "eca").weights
    assert trained is not None
    assert trained.exists()
    assert Variant("resnet14-demo", "cbam").weights is None
    assert Variant("resnet50", "eca", graph="hoisted").name == "resnet50-eca-hoisted"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is built for runs of seconds, once."""
    return tmp_path_factory.mktemp("bench") / "models"


def test_a_run_of_seconds(tmp_path: Path, models: Path) -> None:
    earlier = models / "repositories" / "resnet14-demo"
    noop.publish(earlier)
    np.save(earlier / noop.NAME / "1" / "golden.npy", np.zeros((4, 2, 2, 3), np.uint8))  # served, it were never ready
    done = CliRunner().invoke(
        bench.main,
        ["--preset", "smoke", "--models", str(models), "--out", str(tmp_path / "report")],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    run = report.load(tmp_path / "report" / "bench.json")
    began = time.mktime(time.strptime(run.environment["when"][:19], "%Y-%m-%d %H:%M:%S"))
    built = min(path.stat().st_mtime for path in (models / "built").iterdir())
    assert began < built, "its own builds are not others' load"
    assert {(c.variant, c.level) for c in run.cells} == {
        (f"resnet14-demo-{attention}", level.name)
        for attention in ("plain", "eca")
        for level in PRESETS["smoke"].levels
    }
    assert all(c.latencies_ms[0] and not c.failures for c in run.cells)
    assert all(
        set(c.stages_ms[0]) == {"decode", "queue", "infer", "total"} for c in run.cells if "triton" not in c.level
    )
    page = (tmp_path / "report" / "report.html").read_text()
    assert f"None of {sum(c.sent for c in run.cells)} requests failed" in page
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs nothing else"
    assert {path.name for path in (tmp_path / "report").glob("*.png")} >= {"tax.png", "tail.png", "stages.png"}


def test_whole_rounds_outlive_a_service_that_dies(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, save, asked = [], report.save, []

    async def ask(way: Way, model: str, *given: Any) -> Block:
        asked.append((type(way), model))
        return await closed_loop(way, model, *given)

    def start(*given: Any, **settings: Any) -> Service:
        services.append(conftest.start(*given, **settings))
        return services[-1]

    def saved(run: report.Run, path: Path) -> None:
        save(run, path)
        services[0].process.kill()

    monkeypatch.setattr(measure, "closed_loop", ask)
    monkeypatch.setattr(measure, "start", start)
    monkeypatch.setattr(report, "save", saved)
    given = ["--preset", "smoke", "--models", str(models), "--out", str(tmp_path)]
    done = CliRunner().invoke(bench.main, given, catch_exceptions=False)
    assert done.exit_code == 1
    assert "the service ended with status -9" in done.output
    assert f"All whole rounds are in {tmp_path / 'bench.json'}" in done.output
    every = {(way, f"resnet14-demo-{kind}") for way in (Http, GatewayGrpc, TritonGrpc) for kind in ("plain", "eca")}
    assert set(asked[: len(every)]) == every, "all are warm before the first block"
    run = report.load(tmp_path / "bench.json")
    assert len(run.cells) == 2 * len(PRESETS["smoke"].levels)
    assert all(len(cell.per_s) == 1 and not cell.failures for cell in run.cells)


def test_what_the_gateway_costs_is_counted() -> None:
    found = overhead.measure(rounds=1, seconds=0.3, callers=4)
    assert min(found.bare_ms, found.triton_ms, found.gateway_ms, found.gateway_and_triton_per_core) > 0
    assert found.gateway_and_triton_per_core < found.gateway_per_core


async def test_a_first_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine it takes longer than a short turn."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(overhead.BODY_BYTES)
        await asyncio.sleep(0.3)
        if next(answers, False):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    answers = iter([True])
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        (spent,) = await overhead.ask(port, 1, 0.05)
        assert spent > 0.29
        monkeypatch.setattr(overhead, "ANSWER_S", 0.1)
        with pytest.raises(RuntimeError, match="no answer came within 0 s"):
            await overhead.ask(port, 1, 0.05)


def test_a_gateway_stands_beside_another_checkout_s() -> None:
    command = [sys.executable, "-m", "tests.load.against", str(conftest.ROOT), "--rounds", "2", "--seconds", "0.3"]
    done = subprocess.run(command, cwd=conftest.ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"(\d+) callers: time of an answer ([\d.]+) .* processor time ([\d.]+) ", done.stdout)
    assert [callers for callers, *_ in found] == ["1", "8", "32"]
    assert all(0.05 < float(ratio) < 20 for _, *both in found for ratio in both), "they are the same"


def test_all_ways_of_tensors_are_measured_whatever_the_proxy() -> None:
    command = [sys.executable, "-m", "tests.load.transport", "--rounds", "1", "--calls", "2"]
    proxied = os.environ | {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    done = subprocess.run(
        command, env=proxied, cwd=conftest.ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"(\d+) images, message: [\d.]+ ms", done.stdout) == ["1", "8", "32"]
