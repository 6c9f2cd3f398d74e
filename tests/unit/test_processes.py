"""A process that runs an engine: what it says last, and what happens where it hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from eca_build import processes
from eca_build.errors import BuildError

# two threads, each of which waits for what the other has, and looks again and again as Python's own lock does
HANGS = """
import os, sys, threading, time
open(sys.argv[1], "w").write(str(os.getpid()))
first, second, both = threading.Lock(), threading.Lock(), threading.Barrier(2)
def wait(mine, other):
    with mine:
        both.wait()
        end = time.monotonic() + 60  # if nobody ends it
        while not other.acquire(timeout=0.005):
            if time.monotonic() > end:
                os._exit(0)
for locks in ((first, second), (second, first)):
    threading.Thread(target=wait, args=locks).start()
"""
# works for longer than it may stand still
WORKS = """
import sys, time
while time.process_time() < 1.5:
    pass
open(sys.argv[1], "w").write("done")
"""
# takes what comes after it to where it has a thirtieth of a core, less than LEAST: beside a loop, to which it is nice.
# It has its turn every tenth of a second, and on a machine with other work ten times as seldom.
STARVES = "import os; os.sched_setaffinity(0, {%d}); os.nice(15)\n"
# works for a time, whatever it gets of a core
SPINS = """
import sys, time
end = time.monotonic() + 6.5
while time.monotonic() < end:
    pass
open(sys.argv[1], "w").write("done")
"""


def test_one_that_stands_still_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STILL_S", 2.0)
    _is_ended(HANGS, tmp_path)


def test_one_that_was_stopped_with_us_goes_on(tmp_path: Path) -> None:
    """By Ctrl-Z, and `fg` later."""
    pid, works = tmp_path / "pid", "import time; time.sleep(1.5); print('done')"
    ours = (
        "import os, sys; from eca_build import processes; processes.STILL_S = 3.0; processes.STOOD_S = 1.0\n"
        f"open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        f"print(processes.run([sys.executable, '-c', {works!r}], 'it failed'))"
    )
    with subprocess.Popen([sys.executable, "-c", ours], start_new_session=True, stdout=subprocess.PIPE) as process:
        try:
            while not pid.exists():
                time.sleep(0.05)
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGSTOP)
            time.sleep(5)
        finally:
            os.killpg(process.pid, signal.SIGCONT)
        printed, _ = process.communicate(timeout=30)
    assert printed == b"done\n\n"


def _is_ended(hangs: str, tmp_path: Path) -> None:
    started = time.monotonic()
    sentence = r"^the engine could not be run: it made no progress for \d s and was ended; build again$"
    with pytest.raises(BuildError, match=sentence):
        processes.run([sys.executable, "-c", hangs, str(tmp_path / "pid")], "the engine could not be run")
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()
    assert time.monotonic() - started < 30, "it did not end itself"


@pytest.fixture
def busy_core() -> Iterator[int]:
    """A core on which somebody else's loop runs."""
    core = min(os.sched_getaffinity(0))
    loop = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", loop]) as other:
        yield core
        other.kill()


def test_one_that_waits_for_a_core_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy_core: int
) -> None:
    monkeypatch.setattr(processes, "STILL_S", 2.0)
    processes.run([sys.executable, "-c", STARVES % busy_core + SPINS, str(tmp_path / "told")], "never said")
    assert (tmp_path / "told").read_text() == "done"


def test_one_that_stands_still_is_ended_on_a_busy_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy_core: int
) -> None:
    """It too waits for a core, whenever it looks whether it may go on; seldom here, for others may work there too."""
    monkeypatch.setattr(processes, "STILL_S", 4.0)
    _is_ended(STARVES % busy_core + HANGS.replace("0.005", "0.03"), tmp_path)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """One may stand still for a second. What works may have little of the processor in it: any counts."""
    monkeypatch.setattr(processes, "STILL_S", 1.0)
    monkeypatch.setattr(processes, "LEAST", 1e-3)


def test_one_that_works_is_waited_for(tmp_path: Path, soon: None) -> None:
    processes.run([sys.executable, "-c", WORKS, str(tmp_path / "told")], "never said")
    assert (tmp_path / "told").read_text() == "done"


def test_one_whose_child_works_is_waited_for(tmp_path: Path, soon: None) -> None:
    """As PyTorch's compiler waits for the C++ compiler."""
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORKS!r}, sys.argv[1]])"
    processes.run([sys.executable, "-c", starts, str(tmp_path / "told")], "never said")
    assert (tmp_path / "told").read_text() == "done"


def test_files_of_the_folder_that_the_user_is_in_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("random", "numbers", "runpy", "numpy"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\nraise SystemExit('the user\\'s own')\n")
    monkeypatch.chdir(tmp_path)
    for name in ("verify", "measure"):
        with pytest.raises(BuildError, match="required positional argument"):
            processes.run(processes.module(f"eca_build.{name}"), "it failed")
    assert not (tmp_path / "ran").exists()


def test_what_it_printed() -> None:
    assert processes.run([sys.executable, "-c", "print('made')"], "never said") == "made\n"


def test_what_it_says_last_is_told() -> None:
    with pytest.raises(BuildError, match=r"^it failed: no such thing$"):
        processes.run([sys.executable, "-c", "import sys; sys.exit('one\\nno such thing')"], "it failed")
    with pytest.raises(BuildError, match=r"^it failed: SIGKILL ended it, as Linux does where memory runs out$"):
        processes.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], "it failed")
    with pytest.raises(BuildError, match=r"^it failed: no such thing; SIGABRT ended it$"):
        processes.run(
            [sys.executable, "-c", "import os; print('no such thing', flush=True); os.kill(os.getpid(), 6)"],
            "it failed",
        )
    with pytest.raises(BuildError, match=r"^it failed: exit status 3$"):
        processes.run([sys.executable, "-c", "raise SystemExit(3)"], "it failed")
