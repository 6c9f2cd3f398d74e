"""Several gateway processes behind the same ports: one dies and the service goes on, all end and nothing is lost."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import grpc
import httpx
from eca_service.triton.supervisor import TritonServer

from tests.integration.callers import call
from tests.integration.conftest import FRESH, MODEL, Service, alive, ending, golden_png, ready, start
from tests.integration.traffic import Load
from tests.load import noop
from tests.ports import free_port

READY = re.compile(rf'^eca_model_ready{{model="{MODEL}",version="1"}} 1.0$', re.MULTILINE)  # in all processes


def workers_of(service: Service) -> list[int]:
    """The gateway processes, by process id."""
    commands = {}
    for pid in service.children():
        try:
            commands[pid] = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
    return sorted(pid for pid, command in commands.items() if b"eca_service.workers" in command)


def answered(service: Service) -> float:
    """Requests answered `ok`, over all protocols and workers."""
    rows = re.findall(r'^eca_requests_total{code="ok",model="' + MODEL + r'",.*} (\S+)$', scrape(service), re.MULTILINE)
    return sum(map(float, rows))


def scrape(service: Service) -> str:
    """/metrics, over a connection of its own."""
    return FRESH.get(service.url + "/metrics").text


def counted_by_all(service: Service) -> float:
    """`answered`, once every worker has: over HTTP it counts a request a moment after its answer, before the next."""
    for _ in range(16):  # connections, of which each worker has some
        scrape(service)
    return answered(service)


def told(service: Service, said: str, times: int = 1) -> None:
    """Returns once the log says so."""
    end = time.monotonic() + 60
    while service.log.read_text().count(said) < times:
        assert time.monotonic() < end, service.log.read_text()
        time.sleep(0.05)


def answers(service: Service, repository: Path, model: str = noop.NAME) -> None:
    """Whichever worker is asked."""
    image = golden_png(repository, model)
    for protocol in ("rest", "grpc") * 8:
        assert call(protocol, service, model, [image]).code == "ok"


def test_a_worker_dies_and_all_end(repository: Path, tmp_path: Path) -> None:
    running = start(repository, tmp_path, workers=2)
    pids: list[int] = []
    with ending(running):
        end = time.monotonic() + 30
        while running.log.read_text().count(f"{MODEL} version 1 is ready") < 2:  # each worker says so
            assert time.monotonic() < end, running.log.read_text()
            time.sleep(0.1)
        image, before = golden_png(repository, MODEL), workers_of(running)
        load = Load(running, image)
        load.until(60)
        os.kill(before[0], signal.SIGKILL)
        load.round()  # what it held is lost with it; what comes after is not
        broken = load.codes.copy() - load.kept.copy()
        del broken["ok"]
        assert broken.total() <= len(Load.CALLERS), broken
        kept, end = load.kept["ok"], time.monotonic() + 5  # gRPC itself pauses for a second where it cannot connect
        while load.kept["ok"] == kept:
            assert time.monotonic() < end, load.kept
            time.sleep(0.05)
        load.codes.clear()
        load.until(60)
        end = time.monotonic() + 30
        while len(workers_of(running)) < 2 or not READY.search(scrape(running)):
            assert time.monotonic() < end, running.log.read_text()
            time.sleep(0.05)
        load.until(60)
        assert FRESH.get(running.url + "/readyz").status_code == 200
        codes = load.end()
        assert set(codes) == {"ok"}, codes
        after = workers_of(running)
        assert (len(after), before[1] in after, before[0] in after) == (2, True, False)

        counted = counted_by_all(running)
        for protocol in ("rest", "grpc", "oip-json") * 7:
            assert call(protocol, running, MODEL, [image]).code == "ok"
        assert counted_by_all(running) == counted + 21
        assert {answered(running) for _ in range(8)} == {counted + 21}, "whichever worker is asked"
        text = scrape(running)
        assert counted >= codes["ok"]
        assert "eca_inflight 0.0" in text, "the dead worker's are not counted"
        assert READY.search(text)
        assert "eca_build_info{" in text

        pids = running.children()
        load = Load(running, image)
        load.until(60)
        running.process.send_signal(signal.SIGTERM)
        codes = load.turned_away()
        assert running.process.wait(30) == 0, running.log.read_text()
        assert codes["ok"] >= 60
        assert set(codes) <= {"ok", "draining", "refused", "unavailable"}, codes
    assert alive(pids) == []
    assert list(Path(tempfile.gettempdir()).glob(f"eca-workers-{running.process.pid}-*")) == []


def test_a_worker_that_hangs_is_replaced_and_one_that_all_slept_with_is_not(repository: Path, tmp_path: Path) -> None:
    running = start(repository, tmp_path, workers=2, before="from eca_service import workers; workers.HUNG_S = 5")

    try:
        running.await_ready()
        before = workers_of(running)
        everybody = [running.process.pid, *running.children()]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(7)
        for pid in reversed(everybody):
            os.kill(pid, signal.SIGCONT)
        time.sleep(2)
        answers(running, repository, MODEL)
        assert workers_of(running) == before

        os.kill(before[0], signal.SIGSTOP)
        told(running, "hangs: its event loop has stood still for 5 s; killing it")
        told(running, "ended with status -9; starting it again")
        end = time.monotonic() + 60
        while len(workers_of(running)) < 2 or not READY.search(scrape(running)):
            assert time.monotonic() < end, running.log.read_text()
            time.sleep(0.1)
        answers(running, repository, MODEL)
        after = workers_of(running)
        assert (before[0] in after, before[1] in after) == (False, True)
        assert running.log.read_text().count("hangs: ") == 1
    finally:
        for pid in running.children():
            os.kill(pid, signal.SIGCONT)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(40) == 0, running.log.read_text()


def _connections(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_nothing_outlives_the_supervisor(repository: Path, tmp_path: Path) -> None:
    running = start(repository, tmp_path, workers=2)
    running.await_ready()
    pids = running.children()
    assert len(workers_of(running)) == 2
    running.process.kill()
    running.process.wait(10)
    end = time.monotonic() + 10
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert alive(pids) == []


def test_callers_are_spread(repository: Path, tmp_path: Path) -> None:
    """Connections over both protocols reach both workers."""
    with ready(repository, tmp_path, workers=2) as running:
        end = time.monotonic() + 30
        while "worker 1" in FRESH.get(running.url + "/readyz").text or len(workers_of(running)) < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        before = {pid: _connections(pid) for pid in workers_of(running)}
        channels = [grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}", [("grpc.x", i)]) for i in range(30)]
        clients = [httpx.Client() for _ in range(30)]
        for channel in channels:
            grpc.channel_ready_future(channel).result(20)
        for client in clients:
            assert client.get(running.url + "/livez").status_code == 200
        found = {pid: _connections(pid) - count for pid, count in before.items()}
        assert min(found.values()) >= 10, found
        for channel in channels:
            channel.close()
        for client in clients:
            client.close()


def test_one_that_comes_in_another_s_place_without_a_triton_ends_when_it_is_asked(tmp_path: Path) -> None:
    noop.publish(tmp_path / "repository", crop=32)
    nobody = "127.0.0.1:1"
    running = start(tmp_path / "repository", tmp_path, "gateway", triton_url=nobody, workers=2, grace_ms=0)
    try:
        running.await_ready("/livez")
        waits = "Triton Inference Server is not reachable yet; waiting for it"
        told(running, waits, times=2)
        os.kill(workers_of(running)[0], signal.SIGKILL)
        told(running, waits, times=3)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(8) == 0, running.log.read_text()
    finally:
        running.process.kill()
        running.process.wait(10)


def test_it_is_said_once_that_the_service_is_ready_whichever_worker_died_before(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    noop.publish(repository, crop=32)
    triton = TritonServer(repository, free_port(), tmp_path / "triton.log")
    running = start(repository, tmp_path, "gateway", triton_url=triton.address, workers=2)
    try:
        waits = "Triton Inference Server is not reachable yet; waiting for it"
        told(running, waits, times=2)
        for pid in workers_of(running):
            seen = running.log.read_text().count(waits)
            os.kill(pid, signal.SIGKILL)
            told(running, waits, times=seen + 1)
        triton.start()
        told(running, "noop version 1 is ready", times=2)
        told(running, "ECA Serve is ready")
        os.kill(workers_of(running)[0], signal.SIGKILL)
        told(running, "noop version 1 is ready", times=3)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(40) == 0, running.log.read_text()
        assert running.log.read_text().count("ECA Serve is ready") == 1
    finally:
        running.process.kill()
        running.process.wait(10)
        triton.stop(at_once=True)


PORT_LATE = """
import asyncio
from pathlib import Path
from eca_service.grpc_server import GrpcServer
start = GrpcServer.start
async def start_late(self):
    while not Path({go!r}).exists():
        await asyncio.sleep(0.01)
    await start(self)
