"""Versions that are left out of what is served, and the file that pins one."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from eca_service.errors import ServiceError
from eca_service.registry import PIN_FILE, Registry, pin, pinned, roll_back
from eca_service.settings import SettingsError

from tests.unit.test_contract import CONTRACT, write


@pytest.mark.parametrize("place", ["m-backup/1", "m/2"])
def test_a_contract_belongs_into_the_folder_of_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    for folder in (tmp_path / "m" / "1", tmp_path / place):
        folder.mkdir(parents=True)
        write(folder)
    with caplog.at_level(logging.ERROR):
        registry = Registry(tmp_path, None)
    assert {name: model.folder for name, model in registry.models.items()} == {"m": tmp_path / "m" / "1"}
    told = f"{tmp_path / place} is not served: its contract is of m version 1, which belongs in the folder m/1"
    assert told in caplog.text
    assert registry.get(None).contract == CONTRACT.model_copy(update={"head": None})


def test_a_folder_that_cannot_be_listed_keeps_no_other_from_being_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lost+found", "m/1", "m/²", "n"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "m" / "1")
    listed = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:
        """Tests may run as root, who may list any."""
        if self.name in {"lost+found", "n"}:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    registry = Registry(tmp_path, None)
    assert list(registry.models) == ["m"]
    assert registry.wanted() == {"m": [tmp_path / "m" / "1"], "n": []}, "what is served of it serves on"
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'n'} is not served: it cannot be read: Permission denied"
    ]
    monkeypatch.setattr(Path, "iterdir", lambda self: iterdir(self / "n"))
    assert Registry(tmp_path, None).unreadable == {tmp_path: "it cannot be listed: Permission denied"}


def test_what_is_mended_and_damaged_again_is_told_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = published(tmp_path, "m")
    registry = Registry(tmp_path, None)
    for _ in range(2):
        (folder / "contract.json").rename(folder / "away")
        for _ in range(2):
            assert registry.read(folder) is None
        (folder / "away").rename(folder / "contract.json")
        assert registry.read(folder)
    told = f"{folder} is not served: "
    assert [record.getMessage().startswith(told) for record in caplog.records] == [True] * 2


@pytest.mark.parametrize(
    ("place", "sentence"),
    [(".", "it cannot be listed: Permission denied"), ("m", "it cannot be read: Permission denied")],
)
def test_so_is_what_could_be_listed_in_between(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, place: str, sentence: str
) -> None:
    folder = published(tmp_path, "m")
    registry = Registry(tmp_path, None)
    listed = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:
        if self == tmp_path / place:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return listed(self)

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", iterdir)
            for _ in range(2):
                assert not registry.wanted().get("m")
        assert registry.wanted() == {"m": [folder]}
    told = f"{tmp_path / place} is not served: {sentence}"
    assert [record.getMessage() for record in caplog.records] == [told] * 2
    assert not registry.unreadable


def published(repository: Path, name: str, version: int = 1, **changes: object) -> Path:
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    return write(folder, name=name, version=version, **changes)


def test_the_first_model_with_eca_is_the_default_unless_one_is_chosen(tmp_path: Path) -> None:
    assert Registry(tmp_path, None).default is None
    published(tmp_path, "b", attention="se")
    published(tmp_path, "a", attention="none")
    assert Registry(tmp_path, None).default == "a"
    published(tmp_path, "d")
    registry = Registry(tmp_path, None)
    registry.require_default()
    assert registry.default == "d"
    later = registry.read(published(tmp_path, "c"))
    assert later
    registry.models["c"] = later
    assert registry.default == Registry(tmp_path, None).default == "c", "as of a gateway that began later"
    assert Registry(tmp_path, "b").get(None).contract.name == "b"
    Registry(tmp_path, "b").require_default()
    with pytest.raises(SettingsError, match=r"ECA_DEFAULT_MODEL=e is not in .*there are: a, b, c, d"):
        Registry(tmp_path, "e").require_default()


def test_only_the_version_that_is_served_is_found(tmp_path: Path) -> None:
    for version in (1, 2):
        published(tmp_path, "m", version)
    for name in ("empty", "m/3.staged", "m/04", "m/0"):
        (tmp_path / name).mkdir()
    (tmp_path / "README.md").touch()
    registry = Registry(tmp_path, None)
    assert not registry.unreadable
    assert registry.wanted() == {"m": [tmp_path / "m" / "2", tmp_path / "m" / "1"]}
    assert registry.get("m").contract.version == registry.get("m", 2).contract.version == 2
    with pytest.raises(ServiceError, match="m is served in version 2, not 1"):
        registry.get("m", 1)
    with pytest.raises(ServiceError, match="there is no model 'n'; there are: m"):
        registry.get("n")


def test_a_pin_that_cannot_be_read_brings_no_withdrawn_version_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (1, 2):
        published(tmp_path, "m", version)
    pin(tmp_path, "m", 1)
    registry = Registry(tmp_path, None)
    assert [folder.name for folder in registry.wanted()["m"]] == ["1", "2"]
    read_text = Path.read_text

    def refused(self: Path, *given: Any, **named: Any) -> str:
        if self.name == PIN_FILE:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return read_text(self, *given, **named)

    monkeypatch.setattr(Path, "read_text", refused)
    assert registry.wanted() == {"m": []}, "what is served serves on"
    assert registry.unreadable == {tmp_path / "m": "it cannot be read: Permission denied"}


def test_any_account_may_read_which_version_is_pinned(tmp_path: Path) -> None:
    for version in (1, 2):
        (tmp_path / "m" / str(version)).mkdir(parents=True)
    pin(tmp_path, "m", 1)
    assert pinned(tmp_path, "m") == 1
    assert (tmp_path / "m" / PIN_FILE).stat().st_mode & 0o777 == 0o644, "the service may run under another"
    with pytest.raises(ServiceError, match="version_not_found"):
        pin(tmp_path, "m", 3)
    pin(tmp_path, "m", None)
    assert pinned(tmp_path, "m") is None
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["1", "2"]


def test_a_pin_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    published(tmp_path, "m")
    (tmp_path / "m" / PIN_FILE).mkdir()
    with pytest.raises(OSError, match="directory"):
        pin(tmp_path, "m", 1)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["1", PIN_FILE]
    with pytest.raises(ServiceError, match="model_not_found: there is no model 'n'"):
        pin(tmp_path, "n", 1)


def test_rolled_back_is_to_the_version_before_the_one_that_is_wanted(tmp_path: Path) -> None:
    for version in (1, 3, 10):
        published(tmp_path, "m", version)
    assert [roll_back(tmp_path, "m"), roll_back(tmp_path, "m")] == [3, 1]
    pin(tmp_path, "m", None)
    assert roll_back(tmp_path, "m", now=3) == 1, "where 4 is refused, 3 is what is served"
    assert pinned(tmp_path, "m") == 1
    with pytest.raises(ServiceError, match="version_not_found: m has no version before 1"):
        roll_back(tmp_path, "m")
    with pytest.raises(ServiceError, match="model_not_found"):
        roll_back(tmp_path, "n")


def test_a_request_that_fails_holds_its_version_no_longer(tmp_path: Path) -> None:
    published(tmp_path, "m")
    registry = Registry(tmp_path, None)
    model = registry.get("m")
    held = list[bool]()
    with suppress(ServiceError), registry.lease(model):
        held.append(registry.in_use(model))
        raise ServiceError("deadline_exceeded", "it took too long")
    assert (held, registry.in_use(model)) == ([True], False)


def test_what_is_another_build_by_the_same_number_is_renewed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = published(tmp_path, "m")
    registry = Registry(tmp_path, None)
    before = registry.get("m")
    assert not registry.renew(before)
    published(tmp_path / "copied", "m").joinpath("contract.json").rename(folder / "contract.json")
    assert not registry.renew(before), "it is the same one"
    write(folder, name="m", engine_sha256="another")
    assert registry.renew(before)
    assert registry.get("m").contract.engine_sha256 == "another"
    (folder / "contract.json").unlink()
    assert not registry.renew(registry.get("m"))
    assert not caplog.records, "whose contract has gone is served on"
