"""Several gateway processes behind the same ports, started, restarted and ended together.

HTTP: one listening socket, bound here and inherited, so that no connection waits in the queue of a worker that died or
ends. gRPC: each worker binds the port with SO_REUSEPORT, for its library takes no socket. Everything that a worker
counts lies in files of a common folder, by its index, so that a restarted worker goes on counting where it ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from eca_service import addresses, leftovers, logs, metrics
from eca_service.access import RATES
from eca_service.peers import Peers, make_board
from eca_service.rates import make_table
from eca_service.settings import Settings
from eca_service.stopping import Stopping

logger = logging.getLogger(__name__)
HEALTHY_AFTER_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 30.0
LOOK_EVERY_S = 0.1
HUNG_S = 30.0
BACKLOG = 2048
PR_SET_PDEATHSIG = 1
BOARD = "board"


@dataclass
class _Worker:
    index: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    start_at: float = 0.0
    again: bool = False  # is started whenever it ends: it has answered, or another does
    beat: int = 0
    still_s: float = 0.0


def supervise(settings: Settings) -> int:
    """Runs `settings.workers` gateways until it is asked to end, and then until all have drained; the exit code.

    A second signal ends them at once. A worker that dies is started again, and one whose event loop has stood still for
    HUNG_S is killed and so is too; where one ends before any has begun to answer, all end.
    """
    with Stopping() as stopping:
        return _supervise(settings, stopping)


def _supervise(settings: Settings, stopping: Stopping) -> int:
    leftovers.remove("workers")
    folder = Path(tempfile.mkdtemp(prefix=f"eca-workers-{os.getpid()}-"))
    held = leftovers.hold(folder)
    try:
        return _run(settings, stopping, folder)
    finally:
        os.close(held)
        shutil.rmtree(folder, ignore_errors=True)


def _run(settings: Settings, stopping: Stopping, folder: Path) -> int:
    for index in range(settings.workers):
        metrics.reserve(folder, index)
    listener = addresses.listener(settings.host, settings.http_port, BACKLOG)
    make_board(folder / BOARD, settings.workers)
    make_table(folder / RATES)
    peers, workers = Peers(-1, folder / BOARD), [_Worker(index) for index in range(settings.workers)]
    shared, patience_s = share(settings), (settings.drain_delay_ms + settings.grace_ms) / 1000 + 15
    try:
        while True:
            for worker in workers:
                _kill_if_hung(worker, peers)
                if _ended(worker, peers, folder) and not worker.again:
                    return 1  # it said why itself
                if worker.process is None and time.monotonic() >= worker.start_at:
                    if not (folder / BOARD).exists():
                        logger.error("%s was removed, and no worker can start without it: ending", folder)
                        return _end(workers, stopping, patience_s) or 1
                    try:
                        _start(worker, shared, listener, folder)
                    except OSError as error:
                        if not worker.again:
                            raise
                        _wait_longer(worker)
                        logger.error(
                            "worker %d could not be started, which is tried again in %.1f s: %s",
                            *(worker.index, worker.pause_s, error),
                        )
            if stopping.asked(LOOK_EVERY_S):
                break
        listener.close()
        return _end(workers, stopping, patience_s)
    finally:
        listener.close()
        for worker in workers:
            if worker.process and worker.process.poll() is None:
                worker.process.kill()
                worker.process.wait()


def share(settings: Settings) -> Settings:
    """One worker's part of the service's limits; large enough for the largest request that the service takes."""
    count = settings.workers
    return settings.model_copy(
        update={
            "max_inflight_images": max(
                -(-settings.max_inflight_images // count), min(settings.max_images, settings.max_inflight_images)
            ),
            "max_inflight_bytes": max(
                -(-settings.max_inflight_bytes // count), min(settings.max_body_bytes, settings.max_inflight_bytes)
            ),
            "decode_threads": max(1, settings.decode_threads // count),
        }
    )


def _start(worker: _Worker, settings: Settings, listener: socket.socket, folder: Path) -> None:
    told = {
        "settings": settings.model_dump(mode="json"),
        "listener": listener.fileno(),
        "index": worker.index,
        "board": str(folder / BOARD),
        "parent": os.getpid(),
    }
    worker.process = subprocess.Popen(
        [sys.executable, "-c", "from eca_service.workers import work; work()"],
        env=os.environ | metrics.shared_by(folder, worker.index),
        stdin=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        start_new_session=True,  # a terminal's Ctrl-C is for us, who pass it on
    )
    worker.started = time.monotonic()
    assert worker.process.stdin is not None
    with contextlib.suppress(BrokenPipeError), worker.process.stdin as pipe:
        pipe.write(json.dumps(told).encode())


def _kill_if_hung(worker: _Worker, peers: Peers) -> None:
    """What it has of callers waits for ever: it holds their connections, and over gRPC it is sent new ones.

    Time is counted in looks, not by a clock: while we stood still ourselves, the worker may have had to as well. Before
    its first beat it holds up nobody, and on a busy machine it may take long to start.
    """
    before, worker.beat = worker.beat, peers.last_beat(worker.index)
    worker.still_s = worker.still_s + LOOK_EVERY_S if worker.beat and worker.beat == before else 0.0
    if worker.process and worker.still_s > HUNG_S:
        logger.error("worker %d hangs: its event loop has stood still for %.0f s; killing it", worker.index, HUNG_S)
        worker.process.kill()
        worker.still_s = 0.0


def _ended(worker: _Worker, peers: Peers, folder: Path) -> bool:
    """Whether the worker has just ended; when it is to be started again is noted."""
    if worker.process is None or worker.process.poll() is None:
        return False
    status, worker.process = worker.process.returncode, None
    lived_s = time.monotonic() - worker.started
    worker.again |= peers.others_listen
    peers.ended(worker.index)
    metrics.ended(folder, worker.index)
    worker.pause_s = 0.0 if lived_s > HEALTHY_AFTER_S else worker.pause_s
    _wait_longer(worker)
    logger.error("worker %d ended with status %s; starting it again in %.1f s", worker.index, status, worker.pause_s)
    return True


def _wait_longer(worker: _Worker) -> None:
    worker.pause_s = min(2 * worker.pause_s, LONGEST_PAUSE_S) or FIRST_PAUSE_S
    worker.start_at = time.monotonic() + worker.pause_s


def _end(workers: list[_Worker], stopping: Stopping, patience_s: float) -> int:
    """Passes the signal on and waits for all; 0 where every worker ended by itself."""
    processes = [worker.process for worker in workers if worker.process]
    for process in processes:
        process.terminate()
    end = time.monotonic() + patience_s
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        if stopping.asked(within_s=0.05):
            for process in processes:
                process.terminate()
    # a worker that SIGTERM itself ended had not begun to answer yet
    return 0 if all(process.poll() in {0, -signal.SIGTERM} for process in processes) else 1


def work() -> None:
    """The process of one worker; standard input says which."""
    told = json.load(sys.stdin)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it ends with its supervisor, even where that is killed
    if os.getppid() != told["parent"]:
        return
    from eca_service.gateway import serve

    settings = Settings(**told["settings"])
    logs.start(settings.log_format, settings.log_level)
    peers = Peers(told["index"], Path(told["board"]))
    serve(settings, socket.socket(fileno=told["listener"]), peers)
