"""The models of a repository: which version each is served in, which one it should be served in."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from eca_service import metrics
from eca_service.contract import CONTRACT_FILE, NAME, Contract, ContractError, read
from eca_service.errors import ServiceError
from eca_service.preflight import Obstacle
from eca_service.settings import SettingsError

logger = logging.getLogger(__name__)
PIN_FILE = "pinned"  # in a model's folder: the number of the version to serve, instead of the newest
VERSION = re.compile("[1-9][0-9]*")


@dataclass(frozen=True)
class Model:
    """One version of a model, and the folder that holds its engine and its golden images.

    `written` changes when the contract's file does.
    """

    contract: Contract
    folder: Path
    written: tuple[int, int] = field(default=(0, 0), compare=False)

    @cached_property
    def listed(self) -> bytes:
        """Its contract as JSON for callers, encoded once: the golden answers of many classes are megabytes."""
        return json.dumps(self.contract.public(), ensure_ascii=False, separators=(",", ":")).encode()


class Registry:
    """What is served: `models` holds the current version of each, by name.

    A version whose contract cannot be read, or to which there is an `obstacle`, is left out, with a line in the log,
    and so is a folder that cannot be listed; `unreadable` says why, by folder.
    """

    def __init__(self, repository: Path, default: str | None, obstacle: Obstacle = lambda _: None) -> None:
        self.repository = repository
        self._obstacle = obstacle
        self.models: dict[str, Model] = {}
        self._chosen_default = default
        self._leases: Counter[Path] = Counter()
        self.unreadable: dict[Path, str] = {}
        self._mismatched: dict[Path, Contract] = {}
        self._turn = threading.Lock()
        for folders in self.wanted().values():
            model = next(filter(None, map(self.read, folders)), None)
            if model:
                self.models[model.contract.name] = model

    @property
    def default(self) -> str | None:
        """The model of requests that name none: the one chosen, else the first with ECA, else the first."""
        eca = (name for name, model in sorted(self.models.items()) if model.contract.attention == "eca")
        return self._chosen_default or next(eca, None) or min(self.models, default=None)

    def require_default(self) -> None:
        """Raises SettingsError where the chosen default model is not among them."""
        if self._chosen_default and self._chosen_default not in self.models:
            raise SettingsError(
                f"ECA_DEFAULT_MODEL={self._chosen_default} is not in {self.repository}; "
                f"there are: {', '.join(self.models) or 'none'}"
            )

    def get(self, name: str | None, version: int | None = None) -> Model:
        """The model of that name, or the default one. Raises model_not_found or version_not_found."""
        chosen = name or self.default
        model = self.models.get(chosen) if chosen else None
        if model is None:
            known = ", ".join(self.models) or "none"
            raise ServiceError("model_not_found", f"there is no model {chosen!r}; there are: {known}")
        if version is not None and version != model.contract.version:
            raise ServiceError(
                "version_not_found", f"{chosen} is served in version {model.contract.version}, not {version}"
            )
        return model

    def read(self, folder: Path) -> Model | None:
        """The version in `folder`; None, and one line in the log, where it cannot be read or cannot run here."""
        with self._turn:
            return self._read(folder)

    def _read(self, folder: Path) -> Model | None:
        self._clear_mismatches(folder)
        try:
            written = _written(folder)
            model = Model(read(folder), folder, written)
            name, version = model.contract.name, model.contract.version
            if (name, str(version)) != (folder.parent.name, folder.name):
                raise ContractError(
                    f"its contract is of {name} version {version}, which belongs in the folder {name}/{version}"
                )
            if reason := self._obstacle(model.contract):
                self._mismatched[folder] = model.contract
                metrics.engine_mismatch.labels(name, str(version)).set(1)
                raise ContractError(reason)
        except ContractError as error:
            self._leave_out(folder, str(error))
            return None
        self.unreadable.pop(folder, None)
        return model

    def wanted(self) -> dict[str, list[Path]]:
        """By model, its versions' folders, the one to serve first: the pinned one, then from the newest to the oldest.

        Of one whose folder cannot be listed there are none: what is served of it serves on.
        """
        found: dict[str, list[Path]] = {}
        try:
            homes = sorted(self.repository.iterdir()) if self.repository.is_dir() else []
        except OSError as error:
            self._leave_out(self.repository, f"it cannot be listed: {error.strerror}")
            return found
        self.unreadable.pop(self.repository, None)
        for home in homes:
            try:
                published, first = versions(self.repository, home.name), pinned(self.repository, home.name)
            except OSError as error:
                if re.match(NAME, home.name):  # not a file system's lost+found
                    self._leave_out(home, f"it cannot be read: {error.strerror}")
                    found[home.name] = []
                continue
            self.unreadable.pop(home, None)
            if published:
                order = sorted(published, key=lambda version: (version != first, -version))
                found[home.name] = [home / str(version) for version in order]
        return found

    def renew(self, model: Model) -> bool:
        """Serves what is in the folder of a current `model` now, where its number was given to another build."""
        if _written(model.folder) in {model.written, (0, 0)}:
            return False
        if (now := self.read(model.folder)) is None or now == model:
            return False
        self.models[model.contract.name] = now
        return True

    def _leave_out(self, folder: Path, why: str) -> None:
        if self.unreadable.get(folder) != why:
            logger.error("%s is not served: %s", folder, why)
        self.unreadable[folder] = why

    def _clear_mismatches(self, folder: Path) -> None:
        """Ends the series of this folder, which is looked at again, and of those that are gone."""
        for one in [one for one in self._mismatched if one == folder or not one.exists()]:
            contract = self._mismatched.pop(one)
            metrics.forget(metrics.engine_mismatch, contract.name, contract.version)

    @contextlib.contextmanager
    def lease(self, model: Model) -> Iterator[None]:
        """While it is held, `model` counts as in use: it is not unloaded."""
        self._leases[model.folder] += 1
        try:
            yield
        finally:
            self._leases[model.folder] -= 1

    def in_use(self, model: Model) -> bool:
        """A request holds it."""
        return self._leases[model.folder] > 0


def _written(folder: Path) -> tuple[int, int]:
    try:
        found = (folder / CONTRACT_FILE).stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def versions(repository: Path, name: str) -> list[int]:
    """The published versions of a model, ascending; none where there is no such model."""
    home = repository / name
    return sorted(int(v.name) for v in home.iterdir() if VERSION.fullmatch(v.name)) if home.is_dir() else []


def pinned(repository: Path, name: str) -> int | None:
    """The version that the model is pinned to; None where it is not, or to none that is there."""
    written = read_pin(repository, name)
    return next((version for version in versions(repository, name) if str(version) == written), None)


def read_pin(repository: Path, name: str) -> str | None:
    """What the model's pin says; None where there is none. Raises OSError where it cannot be read: a version that was
    withdrawn must not come back.
    """
    try:
        return (repository / name / PIN_FILE).read_text(errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def pin(repository: Path, name: str, version: int | None) -> None:
    """Has the model served in `version`, or with None in the newest again; running services follow by themselves.

    Raises model_not_found or version_not_found, OSError where the repository cannot be written.
    """
    published = versions(repository, name)
    if not published:
        raise ServiceError("model_not_found", f"there is no model {name!r} in {repository}")
    file = repository / name / PIN_FILE
    if version is None:
        file.unlink(missing_ok=True)
        return
    if version not in published:
        raise ServiceError("version_not_found", f"{name} has the versions {', '.join(map(str, published))}")
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".pinned-")
    try:
        os.fchmod(handle, 0o644)
        with os.fdopen(handle, "w") as out:
            out.write(f"{version}\n")
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def roll_back(repository: Path, name: str, now: int | None = None) -> int:
    """Pins the model to the version before `now`, and returns that version; by default before the one that it should be
    served in.
    """
    published = versions(repository, name)
    now = now or pinned(repository, name) or max(published, default=0)
    earlier = [version for version in published if version < now]
    if published and not earlier:
        raise ServiceError("version_not_found", f"{name} has no version before {now}")
    pin(repository, name, max(earlier, default=0))
    return max(earlier)
