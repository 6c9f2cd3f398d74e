"""CIFAR-10 as arrays, from an archive or folder of JPEG files or from the original archive."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


def load(source: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Train images, train labels, test images, test labels.

    Images are uint8 [N, 32, 32, 3], RGB; labels int64 [N], indices into CLASSES. Raises SystemExit with a sentence
    where `source` is neither of the known forms.
    """
    if not source.exists():
        raise SystemExit(f"{source} does not exist; it should be CIFAR-10, as an archive or as a folder of JPEG files")
    if source.name == "cifar-10-python.tar.gz":
        return (*_original(source, "data_batch_"), *_original(source, "test_batch"))
    images: dict[str, list[NDArray[np.uint8]]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for name, data in _jpegs(source):
        split, label, _ = name.split("/")
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            images[split].append(np.asarray(image.convert("RGB")))
        labels[split].append(CLASSES.index(label))
    if not images["train"] or not images["test"]:
        raise SystemExit(f"{source} holds no train/<class>/*.jpg and test/<class>/*.jpg")
    train, test = ((np.stack(images[split]), np.asarray(labels[split], dtype=np.int64)) for split in ("train", "test"))
    return (*train, *test)


def _jpegs(source: Path) -> Iterator[tuple[str, bytes]]:
    """Pairs of split/class/file and content, in the order of the names."""
    if source.is_dir():
        for path in sorted(source.glob("*/*/*.jpg")):
            yield path.relative_to(source).as_posix(), path.read_bytes()
        return
    with tarfile.open(source) as archive:
        found = []
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".jpg") else None
            if file is not None:
                found.append(("/".join(member.name.split("/")[-3:]), file.read()))
    yield from sorted(found)


class _ArraysOnly(pickle.Unpickler):
    """The original archive is a pickle of dicts and numpy arrays; anything else is refused."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "encode"})

    def find_class(self, module: str, name: str) -> object:
        if name in self.ALLOWED and module.split(".")[0] in {"numpy", "_codecs"}:
            return super().find_class(module, name)
        raise SystemExit(f"the archive wants to run {module}.{name}; it is not CIFAR-10")


def _original(source: Path, prefix: str) -> Split:
    pixels, labels = [], []
    with tarfile.open(source) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if not Path(member.name).name.startswith(prefix):
                continue
            file = archive.extractfile(member)
            if file is None:
                raise SystemExit(f"{source}: {member.name} is not a file")
            batch = _ArraysOnly(file, encoding="bytes").load()
            pixels.append(batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels += batch[b"labels"]
    return np.ascontiguousarray(np.concatenate(pixels)), np.asarray(labels, dtype=np.int64)
