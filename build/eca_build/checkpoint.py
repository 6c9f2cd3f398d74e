"""Reads a checkpoint file as data, never as code, and gives the network it holds."""

from __future__ import annotations

import argparse
import datetime
import os
import pickle
import re
import stat
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, TypeGuard

import numpy as np
import safetensors
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from eca_build.detect import detect
from eca_build.errors import BuildError
from eca_build.foreign import refusal
from eca_build.layouts import canonical
from eca_build.networks import Network, NetworkSpec, create
from eca_build.networks.attention import Kind
from eca_build.provenance import sha256

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")  # averages where alone
# What others count into a network: PyTorch its batches and averages, and thop, when it was asked for operations.
COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
# What a module that is trained has beside its network, by the first of a key's names: losses, which may have a weight
# for each class, averages of the network, and metrics, of which all are whole numbers.
LOSS = re.compile(r"(\w+_)?(criterion|loss)(_\w+)?")
AVERAGES = {"model_ema", "ema_model", "ema"}
WHOLE = (torch.int32, torch.int64, torch.bool)
WEIGHTS = ("weight", "bias", "running_mean", "running_var", "taps")  # the last names of all that the networks here have
# What PyTorch puts into names where a part of a network is compiled, sharded or recomputed.
WRAPPED = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What training scripts keep beside the weights and is data, though pickled as a call: numbers and arrays of either
# generation of numpy, the options of the command line, paths among them, of whatever system they came from, times, and
# histories by name.
PATHS = ("Posix", "Windows", "PurePosix", "PureWindows")
FACTORIES = [f"{module}.{kind}" for kind in ("dict", "float", "int", "list") for module in ("builtins", "__builtin__")]
_NUMPY = {"scalar": np.float64().__reduce__()[0], "_reconstruct": np.empty(0).__reduce__()[0]}
HARMLESS = [
    *((function, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, function in _NUMPY.items()),
    *((PurePosixPath, f"{module}.{kind}Path") for module in ("pathlib", "pathlib._local") for kind in PATHS),
    np.ndarray,
    np.dtype,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__ if name not in ("ObjectDType", "VoidDType")),
    argparse.Namespace,
    datetime.datetime,
    datetime.timedelta,
    datetime.timezone,
    # a history, which PyTorch fills, and what it would begin new entries with, which nobody calls
    *((lambda *_: OrderedDict(), name) for name in ("collections.defaultdict", *FACTORIES)),
]
MOST_WRAPPED = 4  # training dicts around the weights: a dict may hold itself
MOST_PACKED = 10  # times its size a file may hold: torch.save packs nothing, and weights hardly can be
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: its network has the weights loaded and is in eval mode.

    `weights` is `random` for what `eca-build init` wrote.
    """

    path: Path
    sha256: str
    origin: str
    spec: NetworkSpec
    network: Network
    weights: Literal["trained", "random"] = "trained"


def load(path: Path, arch: str | None = None, attention: Kind | None = None) -> Checkpoint:
    """Reads `path` and finds architecture, attention, kernel sizes and classes.

    The file is of torch.save or of safetensors, whatever its name.

    SE-Var1 has no weights of its own, so that its networks look like plain ones: `attention` must say it, or the notes
    in a file of ours. Raises BuildError, one sentence naming the file or the key, where the file is missing, damaged,
    wants to run code, is no network of ours, is not `arch` with `attention`, or has missing, unexpected, misshapen or
    non-finite weights.
    """
    before = identity(path)
    notes: dict[str, str] = {}
    if begins(path)[8:] == b"{":  # behind the length of a header in JSON
        raw, notes = read_safetensors(path)
    else:
        raw = read_torch(path)
    state = strip(raw)
    require_plain(path, state, size=before[1])
    state, origin = canonical(state)
    spec = detect(state, path)
    if spec.attention == "none" and (attention or notes.get("attention")) == "se-var1":
        spec = replace(spec, attention="se-var1")
    if arch is not None and arch != spec.arch:
        raise BuildError(f"{path} holds {spec.arch}, not {arch}; leave --arch out or give the right file")
    if attention is not None and attention != spec.attention:
        raise BuildError(
            f"{path} holds {spec.arch} with attention {spec.attention}, not {attention}; leave --attention out or give "
            "the right file"
        )
    try:
        with torch.device("meta"):  # whatever the file says, no memory is taken for it before its weights agree
            wanted = create(spec).state_dict()
    except ValueError as error:
        raise BuildError(f"{path} looks like {spec.arch} but does not fit it: {error}") from None
    check(path, spec.arch, state, wanted)
    network = create(spec)
    network.load_state_dict(state, strict=False)
    weights: Literal["trained", "random"] = "random" if notes.get("weights") == "random" else "trained"
    with readable(path):
        digest = sha256(path)
    if identity(path) != before:  # the weights may be of one file, and the SHA-256 of the next
        raise BuildError(f"{path} changed while it was read; give a copy that nothing writes to")
    return Checkpoint(path, digest, origin, spec, network.eval(), weights)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Within it an OSError is a BuildError about the checkpoint."""
    try:
        yield
    except OSError as error:
        raise BuildError(f"the checkpoint {path} cannot be read: {error.strerror}") from None


