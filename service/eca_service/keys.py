"""API keys: a file of their hashes, and the secrets in the hands of the callers."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from pathlib import Path

from eca_service.settings import SettingsError, require_file

logger = logging.getLogger(__name__)
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
LINE = re.compile(rf"({NAME.pattern})\s+sha256:([0-9a-f]{{64}})")
LEAST_TOKEN = 32  # characters
LOOK_EVERY_S = 1.0


def make(name: str) -> tuple[str, str]:
    """A new secret of 256 random bits, and its line for the file. Raises SettingsError for a name it cannot have.

    The secrets are random and long, so that a plain hash tells nothing of them.
    """
    if not NAME.fullmatch(name):
        raise SettingsError(
            f"{name!r} cannot be the name of a key; use up to 64 letters, digits, dots, dashes and underscores"
        )
    secret = f"eca_{secrets.token_urlsafe(32)}"
    return secret, f"{name} sha256:{hashlib.sha256(secret.encode()).hexdigest()}"


class Keys:
    """The keys of a file, `NAME sha256:HASH` a line; blank lines and those that begin with # are for people.

    A name may have several lines, so that a key can be replaced without a gap. The file is read again when it changes,
    within a second; one that cannot be read keeps the keys of before. Raises SettingsError where it cannot be read at
    first.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._looked = time.monotonic()
        self._stamp = _stamp(file)
        self._keys = _read(file)
        if not self._keys:
            raise SettingsError(f"ECA_API_KEYS_FILE={file} holds no key; `eca-serve key NAME >> {file}` makes one")

    def owner(self, secret: bytes) -> str | None:
        """The name of the key with this secret; None where there is none. It takes as long for all secrets."""
        self._follow()
        given, found = hashlib.sha256(secret).digest(), None
        for digest, name in self._keys:
            if hmac.compare_digest(digest, given):
                found = name
        return found

    def _follow(self) -> None:
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = _read(self._file)
            logger.info(
                "%s was read again: keys of %s", self._file, ", ".join(sorted({n for _, n in self._keys})) or "nobody"
            )
        except SettingsError as error:
            logger.error("the previous keys are kept: %s", error)


class Token:
    """The one secret of a file, read whenever it is compared. Raises SettingsError where it cannot be read at first."""

    def __init__(self, file: Path, variable: str) -> None:
        self._file = file
        self._variable = variable
        self._secret()

    def matches(self, secret: bytes) -> bool:
        """Whether it is this one; never where the file cannot be read now."""
        try:
            return hmac.compare_digest(self._secret(), secret)
        except SettingsError as error:
            logger.error("%s", error)
            return False

    def _secret(self) -> bytes:
        require_file(self._file, self._variable)
        secret = read_secret(self._file, self._variable)
        if len(secret) < LEAST_TOKEN:
            raise SettingsError(
                f"{self._variable}={self._file} has fewer than {LEAST_TOKEN} characters; "
                "`openssl rand -hex 32` makes a token"
            )
        return secret.encode()


def read_secret(file: Path, variable: str) -> str:
    """What a file holds, without the white space around it. Raises SettingsError."""
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"{variable}={file} cannot be read: {reason}") from None


def _read(file: Path) -> list[tuple[bytes, str]]:
    require_file(file, "ECA_API_KEYS_FILE")
    keys = []
    for number, line in enumerate(read_secret(file, "ECA_API_KEYS_FILE").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = LINE.fullmatch(text)
        if found is None:  # the line is not repeated: it may hold a secret by mistake
            raise SettingsError(f"ECA_API_KEYS_FILE={file}: line {number} is not `NAME sha256:HASH`")
        keys.append((bytes.fromhex(found[2]), found[1]))
    return keys


def _stamp(file: Path) -> tuple[int, int, int]:
    """Changes when the file does, also where it is replaced by another."""
    try:
        found = file.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)
