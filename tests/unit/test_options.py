"""The options of both command lines: each has its variable, which a service that finds it set takes no offence at."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import eca_build.cli
import eca_service.cli
import pytest
from click.testing import CliRunner
from eca_build.targets import PRECISIONS, TARGETS
from eca_service.settings import Settings, load

# What one call does, and where its answer goes.
OF_ONE_CALL = {"--class", "--confusion", "--csv", "--json", "--newest", "--output", "--table", "--to"}
ROOT = Path(__file__).parents[2]
IMPORTED = """\
import pathlib, time
try:
    pathlib.Path(__file__).with_name("begun").touch()
    time.sleep(60)
except BaseException:
    raise ImportError("initialization failed")
"""
SETTINGS = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}


def options(group: click.Group) -> Iterator[tuple[str, str, click.Option]]:
    """Command, name and option, of all that it has."""
    for name, command in group.commands.items():
        for option in command.params:
            if isinstance(option, click.Option):
                yield name, max(option.opts, key=len), option


def variables(group: click.Group) -> dict[tuple[str, str], object]:
    """By command and option its variable, None where there is none; but for settings, which read their own."""
    return {
        (command, name): option.envvar
        for command, name, option in options(group)
        if not (group is eca_service.cli.main and command in {"up", "gateway", "triton", "doctor"} and name in SETTINGS)
    }


@pytest.mark.parametrize("group", [eca_service.cli.main, eca_build.cli.main], ids=["eca-serve", "eca-build"])
def test_every_option_is_a_variable_that_help_shows(group: click.Group) -> None:
    found = variables(group)
    without = {(command, name) for (command, name), variable in found.items() if variable is None}
    # a variable that is set for the client must not turn a change of this repository into one of that service
    assert {name for command, name in without if (command, name) != ("rollback", "--url")} <= OF_ONE_CALL
    for command, name, option in options(group):
        if variable := found.get((command, name)):
            assert option.show_envvar, (command, name)
            assert name == "--token-file" or variable == "ECA_" + name[2:].replace("-", "_").upper()


@pytest.mark.parametrize("group", [eca_service.cli.main, eca_build.cli.main], ids=["eca-serve", "eca-build"])
def test_the_service_knows_them_all(group: click.Group, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {str(variable) for variable in variables(group).values() if variable}
    assert len(names) > 10
    for name in names:
        monkeypatch.setenv(name, "1")
    load({})


def test_a_variable_is_taken() -> None:
    for command, environment, named in (
        (eca_service.cli.main.commands["classify"], {"ECA_TOP_K": "0"}, "--top-k"),
        (eca_build.cli.main.commands["compile"], {"ECA_RESIZE": "0"}, "--resize"),
    ):
        done = CliRunner().invoke(command, ["x"], env=environment)
        assert (done.exit_code, named in done.output) == (2, True), done.output


def test_help_has_the_precisions_of_each_target() -> None:
    help_text = next(option.help for _, name, option in options(eca_build.cli.main) if name == "--precision")
    said = re.findall(r"([\w -]+): ((?:fp|bf|int)\d+[^;.]*)", str(help_text))
    found = {
        target: set(re.findall(r"(?:fp|bf|int)\d+", text)) for names, text in said for target in names.split(" and ")
    }
    onnx = {*PRECISIONS["onnxruntime"], *PRECISIONS["openvino"]}
    assert {name.strip(): types for name, types in found.items()} == {"onnx": onnx} | {
        target: set(PRECISIONS[target]) for target in TARGETS if target != "onnx"
    }


def test_triton_alone_has_no_options_of_the_gateway() -> None:
    done = CliRunner().invoke(eca_service.cli.main.commands["triton"], ["--help"])
    assert "--triton-threads" in done.output
    assert "--http-port" not in done.output


def test_what_help_says_of_settings_can_be_copied() -> None:
    shown = " ".join(CliRunner().invoke(eca_service.cli.main, ["up", "--help"]).output.split())
    for name, field in Settings.model_fields.items():
        assert str(field.description)[1:] in shown, name
    assert "Address to listen on; `::` is every one, of IPv4 too [ECA_HOST; default 127.0.0.1]" in shown


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_by_the_file_that_is_on_it(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """So is a quota that is used up, and the limit of a file's size."""

    def copy(name: str) -> None:
        raise OSError(number, os.strerror(number), "/read/from", None, "/written/to")

    monkeypatch.setattr("eca_service.cli.upkeep.make", copy)
    done = CliRunner().invoke(eca_service.cli.main, ["key", "team"])
    assert (done.exit_code, done.output) == (2, f"eca-serve: /written/to cannot be written: {os.strerror(number)}\n")


def test_closed_streams_are_as_good_as_ones_nobody_reads(tmp_path: Path) -> None:
    """As some process managers start a service: it went on to fail without a word, for its log had nowhere to go."""
    command = [
        sys.executable,
        "-c",
        "from eca_service.cli import main; main()",
        "gateway",
        "--repository",
        str(tmp_path),
    ]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], check=False)
    assert done.returncode == 2, "there is no model"


@pytest.mark.parametrize("command", [["archs"], ["inspect", __file__], ["compile", __file__]], ids=lambda each: each[0])
def test_a_base_install_tells_what_the_build_needs(command: list[str]) -> None:
    """`pip install .` has the command, and the extra that it needs only by name; its trace was all that was told."""
    without = f"import sys; sys.modules.update(dict.fromkeys({sorted(eca_build.cli.EXTRA)}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{without}; from eca_build.cli import main; main()", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    told = r"eca-build: (\w+) is not installed; pip install 'eca-serve\[build\]'\n"
    assert re.fullmatch(told, done.stderr), done.stderr


def test_the_build_s_extra_is_what_it_is_told_by() -> None:
    extra = re.search(r"^build = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extra
    assert set(re.findall(r'"([\w-]+)', extra[1])) == eca_build.cli.EXTRA


@pytest.mark.parametrize(
    ("command", "how"),
    [
        (("archs",), signal.SIGINT),
        (("inspect", "a.pth"), signal.SIGTERM),
        (("init", "resnet18", "-o", "b"), signal.SIGTERM),
        (("compile", "a.pth"), signal.SIGINT),
    ],
)
def test_who_ends_a_build_while_modules_are_imported_sees_no_trace(
    tmp_path: Path, command: tuple[str, ...], how: signal.Signals
) -> None:
    """C++ modules make an error of their own of the exception."""
    (tmp_path / "torch.py").write_text(IMPORTED)
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import eca_build.cli as b; b.main()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", code, *command], env=environment, stderr=subprocess.PIPE) as process:
        while not (tmp_path / "begun").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(how)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (-how, b"")


@pytest.mark.parametrize("group", [eca_service.cli.main, eca_build.cli.main])
def test_no_path_is_empty(group: click.Group) -> None:
    """As of a variable of the shell that is not set: it is no wish for the current folder."""
    paths = [one for command in group.commands.values() for one in command.params if isinstance(one.type, click.Path)]
    assert len(paths) > 5
    for one in paths:
        with pytest.raises(click.BadParameter, match="is a variable of the shell not set"):
            one.type.convert("", one, None)
