"""The compiled backend: once for a machine, whole or not at all, and a sentence where it cannot be."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from eca_service.triton import native, server

pytestmark = pytest.mark.skipif(native.onnxruntime() is None, reason="needs an onnxruntime with a library for C++")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "eca-serve"


def compiler(folder: Path, script: str) -> str:
    """A program that stands for a compiler; the file to be made is its last argument."""
    program = folder / "compiler"
    program.write_text(f"#!/bin/sh\necho run >> {folder}/runs\nfor made; do :; done\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_it_is_compiled_once_though_many_ask_at_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, 'sleep 0.2; echo library > "$made"'))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(native.library())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "runs").read_text() == "run\n"
    assert len(found) == 4
    assert len(set(found)) == 1
    assert found[0].read_text() == "library\n"
    assert sorted(home.iterdir()) == sorted([found[0], home / "backend.lock"])


def test_other_sources_are_compiled_anew(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, 'echo library > "$made"'))
    sources = tmp_path / "sources"
    shutil.copytree(native.SOURCES, sources)
    monkeypatch.setattr(native, "SOURCES", sources)
    first = native.library()
    (sources / "queue.cpp").write_text("// changed")
    assert native.library() != first


def test_what_is_shipped_needs_no_compiler(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "")
    (tmp_path / native.LIBRARY).touch()
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    assert native.library() == tmp_path / native.LIBRARY


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'queue.cpp:1: error: no such header' >&2; exit 1", "queue.cpp:1: error: no such header"),
        ("echo half > $made; exit 1", "no reason"),
    ],
)
def test_a_compiler_that_fails_leaves_a_sentence_and_no_files(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    with pytest.raises(native.NotCompiled, match="does not compile Triton's backend") as raised:
        native.library()
    assert says in str(raised.value)
    assert list(home.iterdir()) == [home / "backend.lock"]


@pytest.mark.parametrize(
    ("asked", "says"), [("", "CXX='' is not a compiler"), ("no-such-program -O1", "is not a compiler")]
)
def test_without_a_compiler(home: Path, monkeypatch: pytest.MonkeyPatch, asked: str, says: str) -> None:
    monkeypatch.setenv("CXX", asked)
    with pytest.raises(native.NotCompiled) as raised:
        native.library()
    assert says in str(raised.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_ends_it_ends_the_compiler_too(home: Path, tmp_path: Path, number: signal.Signals) -> None:
    """And all that this has started; no file stays."""
    slow = compiler(tmp_path, f"sh -c 'echo $$ > {tmp_path}/child; exec sleep 60'")
    # a shell's background jobs ignore SIGINT, and so would this one below it
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from eca_service.triton import native; native.library()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"CXX": slow}, stderr=subprocess.DEVNULL, start_new_session=True
    )
    child = tmp_path / "child"
    end = time.monotonic() + 20
    while not (child.exists() and child.read_text().strip()) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(20) != 0
    assert [path.name for path in home.iterdir()] == ["backend.lock"]
    end = time.monotonic() + 5
    while (alive := running(child.read_text().strip())) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive


def running(pid: str) -> bool:
    """Whether the process is there, and not merely unburied."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_killed_one_left_is_cleared_away(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, 'echo library > "$made"'))
    (home / f"{native.UNFINISHED}abc").mkdir(parents=True)
    found = native.library()
    assert sorted(home.iterdir()) == sorted([found, home / "backend.lock"])


def test_no_compiler_is_on_the_path(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(native.NotCompiled, match="apt install"):
        native.library()


def test_a_cache_folder_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("CXX", compiler(tmp_path, "exit 1"))
    with pytest.raises(native.NotCompiled, match=r"cannot hold the compiled backend: .*; XDG_CACHE_HOME names"):
        native.library()


def test_there_is_no_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a container's user whom the system does not know."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setenv("CXX", compiler(tmp_path, "exit 1"))
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(native.NotCompiled, match=r"there is no home folder .*; XDG_CACHE_HOME names a folder"):
        native.library()


def test_then_the_backend_in_python_serves(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        server.installation()
    except server.TritonUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.setenv("CXX", "")
    server.assemble_backends(tmp_path / "backends")
    assert (tmp_path / "backends" / "onnxruntime" / "model.py").exists()
    assert native.INSTEAD in caplog.text


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_queue_under_a_sanitizer(tmp_path: Path, sanitizer: str) -> None:
    """Without races, and nothing is used after it was given back."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    sources = [
        Path(__file__).with_name("native_queue.cpp"),
        *(native.SOURCES / name for name in ("queue.cpp", "request.cpp")),
    ]
    flags = ["-std=c++17", "-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Werror", f"-fsanitize={sanitizer}"]
    program = tmp_path / "queue"
    command = [compiler, *flags, f"-I{native.SOURCES}", *map(str, sources), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in built.stderr:
        pytest.skip("the compiler has no such sanitizer")
    assert built.returncode == 0, built.stderr
    # it cannot bear as much chance in the addresses as newer kernels take
    ran = subprocess.run(["setarch", "-R", str(program)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
