"""What a file is that is given as a checkpoint and is none, for the sentence that refuses it."""

from __future__ import annotations

import codecs
import re
import struct
import zipfile
from pathlib import Path

UNPACK = "unpack it and give the checkpoint in it"
SAVE = "save the network's state_dict() with torch.save, or as safetensors, and give that"
# What a file of each kind begins with, its name, and what to do instead.
KINDS = (
    (rb"\x1f\x8b", "compressed by gzip", UNPACK),
    (rb".{257}ustar", "a tar archive", UNPACK),
    (rb"\x89HDF\r\n", "an HDF5 file, as Keras writes", SAVE),
    (rb"\x93NUMPY", "an array of NumPy's", SAVE),
    (rb"\x08[\x01-\x1f][\x12\x1a\x3a\x42]", "an ONNX model", "give the checkpoint that it was exported from"),
)
CHECKPOINTS = (".pth", ".pth.tar", ".ckpt", ".safetensors", ".bin")
HEAD = 512  # bytes
MOST_QUOTED = 60  # characters


def refusal(path: Path) -> str:
    """Why a file that torch.load cannot read is refused, and what to do; one sentence. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    for begins, kind, advice in KINDS:
        if re.match(begins, head, re.DOTALL):
            return f"{path} is {kind}; {advice}"
    if line := _text(head):
        return f"{path} is text that begins with {line!r}; look what it says, and download the checkpoint again"
    if (names := _packed(path)) is not None and not any(name.endswith("data.pkl") for name in names):
        advice = UNPACK if any(name.endswith(CHECKPOINTS) for name in names) else SAVE
        return f"{path} is a ZIP archive of {', '.join(names[:3]) or 'nothing'}, not one of torch.save; {advice}"
    return f"{path} is damaged or not a checkpoint; copy it again"


def _packed(path: Path) -> list[str] | None:
    """The names in a ZIP archive; None where the file is none, or a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):  # of a version that is none, too
        return None


def _text(head: bytes) -> str:
    """The beginning of the first line, where the file is text, as of a server that answers in words; else nothing."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)  # which may end within a character
    except UnicodeDecodeError:
        return ""
    if re.search(r"[^\t\r\n -\x7e\x80-\U0010ffff]", text):
        return ""
    return text.strip()[:MOST_QUOTED].partition("\n")[0].strip()
