"""What stands beside the service, and what hinders it: set-ups, waiting for a core, hops from process to process."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.integration.conftest import ROOT, alive
from tests.load import accuracy, goodput, growth, handover, overhead, peer, preprocessing, soak, transport
from tests.load.processor import processor_s, tree, waited_s, waits
from tests.load.setups import setup_of, tuned


def test_set_ups_of_the_peer_test(tmp_path: Path) -> None:
    assert setup_of("instances=2,threads=1") == {"instances": "2", "threads": "1"}
    home = tmp_path / "built" / "m" / "1"
    home.mkdir(parents=True)
    (home / "contract.json").write_text('{"max_batch": 32}')
    (home.parent / "config.pbtxt").write_text(
        "max_batch_size: 32\ninstance_group [ { count: 1 kind: KIND_CPU } ]\n"
        "dynamic_batching { default_queue_policy { max_queue_size: 512 } }\nversion_policy { }\n"
    )
    tuned(tmp_path / "built", "m", tmp_path / "tuned", setup_of("instances=2,max_batch=4,preferred=2"))
    text = (tmp_path / "tuned" / "m" / "config.pbtxt").read_text()
    batching = r"dynamic_batching \{ preferred_batch_size: \[ 2 \] \}\nversion_policy"
    assert re.search(r"max_batch_size: 4\n.*count: 2 .*\n" + batching, text)
    assert json.loads((tmp_path / "tuned" / "m" / "1" / "contract.json").read_text())["max_batch"] == 4


@pytest.mark.parametrize(
    ("program", "given", "said"),
    [
        (peer.main, ["--clients", "0"], "not in the range"),
        (peer.main, ["--attention", "magic"], "is not one of"),
        (peer.main, ["--backbone", "magic"], "is not one of"),
        (peer.main, ["--ours", "threads=1", "--ours", "threads=1"], "could not be told apart"),
        (peer.main, ["--ours", "thread=1"], "thread is no setting"),
        (peer.main, ["--ours", "threads=many"], "which is no number"),
        (peer.main, ["--images", str(Path(__file__).parent)], "holds no JPEG"),
        (preprocessing.main, ["--photos", str(Path(__file__).parent)], "holds no JPEG"),
        (preprocessing.main, ["--cifar", __file__], "is no archive"),
        (accuracy.main, ["--cifar", __file__], "is no archive"),
        (overhead.main, ["--rounds", "0"], "not in the range"),
        (overhead.main, ["--seconds", "0"], "not in the range"),
        (transport.main, ["--rounds", "0"], "not in the range"),
        (transport.main, ["--calls", "0"], "not in the range"),
        (soak.main, ["--minutes", "0"], "not in the range"),
        (soak.main, ["--repository", "nowhere"], "does not exist"),
        (goodput.main, ["--repository", "nowhere"], "does not exist"),
        (goodput.main, ["--seconds", "1", "--repository", "."], "twice the deadline"),
        (goodput.main, ["--rounds", "0"], "not in the range"),
        (growth.main, ["--json", "nowhere/figures.json"], "no folder that can be written to"),
        (overhead.main, ["--json", str(Path(__file__).parent)], "is a directory"),
    ],
)
def test_what_cannot_be_measured_is_refused(program: click.Command, given: list[str], said: str) -> None:
    done = CliRunner().invoke(program, given)
    assert done.exit_code == 2
    assert said in done.output


def commands(pids: list[int]) -> str:
    """What they run."""
    files = [Path(f"/proc/{pid}/cmdline") for pid in pids]
    return " ".join(file.read_text() for file in files if file.exists())


def test_a_few_test_images_are_of_all_classes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cifar.tar", "w") as archive:
        for folder in ("train", "test"):
            for label in preprocessing.CLASSES:
                for number in range(100):
                    data = f"{folder} {label} {number}".encode()
                    member = tarfile.TarInfo(f"{folder}/{label}/{number:04}.jpg")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    images, labels = preprocessing.cifar(tmp_path / "cifar.tar", 50)
    assert labels == sorted(5 * list(range(10)))
    named = [f"test {preprocessing.CLASSES[label]} " for label in labels]
    assert all(image.decode().startswith(name) for image, name in zip(images, named, strict=True))


@pytest.mark.parametrize(
    ("command", "server", "ctrl_c"),
    [
        # as what a script starts in the background
        (["generator_cost", "--seconds", "60"], "serve_forever", "--ignore-signal=INT"),
        (["goodput", "--paced"], "eca_service.cli", "--default-signal=INT"),
    ],
)
def test_a_measurement_that_is_ended_leaves_no_server(command: list[str], server: str, ctrl_c: str) -> None:
    called = ["env", ctrl_c, sys.executable, "-m", f"tests.load.{command[0]}", *command[1:]]
    process = subprocess.Popen(called, cwd=ROOT)
    try:
        end = time.monotonic() + 60
        while server not in commands(started := list(tree(process.pid))[1:]) and time.monotonic() < end:
            time.sleep(0.1)
        assert server in commands(started)
        time.sleep(2)
        process.terminate()
        assert process.wait(30) == 1
        assert not alive(started)
    finally:
        process.kill()
        process.wait(5)


def test_a_core_that_two_want_is_waited_for() -> None:
    core = min(os.sched_getaffinity(0))
    loops = ["taskset", "-c", str(core), "sh", "-c", "while :; do :; done & while :; do :; done"]
    process = subprocess.Popen(loops, start_new_session=True)
    try:
        end = time.monotonic() + 20
        while processor_s(process.pid) < 0.2 and time.monotonic() < end:
            time.sleep(0.1)
        used, before = processor_s(process.pid), waits(process.pid)
        assert len(before) == 2
        while processor_s(process.pid) < used + 0.5 and time.monotonic() < end:
            time.sleep(0.1)
        assert processor_s(process.pid) >= used + 0.5
        assert waited_s(before, waits(process.pid)) >= 0.4, "one of the two always waits"
        assert waited_s({}, {1: 2_000_000_000}) == 2, "of a thread that is new all counts"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)


def test_processes_that_end_meanwhile_are_no_errors() -> None:
    process = subprocess.Popen(["sh", "-c", "while :; do /bin/true; done"], start_new_session=True)
    try:
        for _ in range(1000):
            assert processor_s(process.pid) >= 0
            waits(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
    with pytest.raises(OSError, match=str(process.pid)):
        processor_s(process.pid)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_hops_from_process_to_process() -> None:
    before = os.sched_getaffinity(0)
    one, other = sorted(before)[:2]
    late_ms, same = handover.hops(5, 0.0, 0.001, (one, other))
    assert late_ms > 0
    assert same == 0, "they are pinned to two cores"
    assert handover.hops(5, 0.0, 0.0, (one, one))[1] == 1
    assert os.sched_getaffinity(0) == before
    result = CliRunner().invoke(handover.main, ["--count", "3"])
    assert result.exit_code == 0, result.output
    assert result.output.count("begins after") == 4
