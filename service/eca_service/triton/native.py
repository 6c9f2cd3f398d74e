"""The backend in `native_backend/`, compiled for this machine: once, by the C++ compiler that is there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "native_backend"
LIBRARY = "libtriton_onnxruntime.so"  # Triton finds a backend by this name
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread", "-ldl")
COMPILE_S = 300
UNFINISHED = ".compiling-"
INSTEAD = "Triton's backend in Python is used instead, which answers the same and is slower"


class NotCompiled(Exception):
    """There is no such backend for this machine; the message is a sentence that says why."""


def library() -> Path:
    """The compiled backend: shipped beside its sources, compiled before, or compiled now, in some seconds.

    It is kept in the user's cache folder, by all that it was made of. `CXX` names another compiler; empty, none. Raises
    NotCompiled.
    """
    if onnxruntime() is None:
        raise NotCompiled("this release of onnxruntime has no library for C++; a newer one has")
    if (shipped := SOURCES / LIBRARY).exists():
        return shipped
    command = [*_compiler(), *FLAGS, *_openvino()]
    made_of = hashlib.sha256("\0".join(command).encode())
    for source in sorted(SOURCES.iterdir()):
        made_of.update(source.name.encode() + source.read_bytes())
    home = _cache() / "eca-serve"
    found = home / f"backend-{made_of.hexdigest()[:16]}.so"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(home):
            for left in home.glob(f"{UNFINISHED}*"):  # by one that was killed
                shutil.rmtree(left, ignore_errors=True)
            if not found.exists():
                logger.info("compiling Triton's backend, once")
                compile_to(found, command)
    except OSError as error:
        raise NotCompiled(
            f"{home} cannot hold the compiled backend: {error.strerror}; XDG_CACHE_HOME names another folder"
        ) from None
    return found


def _cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # of a user whom the system does not know
        raise NotCompiled("there is no home folder for the compiled backend; XDG_CACHE_HOME names a folder") from None


def compile_to(target: Path, command: list[str] | None = None) -> None:
    """Compiles the sources to `target`, which appears when it is whole. Raises NotCompiled, OSError.

    Ctrl-C and, in the main thread, SIGTERM end the compiler too, and leave no file.
    """
    sources = sorted(str(source) for source in SOURCES.glob("*.cpp"))
    command = command or [*_compiler(), *FLAGS, *_openvino()]
    with _sigterm_raises(), tempfile.TemporaryDirectory(dir=target.parent, prefix=UNFINISHED) as folder:
        made = Path(folder) / LIBRARY
        # libraries come after what needs them
        code, stderr = _run([command[0], *sources, *command[1:], "-o", str(made)], folder)
        if code:
            errors = [line for line in stderr.splitlines() if "error" in line] or stderr.splitlines()
            raise NotCompiled(f"{command[0]} does not compile Triton's backend: {errors[0] if errors else 'no reason'}")
        os.replace(made, target)


def _run(command: list[str], temporary: str) -> tuple[int, str]:
    """The exit code and stderr; whatever ends the wait ends the compiler with all that it has started."""
    try:
        process = subprocess.Popen(
            command,
            env=os.environ | {"TMPDIR": temporary},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        raise NotCompiled(f"{command[0]} does not run: {error.strerror}") from None
    try:
        _, stderr = process.communicate(timeout=COMPILE_S)
        return process.returncode, stderr
    except subprocess.TimeoutExpired:
        raise NotCompiled(f"{command[0]} does not end within {COMPILE_S} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def onnxruntime() -> Path | None:
    """The library of the installed onnxruntime, if it has one for other languages than Python."""
    return next(_files("onnxruntime", "capi/libonnxruntime.so.*"), None)


def _compiler() -> list[str]:
    asked = os.environ.get("CXX")
    names = COMPILERS if asked is None else (asked,)
    for name in names:
        words = shlex.split(name)
        if words and (path := shutil.which(words[0])):
            return [path, *words[1:]]
    if asked is not None:
        raise NotCompiled(f"CXX={asked!r} is not a compiler")
    raise NotCompiled("there is no C++ compiler; `apt install g++` or the like brings one")


def _openvino() -> list[str]:
    """What adds OpenVINO's engines, where its headers and library are installed."""
    headers = next(_files("openvino", "include"), None)
    runtime = next(_files("openvino", "libs/libopenvino.so.*"), None)
    if not headers or not runtime:
        return []
    return ["-DECA_OPENVINO", f"-isystem{headers}", str(runtime), f"-Wl,-rpath,{runtime.parent}"]


def _files(package: str, pattern: str) -> Iterator[Path]:
    with contextlib.suppress(ImportError):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            yield from Path(folder).glob(pattern)


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """No two processes compile at once."""
    with (home / "backend.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":  # to ship it, as the container's image does
    if len(sys.argv) != 2:
        sys.exit("usage: python -m eca_service.triton.native FOLDER")
    try:
        compile_to(Path(sys.argv[1]) / LIBRARY)
    except (NotCompiled, OSError) as error:
        sys.exit(str(error))
