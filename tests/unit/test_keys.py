"""Files of keys and tokens."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from eca_service import keys
from eca_service.cli import main
from eca_service.keys import Keys, Token, make
from eca_service.settings import SettingsError


@pytest.fixture(autouse=True)
def look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_EVERY_S", 0.0)


def test_a_full_disk_is_told() -> None:
    """As `eca-serve classify photos > answers` meets it, and every other command."""
    command = [sys.executable, "-c", "from eca_service.cli import main; main()", "key", "team-a"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "eca-serve: the output cannot be written: No space left on device\n",
    )


def test_the_command_makes_a_key_whose_secret_is_nowhere_in_the_file(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["key", "team-a"])
    assert done.exit_code == 0
    secret = done.stderr.splitlines()[0]
    (tmp_path / "keys").write_text(done.stdout)
    assert secret not in done.stdout
    assert len(secret) > 40
    assert Keys(tmp_path / "keys").owner(secret.encode()) == "team-a"
    assert CliRunner().invoke(main, ["key", "team a"]).exit_code == 2


def test_several_keys_and_two_of_one_name(tmp_path: Path) -> None:
    made = [make(name) for name in ("a", "b", "a")]
    (tmp_path / "keys").write_text("# keys\n\n" + "\n".join(line for _, line in made) + "\n")
    found = Keys(tmp_path / "keys")
    assert [found.owner(secret.encode()) for secret, _ in made] == ["a", "b", "a"]
    first = made[0][0].encode()
    for wrong in (b"", b"a", first[:-1], first + b"x", first.upper(), b"\xff\x00", bytes(1 << 20)):
        assert found.owner(wrong) is None


def test_changes_are_followed_and_a_spoilt_file_keeps_the_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "keys"
    (old, old_line), (new, new_line) = make("old"), make("new")
    file.write_text(old_line)
    found = Keys(file)
    file.write_text(f"{old_line}\n{new_line}\n")
    assert [found.owner(old.encode()), found.owner(new.encode())] == ["old", "new"]
    (tmp_path / "other").write_text(new_line)
    os.replace(tmp_path / "other", file)
    assert [found.owner(old.encode()), found.owner(new.encode())] == [None, "new"], "revoked"
    file.write_text(f"{new_line}\nold {old}\n")
    assert [found.owner(old.encode()), found.owner(new.encode())] == [None, "new"]
    assert "line 2 is not" in caplog.text
    assert old not in caplog.text, "what somebody put there by mistake"
    file.unlink()
    assert found.owner(new.encode()) == "new"
    file.write_text("")
    assert found.owner(new.encode()) is None, "an empty file lets nobody in"
    assert found.owner(new.encode()) is None
    read = [record for record in caplog.records if "was read again" in record.getMessage()]
    assert len(read) == 3, "each change once"


@pytest.mark.parametrize("make_special", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_regular_file_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make_special: Callable[[Path], None]
) -> None:
    """It was read for ever, by the event loop: a FIFO until somebody writes to it, a device without an end."""
    file, token = tmp_path / "keys", tmp_path / "token"
    secret, line = make("a")
    file.write_text(line)
    token.write_text("t" * keys.LEAST_TOKEN)
    found, management = Keys(file), Token(token, "ECA_MANAGEMENT_TOKEN_FILE")
    for path in (file, token):
        path.unlink()
        make_special(path)
    assert found.owner(secret.encode()) == "a"
    assert "the previous keys are kept: ECA_API_KEYS_FILE=" in caplog.text
    assert not management.matches(b"t" * keys.LEAST_TOKEN)
    with pytest.raises(SettingsError, match="is no regular file"):
        Keys(file)
    with pytest.raises(SettingsError, match="is no regular file"):
        Token(token, "ECA_MANAGEMENT_TOKEN_FILE")


def test_changes_within_one_tick_of_the_clock_are_followed(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    (old, old_line), (new, new_line), (third, third_line) = make("old"), make("new"), make("third")
    file.write_text(old_line)
    found, at = Keys(file), file.stat().st_mtime_ns
    (tmp_path / "other").write_text(new_line)
    os.utime(tmp_path / "other", ns=(at, at))
    os.replace(tmp_path / "other", file)
    assert [found.owner(old.encode()), found.owner(new.encode())] == [None, "new"], "another file"
    with file.open("a") as out:
        out.write(f"\n{third_line}\n")
    os.utime(file, ns=(at, at))
    assert found.owner(third.encode()) == "third", "a longer one"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "No such file"),
        (b"", "holds no key"),
        (b"# none yet\n", "holds no key"),
        (b"a sha256:00\n", "line 1 is not"),
        (b"a md5:" + b"0" * 64, "line 1 is not"),
        (b"a sha256:" + b"0" * 65, "line 1 is not"),
        (b"\xff\xfe", "it is no text"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(SettingsError, match=f"ECA_API_KEYS_FILE=.*{sentence}"):
        Keys(tmp_path / "keys")


def test_a_token_is_read_when_it_is_compared(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("short\n")
    with pytest.raises(SettingsError, match="fewer than 32 characters"):
        Token(file, "ECA_MANAGEMENT_TOKEN_FILE")
    file.write_text("a" * 32 + "\n")
    token = Token(file, "ECA_MANAGEMENT_TOKEN_FILE")
    assert token.matches(b"a" * 32)
    assert not token.matches(b"")
    file.write_text("b" * 32)
    assert [token.matches(b"a" * 32), token.matches(b"b" * 32)] == [False, True]
    file.write_text("")
    assert not token.matches(b"")