GrpcServer.start = start_late
"""


def test_it_is_said_to_be_ready_once_its_ports_are_open(tmp_path: Path) -> None:
    noop.publish(tmp_path / "repository", crop=32)
    go = tmp_path / "go"
    running = start(tmp_path / "repository", tmp_path, before=PORT_LATE.format(go=str(go)))
    try:
        told(running, "noop version 1 is ready")
        time.sleep(1)
        assert "ECA Serve is ready" not in running.log.read_text()
        go.touch()
        told(running, "ECA Serve is ready")
    finally:
        go.touch()
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(40)


FAILS_ONCE = """
from eca_service import workers
start, times = workers._start, []
def start_or_fail(*given):
    times.append(given)
    if len(times) == 3:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    start(*given)
workers._start = start_or_fail
"""


SECOND_LATE = """
import time
from eca_service import workers
start = workers._start
def start_late(worker, *given):
    time.sleep(0 if worker.again else 8 * worker.index)
    start(worker, *given)
workers._start = start_late
"""


def test_one_that_starts_late_makes_the_service_no_less_ready(tmp_path: Path) -> None:
    """As where processes start slowly: who was told that all is ready is answered, also where it dies again."""
    noop.publish(tmp_path / "repository", crop=32)
    image = golden_png(tmp_path / "repository", noop.NAME)
    with ready(tmp_path / "repository", tmp_path, workers=2, before=SECOND_LATE) as running:
        before, codes, end = running.log.read_text(), set(), time.monotonic() + 60
        assert before.count("noop version 1 is ready") == 1, "the other has not begun"
        while len(workers_of(running)) < 2:
            assert time.monotonic() < end, "the other begins"
        os.kill(max(workers_of(running)), signal.SIGKILL)
        while running.log.read_text().count("noop version 1 is ready") < 2:
            assert time.monotonic() < end, running.log.read_text()
            codes |= {call(protocol, running, noop.NAME, [image]).code for protocol in ("rest", "grpc")}
            codes |= {str(FRESH.get(running.url + "/readyz").status_code)}
        told(running, "noop version 1 is ready", times=2)
        answers(running, tmp_path / "repository")
        assert codes == {"ok", "200"}


def test_a_worker_that_cannot_be_started_again_at_once_comes_back(tmp_path: Path) -> None:
    """As where there are as many processes as may be, for a moment."""
    repository = tmp_path / "repository"
    noop.publish(repository, crop=32)
    with ready(repository, tmp_path, workers=2, before=FAILS_ONCE) as running:
        told(running, "noop version 1 is ready", times=2)
        before = workers_of(running)
        os.kill(before[0], signal.SIGKILL)
        told(running, "could not be started, which is tried again in")
        told(running, "noop version 1 is ready", times=3)
        answers(running, repository)
        after = workers_of(running)
        assert (len(after), before[1] in after) == (2, True)


def test_where_the_workers_files_were_removed_what_runs_goes_on_and_nothing_is_started(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    noop.publish(repository, crop=32)
    running = start(repository, tmp_path, workers=2)
    try:
        running.await_ready()
        told(running, "noop version 1 is ready", times=2)
        (folder,) = Path(tempfile.gettempdir()).glob(f"eca-workers-{running.process.pid}-*")
        for _ in range(4):  # until each has mapped what it counts in
            answers(running, repository)
        shutil.rmtree(folder)
        answers(running, repository)
        assert FRESH.get(running.url + "/readyz").status_code == 200
        os.kill(workers_of(running)[0], signal.SIGKILL)
        assert running.process.wait(30) == 1
        assert f"{folder} was removed, and no worker can start without it: ending" in running.log.read_text()
        assert "Traceback" not in running.log.read_text()
    finally:
        running.process.kill()
        running.process.wait(10)
