"""Reads a checkpoint file as data, never as code, and gives the network it holds."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from eca_build.detect import detect
from eca_build.errors import BuildError
from eca_build.layouts import canonical
from eca_build.networks import Network, NetworkSpec, create
from eca_build.networks.attention import Kind

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")
# The authors' files keep the best precision as a numpy scalar: data, though pickled as a call.
HARMLESS = [
    np.dtype,
    np.core.multiarray.scalar,  # type: ignore[attr-defined]
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
]


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
    """Reads `path` (.pth, .pth.tar, .pt, .safetensors) and finds architecture, attention, kernel sizes and classes.

    SE-Var1 has no weights of its own, so that its networks look like plain ones: `attention` must say it, or the notes
    in a file of ours. Raises BuildError, one sentence naming the file or the key, where the file is missing, damaged,
    wants to run code, is no network of ours, is not `arch` with `attention`, or has missing, unexpected, misshapen or
    non-finite weights.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BuildError(f"the checkpoint {path} cannot be read: {error.strerror}") from None
    if not content:
        raise BuildError(f"the checkpoint {path} is empty; copy it again")
    notes: dict[str, str] = {}
    if path.suffix == ".safetensors":
        raw, notes = read_safetensors(path, content)
    else:
        raw = read_torch(path)
    state, origin = canonical(strip(raw))
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
    network = create(spec)
    check(path, spec.arch, state, network.state_dict())
    network.load_state_dict(state, strict=False)
    sha256 = hashlib.sha256(content).hexdigest()
    weights: Literal["trained", "random"] = "random" if notes.get("weights") == "random" else "trained"
    return Checkpoint(path, sha256, origin, spec, network.eval(), weights)


def save(path: Path, network: Network, notes: dict[str, str]) -> None:
    """Writes a network's weights, and `notes` as the file's metadata, as safetensors. Raises BuildError."""
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    try:
        path.write_bytes(save_safetensors(state, notes))
    except OSError as error:
        raise BuildError(f"{path} cannot be written: {error.strerror}") from None


def read_safetensors(path: Path, content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata; BuildError where it is damaged."""
    try:
        tensors = load_safetensors(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, header.get("__metadata__") or {}
    except safetensors.SafetensorError as error:
        raise BuildError(f"{path} is damaged or no safetensors file ({error}); copy it again") from None


def read_torch(path: Path) -> dict[str, Tensor]:
    """The state dict of a file that torch.save wrote, without its training dict; BuildError where it holds none."""
    try:
        with torch.serialization.safe_globals(HARMLESS):
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"(?:GLOBAL|global) (\S+)", str(error))
        if asked is None:
            raise BuildError(f"{path} is damaged or no checkpoint; copy it again") from None
        raise BuildError(
            f"{path} wants to run code ({asked[1]}), which is refused; save its state_dict alone and give that"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise BuildError(f"{path} is damaged or no checkpoint; copy it again") from None
    while isinstance(raw, dict):
        inner = next((raw[key] for key in WRAPPERS if isinstance(raw.get(key), dict)), None)
        if inner is None:
            break
        raw = inner
    if (
        not isinstance(raw, dict)
        or not raw
        or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in raw.items())
    ):
        raise BuildError(f"{path} holds no state_dict; save the network's state_dict() and give that")
    return raw


def strip(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers that every key carries, and without batch counters."""
    state = {key: value for key, value in raw.items() if not key.endswith("num_batches_tracked")}
    for prefix in PREFIXES * 2:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def check(path: Path, arch: str, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Every key there, with its shape, finite, and none besides; else BuildError naming the first."""
    wanted = {key: value for key, value in wanted.items() if not key.endswith("num_batches_tracked")}
    for kind, keys in (
        ("lacks", sorted(wanted.keys() - state.keys())),
        ("has also", sorted(state.keys() - wanted.keys())),
    ):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise BuildError(f"{path} looks like {arch} but {kind} {', '.join(keys[:3])}{more}; it is another network")
    for key, value in state.items():
        if value.shape != wanted[key].shape:
            raise BuildError(f"{path}: {key} has shape {list(value.shape)}, {arch} needs {list(wanted[key].shape)}")
        if not torch.isfinite(value).all():
            raise BuildError(f"{path}: {key} holds values that are not finite; the training diverged, use another file")
        if key.endswith("running_var") and (value < 0).any():
            raise BuildError(f"{path}: {key} holds negative variances; the file is damaged")
