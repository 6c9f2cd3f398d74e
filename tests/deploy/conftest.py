"""The stack, built and brought up once; skipped with the reason where it cannot be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deploy.stack import SERVICES, Stack, missing, torch_wheels


@pytest.fixture(scope="package")
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Images built, services up, every model golden."""
    asked = any("deploy" in argument for argument in request.config.args)
    reason = missing(cold=asked)
    if reason is not None:
        pytest.skip(reason)
    running = Stack()
    try:
        with torch_wheels() as wheels:
            running.compose("build", *SERVICES, timeout_s=900, **wheels)
        running.compose("up", "-d", *SERVICES, timeout_s=300)
        running.await_ready()
        yield running
    finally:
        running.down()
