"""`--require NAME`: on a machine that must have it, a test that skips for want of it fails."""

from __future__ import annotations

from collections.abc import Generator

import pytest

NO_GPU = "PyTorch finds no GPU here"
REASONS = {"gpu": NO_GPU}  # what the skips say


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
