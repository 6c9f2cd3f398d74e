"""What is given as a checkpoint and is another kind of file is told what it is, and not to be copied again."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from eca_build.checkpoint import load
from eca_build.errors import BuildError
from eca_build.foreign import refusal
from onnx import helper

PAGE = b"<!DOCTYPE html><html><head><title>Virus scan warning</title></head></html>\n"


def zipped(*names: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return archive.getvalue()


def tarred() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        file.addfile(tarfile.TarInfo("m.pth"))
    return archive.getvalue()


def numpy() -> bytes:
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    return array.getvalue()


def onnx() -> bytes:
    model: bytes = helper.make_model(helper.make_graph([], "g", [], []), producer_name="pytorch").SerializeToString()
    return model


def program() -> bytes:
    file = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (PAGE, r"is text that begins with '<!DOCTYPE html>.*; look what it says, and download the checkpoint again$"),
        ("\ufeffN\u00e3o encontrado\r\n".encode(), "is text that begins with 'N\u00e3o encontrado';"),
        (("\u20ac" * 400).encode(), "is text that begins with '\u20ac{60}';"),
        (gzip.compress(b"x"), "is compressed by gzip; unpack it and give the checkpoint in it$"),
        (tarred(), "is a tar archive; unpack it"),
        (zipped("m/m.pth"), r"is a ZIP archive of m/m\.pth, not one of torch\.save; unpack it"),
        (zipped("a.npy"), r"is a ZIP archive of a\.npy, not one of torch\.save; save the network's state_dict\(\)"),
        (zipped(), "is a ZIP archive of nothing, "),
        (program(), r"is a ZIP archive of .*; save the network's state_dict\(\) with torch\.save"),
        (b"\x89HDF\r\n\x1a\n" + bytes(8), "is an HDF5 file, as Keras writes; save"),
        (numpy(), "is an array of NumPy's; save"),
        (onnx(), "is an ONNX model; give the checkpoint that it was exported from$"),
        (bytes(1000), "is damaged or not a checkpoint; copy it again$"),
        (b"hello\0there", "is damaged or not a checkpoint; copy it again$"),
        (zipped("m/data.pkl"), "is damaged or not a checkpoint; copy it again$"),
    ],
)
def test_other_kinds_of_files_are_told_by_name(tmp_path: Path, data: bytes, sentence: str) -> None:
    (tmp_path / "m.pth").write_bytes(data)
    with pytest.raises(BuildError, match=rf"m\.pth {sentence}"):
        load(tmp_path / "m.pth")


@pytest.mark.parametrize("value", [0x00, 0x5A, 0xFF])
def test_an_archive_with_any_wrong_byte_is_told_in_a_sentence(tmp_path: Path, value: int) -> None:
    """As of a download that went wrong; Python's reader raises several errors of it."""
    whole = zipped("m/data.pkl")
    for at in range(len(whole)):
        (tmp_path / "m.pth").write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
        assert str(tmp_path / "m.pth") in refusal(tmp_path / "m.pth")
