"""The script that measures on a GPU goes through all its sections on a CPU, and keeps what it found."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs the extra `plugin`")

import torch
from eca_plugin import tuner, tuning
from eca_plugin.plan import Plan
from torch import Tensor
from torch.nn import functional

from tests.gpu import kernels, measure, sections, service, sites
from tests.gpu.measure import isolated
from tests.gpu.report import BEGIN, END, Report, Row
from tests.gpu.sections import Run

ROOT = Path(__file__).parents[2]
# What a machine with no more than PyTorch and Triton lacks of all that this repository uses.
LACKING = (
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pydantic",
    "safetensors",
    "click",
    "tqdm",
    "PIL",
    "httpx",
    "tritonclient",
)


def test_pytorch_and_triton_are_enough(tmp_path: Path) -> None:
    for name in LACKING:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError({name!r})")
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.measure", "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1000:]


def dry_run(folder: Path, sections: Sequence[str], *options: str) -> Any:
    """What a dry run of these sections has found; none lacks the time, however busy the machine."""
    only = [word for section in sections for word in ("--only", section)]
    command = [sys.executable, "-m", "tests.gpu.measure", "--dry-run", "--seconds", "3000", "--out", str(folder)]
    done = subprocess.run(
        [*command, *only, *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "measured.json").read_text())


def test_dry_run_goes_through_every_section(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    # rtx: test_portable.py; the service: tests/integration
    found = dry_run(tmp_path, ("correctness", "bandwidth", "networks", "compiled", "aot"), "--write", str(page))
    assert "dry run" in found["environment"]["chip"]
    assert found["notes_of"] == {"bandwidth": ["bandwidth of the kernels: an interpreter has none"]}
    assert not any(found["failed_of"].values())
    assert [row["right"] for row in found["sections"]["correctness"]] == ["yes"] * 3
    variants = [row["variant"] for row in found["sections"]["networks"]]
    assert {f"ECA {graph}, eager" for graph in ("plain", "hoisted", *sites.FUSED)} < set(variants)
    assert all("tax %" in row for row in found["sections"]["networks"] if row["variant"] != "baseline, eager")
    for section in ("compiled", "aot"):
        assert {row["variant"].split()[0] for row in found["sections"][section]} == {"baseline,", "SE", "ECA"}
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| tiny | ECA fused, eager | 1 |" in text


def test_a_machine_without_a_gpu_is_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.measure", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("measure: PyTorch finds no GPU here; --dry-run")


def test_figures_are_on_disk_before_the_next_comes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    report = Report(tmp_path, {"chip": "c"}, page)
    report.add("networks", {"network": "n", "ms": 1.23456})
    assert json.loads(report.file.read_text())["sections"] == {"networks": [{"network": "n", "ms": 1.23456}]}
    report.add("networks", {"network": "m", "tax %": 2.0})
    assert "| m |  | 2 |" in page.read_text()
    assert "| m |  | 2 |" in (tmp_path / "measured.md").read_text()
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the lines"):
        Report(tmp_path, {}, page)


def test_other_sections_stay_as_an_earlier_run_left_them(tmp_path: Path) -> None:
    """Of the same machine and kernels: else two short runs would leave the figures of the second alone."""
    here: Row = {"chip": "c", "kernels": "k", "command": "first"}
    first = Report(tmp_path, here)
    for first.section in ("networks", "compiled"):
        first.add(first.section, {"network": first.section})
        first.note(f"a note of {first.section}")
        first.fail(f"a failure of {first.section}")
    second = Report(tmp_path, here | {"command": "second"}, wanted=["compiled"])
    assert second.sections == {"networks": [{"network": "networks"}]}
    assert (second.notes, second.failed) == (["a note of networks"], ["a failure of networks"])
    assert "command first; second" in second.markdown()
    assert Report(tmp_path, here | {"kernels": "others"}, wanted=["compiled"]).sections == {}


def dies_of_one(run: Run) -> Iterator[Row]:
    """A section one of whose kernels ends the process, as one that writes beside its memory ends all of its GPU's."""
    told = [row["kernel"] for row in run.report.rows("s")]
    for kernel in ("a", "b", "c"):
        if kernel not in told and kernel not in run.report.failed:
            with run.report.trying(kernel):
                if kernel == "b":
                    os._exit(9)
            yield {"kernel": kernel}


