"""Starts the embedded Triton, restarts it with back-off when it crashes, and stops it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

from eca_service import cgroups, leftovers
from eca_service.addresses import from_here, joined
from eca_service.triton import server
from eca_service.triton.server import TritonUnavailable

logger = logging.getLogger(__name__)

LOG_BYTES = 4 << 20
LONGEST_PAUSE_S = 30.0
HEALTHY_AFTER_S = 60.0
LEFT_S = 3.0  # what still runs when its callers have gone is a model that loads
ANSWERED = b"All models are stopped"  # Triton's words
TABLE = b"+-", b"| "  # as its lines begin


class TritonServer:
    """The server's process, watched by a thread.

    `repository` is the model repository, `host` and `grpc_port` where it listens (0: a free port), `log_file` keeps the
    server's last lines, at most 2 x 4 MiB; `trace_url` is where its spans go, if anywhere. Models are loaded by whoever
    connects: the server starts with none.
    """

    def __init__(
        self,
        repository: Path,
        grpc_port: int,
        log_file: Path,
        threads: int | None = None,
        host: str = "127.0.0.1",
        trace_url: str | None = None,
    ) -> None:
        self.repository = repository
        self.host = host
        self.port = grpc_port or server.free_port()
        self.log_file = log_file
        self.threads = threads or cgroups.cores()
        self.trace_url = trace_url
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._last_lines: deque[str] = deque(maxlen=20)
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._answered = threading.Event()  # all requests that it had when it was asked to end
        self._failed: TritonUnavailable | None = None
        self._folder = Path()
        self._held: int | None = None  # keeps it
        self._shm_prefix = ""
        # The thread that starts the process must live as long as it: PR_SET_PDEATHSIG looks at the thread.
        self._watcher = threading.Thread(target=self._watch, name="triton-watch", daemon=True)

    @property
    def address(self) -> str:
        """host:port of the server's gRPC endpoint, from this machine."""
        return joined(from_here(self.host), self.port)

    @property
    def pid(self) -> int | None:
        """The server's process, None while it is down."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    def start(self) -> None:
        """Starts the process; TritonUnavailable where it cannot. It is ready some moments later."""
        server.installation()
        if not self.repository.is_dir():
            raise TritonUnavailable(
                f"the model repository {self.repository} does not exist; `eca-build compile` makes it"
            )
        server.require_free(self.host, self.port, "Triton", "ECA_TRITON_GRPC_PORT")
        leftovers.remove("triton")
        self._shm_prefix = f"eca_triton_{os.getpid()}_{self.port}_"
        self._assemble()  # in this thread: Ctrl-C ends the compiler too
        self._watcher.start()
        self._started.wait()
        if self._failed:
            self._remove_folder()
            raise self._failed

    def stop(self, grace_s: float = 12.0, at_once: bool = False) -> None:
        """Ends the process and what it left: asked first, killed after `grace_s`.

        With `at_once`, for when its callers have gone, it is killed as soon as it has answered all: to unload its
        models takes it two seconds more. But where it has spans to send it has the time.
        """
        self._stopping.set()
        self._signal(signal.SIGTERM)
        if self._watcher.is_alive() and at_once and not self.trace_url:
            self._answered.wait(min(grace_s, LEFT_S))
        elif self._watcher.is_alive():
            self._watcher.join(grace_s)
        self._signal(signal.SIGKILL)
        if self._watcher.is_alive():
            self._watcher.join(5)
        self._clean()
        self._remove_folder()

    def last_lines(self) -> str:
        """The end of the server's log, for an error's sentence; without the tables of its options."""
        return "\n".join(self._last_lines)

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def _watch(self) -> None:
        try:
            self._keep_running()
        finally:
            self._answered.set()

    def _keep_running(self) -> None:
        pause_s = 0.5
        while not self._stopping.is_set():
            started = time.monotonic()
            self._answered.clear()
            try:
                if self.restarts:
                    self._assemble()  # what died left its files, and who cleans /tmp may have taken ours
                if self._stopping.is_set():  # meanwhile: what is started now would be told of it no more
                    return
                self._process = self._launch()
                pump = self._begin_to_pump(self._process)
            except (OSError, RuntimeError, TritonUnavailable) as error:  # RuntimeError: no thread can be begun
                if not self._started.is_set():
                    self._failed = TritonUnavailable(f"Triton could not be started: {error}")
                    self._started.set()
                    return
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                logger.error("Triton could not be started again, which is tried in %.1f s: %s", pause_s, error)
                self._stopping.wait(pause_s)
                continue
            self._started.set()
            status = self._process.wait()
            if self._stopping.is_set():
                return
            self._clean()
            pump.join(5)
            pause_s = 0.5 if time.monotonic() - started > HEALTHY_AFTER_S else min(2 * pause_s, LONGEST_PAUSE_S)
            self.restarts += 1
            logger.warning(
                "Triton ended with status %s; starting it again in %.1f s; its last lines:\n%s",
                *(status, pause_s, self.last_lines()),
            )
            self._stopping.wait(pause_s)

    def _assemble(self) -> None:
        """Makes a new folder for the server's files, in the place of the one before."""
        self._remove_folder()
        self._folder = Path(tempfile.mkdtemp(prefix=f"eca-triton-{os.getpid()}-"))
        self._held = leftovers.hold(self._folder)
        try:
            server.assemble_backends(self._folder / "backends")
            (self._folder / "temporary").mkdir()
        except BaseException:
            self._remove_folder()
            raise

    def _remove_folder(self) -> None:
        if self._held is not None:
            os.close(self._held)
            shutil.rmtree(self._folder, ignore_errors=True)
        self._held = None

    def _launch(self) -> subprocess.Popen[bytes]:
        binary, temporary = server.installation() / "bin" / "tritonserver", self._folder / "temporary"
        backends, place = self._folder / "backends", (self.port, self._shm_prefix, self.host, self.trace_url)
        return subprocess.Popen(
            server.command(binary, backends, self.repository, *place),
            env=server.environment(self.threads, temporary, backends),
            cwd=temporary,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _begin_to_pump(self, process: subprocess.Popen[bytes]) -> threading.Thread:
        # The backend's processes hold the same pipe and may outlive a killed server: its end is not awaited.
        pump = threading.Thread(target=self._pump, args=(process,), name="triton-log", daemon=True)
        try:
            pump.start()
        except RuntimeError:
            with process:  # which is awaited, and its pipe closed
                self._clean()
            raise
        return pump

    def _pump(self, process: subprocess.Popen[bytes]) -> None:
        """Copies the server's output to the log file until it ends; the file is turned over when full."""
        assert process.stdout is not None
        writes = True  # when it last tried to
        with process.stdout as stream:
            for raw in stream:
                if raw.strip() and not raw.startswith(TABLE):
                    self._last_lines.append(raw.decode(errors="replace").rstrip())
                if ANSWERED in raw:
                    self._answered.set()
                try:
                    self._append(raw)
                    writes = True
                except OSError as error:  # a full disk must not stop the reading: Triton would block on its pipe
                    reason = f"{error.strerror}; ECA_TRITON_LOG names another file"
                    if writes:
                        logger.error("Triton's log %s cannot be written: %s", self.log_file, reason)
                    writes = False

    def _append(self, raw: bytes) -> None:
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_BYTES:
            os.replace(self.log_file, self.log_file.with_suffix(self.log_file.suffix + ".1"))
        with self.log_file.open("ab") as log:
            log.write(raw)

    def _clean(self) -> None:
        """Kills what is left of the process group and removes its shared memory."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        if self._shm_prefix:
            for region in Path("/dev/shm").glob(f"{self._shm_prefix}*"):
                region.unlink(missing_ok=True)
