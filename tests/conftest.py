"""`--require NAME`: on a machine that must have it, a test that skips for want of it fails.

And what processes that share the tests (`pytest -n 2`) have to know: a file's tests stay together, and one that is
marked `quiet` has the machine to itself.
"""

from __future__ import annotations

import fcntl
import gc
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

NO_GPU = "PyTorch finds no GPU here"
REASONS = {"gpu": NO_GPU}  # what the skips say

# What a script starts in the background ignores Ctrl-C, and so would all that is started from here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option."""
    parser.addoption(
        "--require",
        action="append",
        default=[],
        choices=sorted(REASONS),
        help="what this machine must have: tests that would skip for want of it fail",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Makes the skip of a test that is required a failure."""
    report = yield
    reason = report.longrepr[-1] if report.skipped and isinstance(report.longrepr, tuple) else ""
    if any(REASONS[name] in reason for name in item.config.getoption("--require")):
        report.outcome = "failed"
        report.longrepr = f"--require forbids to skip: {reason}"
    return report


class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Keeps together what shares fixtures: the tests of a file, and all that try the deployed stack."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/deploy" if file.startswith("tests/deploy/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Which of the processes gets which tests."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with two files of long tests, so that no `quiet` one waits for these: one needs no service, and for the
    other all is built that services serve. Ends with short files, for whoever runs the last one runs alone.
    """
    first = ("tests/unit/test_graphs.py", "tests/integration/test_engines.py")
    last = ("tests/unit/test_tensorrt_rtx.py", "tests/unit/")

    def place(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        if file in first:
            return first.index(file)
        return next((3 + at for at, start in enumerate(last) if file.startswith(start)), 2)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What was imported stays: that it is looked through for garbage again and again is a tenth of an export's time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_unconfigure() -> None:
    """Nor is it looked through at the end, for seconds."""
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Where processes share the tests, a `quiet` one waits for the others' to end, and they for it."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    with Path(__file__).open() as room:
        with (Path(__file__).parent / "__init__.py").open() as door:
            fcntl.flock(door, fcntl.LOCK_EX)  # first come, first served: nobody passes one who waits
            fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("quiet") else fcntl.LOCK_SH)
        return (yield)
