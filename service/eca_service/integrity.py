"""Whether a version's files are those that the build wrote, and the command that makes them anew."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

from eca_service.contract import ENGINE_FILES, GOLDEN_FILE, Contract


def again(contract: Contract) -> str:
    """The command that builds the same model: its next version must have the tensors and labels of this one."""
    recipe = contract.preprocessing
    numbered = tuple(f"class {index}" for index in range(contract.classes))
    return (
        f"eca-build compile CHECKPOINT --name {contract.name} --target {contract.engine} --precision "
        f"{contract.precision} --attention {contract.attention} --attention-graph {contract.attention_graph} "
        f"--max-batch {contract.max_batch} --resize {recipe.resize} --crop {recipe.crop} --filter {recipe.filter} "
        # which also where it is ImageNet's may be another than the network's own, or than its config.json's
        f"--mean {_three(recipe.mean)} --std {_three(recipe.std)}"
        + (f" --runtime {contract.runtime}" if contract.runtime else "")
        + (" --expose-gates" if contract.gates else "")
        + (" --labels LABELS" if contract.weights == "trained" and contract.labels != numbered else "")
        + (" --calibration IMAGES" if contract.calibration else "")
    )


def _three(values: tuple[float, float, float]) -> str:
    return " ".join(map(str, values))


def damage(contract: Contract, folder: Path) -> str | None:
    """Which file in a version's folder is not what the build wrote, and what to do, in a sentence; None where all are.

    A file is read when it has changed since it was last asked about: a gigabyte takes a second.
    """
    for name, written in (
        (ENGINE_FILES[contract.engine], contract.engine_sha256),
        (GOLDEN_FILE, contract.golden.sha256),
    ):
        try:
            now = (folder / name).stat()
            if _sha256(folder / name, now.st_ino, now.st_size, now.st_mtime_ns) == written:
                continue
            wrong = "is not the file that the build wrote"
        except PermissionError:
            return f"{folder / name} may not be read by the account that the service runs as"
        except OSError as error:
            wrong = f"cannot be read ({error.strerror})"
        return f"{folder / name} {wrong}; build it again: `{again(contract)}`"
    return None


def for_callers(sentence: str, folder: Path) -> str:
    """A `sentence` on the version in `folder`, with its files by their place in the repository.

    Where that lies, here or on Triton's machine, is for the log and not for whoever asks.
    """
    home = folder.parent
    within = sentence.replace(f"{home}/", f"{home.name}/")  # it may have spaces
    return re.sub(rf"[^\s\"'`]*/(?={re.escape(home.name)}/)", "", within)


@functools.lru_cache(1024)
def _sha256(path: Path, *stamp: int) -> str:
    """SHA-256 (hex) of a file, remembered for as long as its `stamp` is the same."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
