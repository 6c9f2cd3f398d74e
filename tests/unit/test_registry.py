"""Versions that are left out of what is served, and the file that pins one."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from eca_service.errors import ServiceError
from eca_service.registry import PIN_FILE, Registry, pin, pinned

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
    told = f"{tmp_path / place} is not served: its contract is of m version 1, which belongs into the folder m/1"
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
        f"{tmp_path / 'n'} is not served: it cannot be listed: Permission denied"
    ]
    monkeypatch.setattr(Path, "iterdir", lambda self: iterdir(self / "n"))
    assert Registry(tmp_path, None).unreadable == {tmp_path: "it cannot be listed: Permission denied"}


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