def stands_still(run: Run) -> Iterator[Row]:
    """A section whose second kernel never ends."""
    yield {"kernel": "a"}
    with run.report.trying("b"):
        time.sleep(600)


def stands_still_at_one(run: Run) -> Iterator[Row]:
    """A section one of whose kernels never ends, and that knows how long they take."""
    told = [row["kernel"] for row in run.report.rows("s")]
    for kernel in ("a", "b", "c"):
        if kernel not in told and kernel not in run.report.failed:
            with run.report.trying(kernel, most_s=0.5):
                time.sleep(600 if kernel == "b" else 0)
            yield {"kernel": kernel}


def run_of(folder: Path, seconds: float) -> Run:
    """A run whose section has so many seconds."""
    return Run(folder, Report(folder, {}), "", None, 0, 1.0, time.monotonic() + seconds)


def test_a_kernel_that_ends_its_process_takes_no_other_along(tmp_path: Path) -> None:
    run = run_of(tmp_path, 120)
    isolated("s", dies_of_one, run)
    assert run.report.rows("s") == [{"kernel": "a"}, {"kernel": "c"}]
    assert run.report.failed == ["b"]
    assert run.report.notes == ["s: its process ended with status 9, with b"]


def test_a_kernel_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "GRACE_S", 30)  # until the process has begun, on a busy machine
    run = run_of(tmp_path, 0)
    isolated("s", stands_still, run)
    assert run.report.rows("s") == [{"kernel": "a"}]
    assert run.report.notes[-1] == "s: not over in its time, with b"
    assert not multiprocessing.active_children()


def test_a_kernel_that_never_ends_takes_no_other_along(tmp_path: Path) -> None:
    run = run_of(tmp_path, 120)
    isolated("s", stands_still_at_one, run)
    assert run.report.rows("s") == [{"kernel": "a"}, {"kernel": "c"}]
    assert run.report.notes == ["s: its process ended with status 1, with b"]


def test_what_was_not_tried_is_not_right(tmp_path: Path) -> None:
    run = run_of(tmp_path, -1)  # no time is left
    assert list(sections.correctness(run)) == []
    assert run.report.notes


def test_why_kernels_are_left_out_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as those in CUDA C++ where nothing compiles it: their column was missing, and nobody said why."""
    monkeypatch.setattr(tuner, "compile_all", lambda *_: ({}, Counter({"there is no compiler": 3})))
    run = run_of(tmp_path, 120)
    run.chip = 90
    assert run.compile([SITE]) == run.compile([SITE]) == {}
    assert run.report.notes == ["3 kernels left out: there is no compiler"]


def test_what_is_wrong_is_noted_and_no_longer_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the fastest kernel of a table might be one that computes nothing."""
    run = run_of(tmp_path, 120)
    label = SITE.plans()[1].label

    def difference(_call: object, _expected: object, plan: Plan, _kernel: object) -> float:
        if plan.label == SITE.plans()[2].label:
            raise RuntimeError("the driver refuses")
        return 1.0 if plan.label == label else 0.0

    monkeypatch.setattr(kernels, "difference", difference)
    monkeypatch.setattr(kernels, "exact", lambda _call: None)
    found = {what: one for one, what in sections._differences(run, [SITE], {})}
    bad = {what for what in found if found[what]}
    assert len(bad) == 2
    assert len(found) == len(SITE.plans())
    assert set(run.report.failed) == bad
    assert sorted(note[:5] for note in run.report.notes) == ["FAILE", "WRONG"]


