"""Where the embedded Triton is, and how it is started: files, command line, environment."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import platform
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from eca_service.addresses import family, joined
from eca_service.triton import libpython, native

logger = logging.getLogger(__name__)

CONTAINERS = "docker compose -f docker-compose.yml -f deploy/compose.cpu.yml up"
# The container's Triton is this one, on a newer glibc; NVIDIA's image is there for ARM too.
OLD_GLIBC = f"in a clone `{CONTAINERS}` runs it in containers; or give the address of NVIDIA's own as ECA_TRITON_URL"
OTHER_MACHINE = (
    "NVIDIA's own image runs on ARM too: give its address as ECA_TRITON_URL; or, in a clone and slowly, "
    f"`{CONTAINERS}` where Docker emulates x86-64"
)
MINIMAL_GLIBC = (2, 35)
WHEEL = "nvidia-pytriton==0.7.0"
INSTALL = "pip install 'eca-serve[triton]'"
if sys.version_info >= (3, 13):  # for which there is no numpy 1, which the wheel asks for and its server does not use
    INSTALL += f" && pip install --no-deps {WHEEL}"
# Ends with its parent, even where that is killed: sets PR_SET_PDEATHSIG to SIGKILL, then becomes the server. A parent
# that ended before that is not told of any more; so it must still be there.
LAUNCHER = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)


class TritonUnavailable(Exception):
    """The embedded server cannot run or did not start; the message is a sentence that names the way out."""


def installation() -> Path:
    """The folder of the server's binary. Raises TritonUnavailable where it is not installed or cannot run here."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise TritonUnavailable(
            f"the embedded Triton runs on Linux x86-64 only, this is {platform.system()} {platform.machine()}; "
            f"{OTHER_MACHINE}"
        )
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < MINIMAL_GLIBC:
        raise TritonUnavailable(
            f"the embedded Triton needs glibc 2.35 or newer, this is {name or 'another libc'} {version}; {OLD_GLIBC}"
        )
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise TritonUnavailable(f"the embedded Triton is not installed; {INSTALL}")
    if os.statvfs(temporary := tempfile.gettempdir()).f_flag & os.ST_NOEXEC:
        raise TritonUnavailable(
            f"{temporary} is mounted noexec, and the embedded Triton loads its backends from there; "
            "name another folder as TMPDIR"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "tritonserver"


def assemble_backends(folder: Path) -> None:
    """Fills `folder` with the Python backend, its stub for this Python, and our own backends by their names."""
    source = installation()
    python = folder / "python"
    python.mkdir(parents=True)
    for file in (source / "backends" / "python").iterdir():
        if file.is_file():
            shutil.copy2(file, python)  # Triton refuses links that lead out of the folder
    _keep_folders_here(python / "libtriton_python.so")
    stub = source / "python_backend_stubs" / libpython.VERSION / "triton_python_backend_stub"
    if not stub.exists():
        raise TritonUnavailable(
            f"the embedded Triton has no stub for Python {libpython.VERSION}; use Python 3.10 to 3.13"
        )
    stub = Path(shutil.copy2(stub, python))
    libpython.link(python)
    lacking = libpython.lacking(stub, {"LD_LIBRARY_PATH": _libraries(folder)})
    if lacking:
        stub.unlink()  # Triton would wait for it for ever; so it refuses the models that need it
    ours = Path(__file__).parent / "python_backend"
    shutil.copytree(ours, folder / "inductor")
    try:
        compiled = native.library()
    except native.NotCompiled as error:
        if lacking:
            raise TritonUnavailable(f"{error}, and {lacking}; or install g++") from None
        logger.warning("%s. %s", error, native.INSTEAD)
        shutil.copytree(ours, folder / "onnxruntime")
    else:
        if lacking:
            logger.info("engines of --target inductor are refused, for %s", lacking)
        (folder / "onnxruntime").mkdir()
        shutil.copy2(compiled, folder / "onnxruntime" / native.LIBRARY)


def _libraries(backends: Path) -> str:
    """Where the loader looks first: for the server's libraries, then for what lies beside the Python backend."""
    site = installation().parents[1]
    return f"{site / 'nvidia_pytriton.libs'}:{backends / 'python'}"


def _keep_folders_here(backend: Path) -> None:
    """Has the Python backend make its folder where the server runs: in /tmp each killed server left an empty one.

    There is no setting for it: https://github.com/triton-inference-server/python_backend/pull/380.
    """
    backend.write_bytes(backend.read_bytes().replace(b"/tmp/python_env_", b".////python_env_"))


def free_port() -> int:
    """A TCP port that nobody listens on now, on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def require_free(host: str, port: int, what: str, variable: str) -> None:
    """Raises TritonUnavailable where somebody listens on `port` already."""
    with socket.socket(family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            other = f"stop what does, or set {variable} to another port"
            advice = other if error.errno in {errno.EADDRINUSE, errno.EACCES} else "it is no address of this machine"
            raise TritonUnavailable(
                f"{what} cannot listen on {joined(host, port)} ({error.strerror}); {advice}"
            ) from None


def command(
    binary: Path,
    backends: Path,
    repository: Path,
    port: int,
    shm_prefix: str,
    host: str = "127.0.0.1",
    trace_url: str | None = None,
) -> list[str]:
    """For a child of this process: explicit model control, gRPC on `host` alone, spans to `trace_url`, all else off."""
    return [
        *(sys.executable, "-c", LAUNCHER, str(os.getpid()), str(binary)),
        f"--model-repository={repository.absolute()}",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        "--allow-http=false",
        "--allow-metrics=false",
        "--allow-grpc=true",
        f"--grpc-address={f'[{host}]' if ':' in host else host}",
        f"--grpc-port={port}",
        "--grpc-http2-min-recv-ping-interval-without-data=1000",  # the gateway asks every 2 s whether we are there
        "--exit-timeout-secs=10",
        "--log-info=true",
        *(_tracing(trace_url) if trace_url else ()),
    ]


def _tracing(url: str) -> list[str]:
    """Options that have the spans of requests which belong to a trace, and of no others, sent over OTLP/HTTP."""
    return [
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=rate=2147483647",  # of the requests without a trace, one in so many
        f"--trace-config=opentelemetry,url={url}",
        "--trace-config=opentelemetry,resource=service.name=eca-triton",
    ]


def environment(threads: int, temporary: Path, backends: Path) -> dict[str, str]:
    """What the server's process sees: its libraries, our site-packages for the backend, and little else.

    Its files go to `temporary`, where it also runs: what is unpacked there would stay where its process is killed.
    """
    kept = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG", "TZ"}}
    own = [path for path in sys.path if path.endswith("-packages")]
    return kept | {
        "TMPDIR": str(temporary),
        "LD_LIBRARY_PATH": _libraries(backends),
        "PYTHONHOME": sys.base_prefix,  # else the stub takes the standard library of the first python3 in PATH
        "ECA_SITE_PACKAGES": os.pathsep.join(own),
        "ECA_TRITON_THREADS": str(threads),
        "ECA_ONNXRUNTIME": str(native.onnxruntime() or ""),
        "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime's wheels report to their maker unless told not to
        "PYTHONDONTWRITEBYTECODE": "1",
    }