def identity(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written again; BuildError where it cannot be read."""
    with readable(path):
        found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def save(path: Path, network: Network, notes: dict[str, str]) -> None:
    """Writes a network's weights, and `notes` as the file's metadata, as safetensors: all or nothing.

    Raises BuildError.
    """
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    part = path.with_name(f".{path.name}.part")
    try:
        try:
            part.write_bytes(save_safetensors(state, notes))
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
    except OSError as error:
        raise BuildError(f"{path} cannot be written: {error.strerror}") from None


def begins(path: Path) -> bytes:
    """The first nine bytes of a checkpoint; BuildError where it cannot be read or is empty."""
    with readable(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise BuildError(f"the checkpoint {path} is not a regular file; give one")  # it is read more than once
        with path.open("rb") as file:
            first = file.read(9)
    if not first:
        raise BuildError(f"the checkpoint {path} is empty; copy it again")
    if first == b"version h":  # ttps://git-lfs.github.com/spec/v1
        raise BuildError(f"{path} is a Git LFS pointer, not the checkpoint; `git lfs pull` fetches the file itself")
    return first


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata; BuildError where it is damaged."""
    try:
        with readable(path), path.open("rb") as opened:
            # its library takes no name that is not in UTF-8
            name = path if str(path).isascii() else f"/proc/self/fd/{opened.fileno()}"
            with safetensors.safe_open(name, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise BuildError(f"{path} is damaged or not a safetensors file ({error}); copy it again") from None


def read_torch(path: Path) -> dict[str, Tensor]:
    """The state dict of a file that torch.save wrote, without its training dict; BuildError where it holds none."""
    try:
        require_unpacked(path)
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # of its own old formats
            raw = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand 149" in str(error):  # FRAME, with which protocols since 4 begin
            raise BuildError(
                f"{path} is pickled with protocol 4 or newer, which is not supported; save its state_dict with "
                "torch.save without pickle_protocol"
            ) from None
        asked = re.search(r"(?:GLOBAL |global |got <class ')([^\s']+)", str(error))
        if asked is None:
            raise BuildError(refusal(path)) from None
        raise BuildError(
            f"{path} wants to run code ({asked[1]}), which is refused; save its state_dict alone and give that"
        ) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise BuildError(
                f"{path} is larger than the memory here; save its state_dict alone and give that"
            ) from None
        if "TorchScript" in str(error):
            raise BuildError(f"{path} is a TorchScript program; save its state_dict() and give that") from None
        raise BuildError(refusal(path)) from None
    except BuildError:
        raise
    except Exception:  # of a damaged file its unpickler raises anything: struct.error, AssertionError ...
        raise BuildError(refusal(path)) from None
    for _ in range(MOST_WRAPPED):
        if isinstance(raw, dict):
            raw = next((raw[key] for key in WRAPPERS if isinstance(raw.get(key), dict)), raw)
    if is_state(raw):
        return raw
    inner = {key: value for key, value in raw.items() if is_state(value)} if isinstance(raw, dict) else {}
    if len(inner) == 1:
        return inner.popitem()[1]
    several = f"several state_dicts ({', '.join(map(str, inner))})" if inner else "no state_dict"
    raise BuildError(f"{path} holds {several}; save the network's state_dict() and give that")


def is_state(value: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether it is a state_dict: tensors by their names."""
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items())
    )


def require_unpacked(path: Path) -> None:
    """BuildError for an archive that is small and asks for much memory; what zipfile raises where it is damaged."""
    if not begins(path).startswith(b"PK\3\4"):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MOST_PACKED * path.stat().st_size:
        raise BuildError(f"{path} would be {size} bytes when it is unpacked; save its state_dict by torch.save")


def strip(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without counters, what a training module has beside its network, and the names that every key begins with.

    A network's layers lie beside each other. What could be a layer or another network stays, so that it is refused.
    """
    state = {WRAPPED.sub("", key): value for key, value in raw.items() if key.rpartition(".")[2] not in COUNTERS}
    names = {first(key) for key in state}
    metrics = names - {first(key) for key, value in state.items() if value.dtype not in WHOLE}
    for beside in (metrics, {name for name in names if LOSS.fullmatch(name)}, names & AVERAGES):
        state = {key: value for key, value in state.items() if first(key) not in beside} or state
    while all("." in key for key in state) and len({first(key) for key in state}) == 1:
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return state


def first(key: str) -> str:
    """The first of the names that a key is made of."""
    return key.partition(".")[0]


def require_plain(path: Path, state: dict[str, Tensor], size: int) -> None:
    """BuildError naming the first tensor that is not plain, or with which they are more than `size` bytes can hold.

    Tensors may share what they hold, and so may all elements of one.
    """
    left = MOST_PACKED * size
    for key, value in state.items():
        if value.dtype in WHOLE and key.rpartition(".")[2] not in WEIGHTS:  # as positions, which transformers keep
            raise BuildError(
                f"{path} is not a network known here, it has {key} of {str(value.dtype).removeprefix('torch.')}; "
                "`eca-build archs` lists those that are"
            )
        if value.dtype not in FLOATS or value.layout != torch.strided or value.is_meta or value.is_nested:
            layout = "nested" if value.is_nested else value.layout
            what = f"{value.dtype}, {layout}, on {value.device}".replace("torch.", "")
            raise BuildError(f"{path}: {key} is not a plain tensor of floats ({what}); save the weights as such")
        left -= value.numel() * value.element_size()
        if left < 0:
            raise BuildError(f"{path}: {key} has more values than the file holds; save the weights as plain tensors")
        if value.ndim == 0:
            raise BuildError(f"{path}: {key} has 0 axes, which no weight of the networks here has")


def check(path: Path, arch: str, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Every key there, with its shape, finite, and none besides; else BuildError naming the first."""
    wanted = {key: value for key, value in wanted.items() if not key.endswith("num_batches_tracked")}
    for kind, keys in (
        ("lacks", sorted(wanted.keys() - state.keys())),
        ("has also", sorted(state.keys() - wanted.keys())),
    ):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise BuildError(
                f"{path} looks like {arch} but {kind} {', '.join(keys[:3])}{more}; that network is not supported"
            )
    for key, value in state.items():
        if value.shape != wanted[key].shape:
            raise BuildError(f"{path}: {key} has shape {list(value.shape)}, {arch} needs {list(wanted[key].shape)}")
        value = value.float()  # only now, and one at a time: a large file may be of another network
        if not torch.isfinite(value).all():
            raise BuildError(f"{path}: {key} holds values that are not finite; the training diverged, use another file")
        if key.endswith("running_var") and (value < 0).any():
            raise BuildError(f"{path}: {key} holds negative variances; the file is damaged")