def test_kernels_that_all_fail_alike_take_no_others_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may end its process, and a section is tried five times."""
    run = run_of(tmp_path, 120)
    run.chip = 90
    shapes = {"h": (1, 64, 56, 56), "weight": (256, 64), "bias": (256,), "gate": (1, 256)}
    product = tuning.site("GatedConv1x1", shapes, "fp16", nhwc=True, residual=True, relu=True)
    every = {(site, plan.label): None for site in (SITE, product) for plan in site.plans(90)}
    monkeypatch.setattr(tuner, "compile_all", lambda *_: (dict(every), Counter()))
    own = {label for _, label in every if label.startswith("cluster") or "wgmma" in label}
    assert len(own) > 4
    assert {label for _, label in run.compile([SITE, product])} >= own
    clusters = [plan for plan in SITE.plans(90) if plan.is_cuda]
    products = [plan for plan in product.plans(90) if "wgmma" in plan.label]
    for site, plan in ((SITE, clusters[0]), (SITE, clusters[1]), (product, products[0]), (product, products[1])):
        run.report.fail(kernels.name(site, plan))
    left = {label for _, label in run.compile([SITE, product])}
    assert left == {label for _, label in every} - own
    assert sorted(run.report.notes) == [
        f"no more kernels with {what} are tried: 2 failed" for what in ("clusters", "wgmma")
    ]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(("shape", "taps"), [((256, 56, 56), 5), ((2048, 7, 7), 7), ((16, 112, 112), 3)])
def test_a_wrong_gate_is_seen(shape: tuple[int, int, int], taps: int, dtype: Any) -> None:
    """The mean of a large map of random values is 0, and each gate a half, whatever it was computed from."""
    shapes = {"x": (1, *shape), "w": (taps,)}
    site = tuning.site("FusedECA", shapes, dtype, nhwc=True, residual=True, relu=True)
    call = tuner.Call(site, 2, "cpu", seed=1)
    x, w = (tensor.double() for tensor in call.inputs)
    assert call.residual is not None
    expected = kernels.exact(call)

    def gated(taps: Tensor) -> Tensor:
        gate = functional.conv1d(x.mean((2, 3)).unsqueeze(1), taps.view(1, 1, -1), padding=len(taps) // 2).sigmoid()
        return (x * gate.view(*x.shape[:2], 1, 1) + call.residual.double()).relu()  # type: ignore[union-attr]

    assert torch.equal(gated(w), expected)
    for wrong in (torch.zeros_like(w), w.flip(0)):
        assert float((gated(wrong) - expected).abs().max()) > 5 * kernels.TOLERANCES[dtype]


def test_the_service_waits_for_one_engine_of_each_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a build that is not told which graph makes all five, and ten of them take longer than a whole run."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    name = service._build(tmp_path, tmp_path / "repository", "eca", "epilogue", dry=True, end=time.monotonic() + 60)
    assert name == "resnet20-cifar-eca-epilogue"
    assert commands[0][commands[0].index("--attention-graph") + 1] == "epilogue"


@pytest.mark.parametrize(("arch", "count"), [("resnet50", 16), ("mobilenetv2", 17)])
def test_every_site_is_measured(arch: str, count: int) -> None:
    for graph in sites.FUSED:
        found = sites.uses(arch, graph, "fp16")
        assert sum(found.values()) == count
        assert all(site.nhwc for site in found)


SITE = tuning.site("FusedECA", {"x": (1, 256, 56, 56), "w": (5,)}, "fp16", nhwc=True, residual=True, relu=True)


def test_the_fastest_plan_is_launched(tmp_path: Path) -> None:
    plans = SITE.plans(90)
    assert not any(plan.is_cuda for plan in SITE.plans(89))
    cluster = next(plan for plan in plans if plan.is_cuda)
    taken = [cluster.label, plans[2].label, plans[0].label]
    table = tuning.Table("chip", 90, {SITE.key: taken})
    table.save(tmp_path / "kernels.json")
    read = tuning.load(tmp_path / "kernels.json", "chip")
    assert read == table
    assert tuning.load(tmp_path / "kernels.json", "another chip") is None
    assert tuning.load(tmp_path / "none.json", "chip") is None
    with tuning.use(read):
        assert tuning.plan_of(SITE, traced=False).label == cluster.label
        assert tuning.plan_of(SITE, traced=True).label == plans[2].label, "a compiler sees Triton's language alone"
    assert tuning.plan_of(SITE, traced=False).label == plans[0].label


def test_on_a_hopper_the_fastest_with_its_instructions_is_launched() -> None:
    """For PyTorch compiles every kernel with them: the fastest without may be slower than others then."""
    shapes = {"h": (1, 64, 56, 56), "weight": (256, 64), "bias": (256,), "gate": (1, 256)}
    site = tuning.site("GatedConv1x1", shapes, "fp16", nhwc=True, residual=True, relu=True)
    first, second, third, *_ = (plan.label for plan in site.plans(80))
    taken = [first, f"{second}, wgmma", second, f"{first}, wgmma"]
    assert tuning.Table("chip", 90, {site.key: taken}).plan(site, traced=True).label == f"{second}, wgmma"
    assert tuning.Table("chip", 90, {site.key: [third, *taken]}).plan(site, traced=True).label == third
