"""Whether an engine can run here: its passport compared with the machine, before Triton is asked to load it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from eca_service.contract import Contract
from eca_service.integrity import again

LOOK_TIMEOUT_S = 20
QUERY = "name,compute_cap,driver_version"
UNSAID = "its contract does not say what the engine was built with"
Obstacle = Callable[[Contract], str | None]


@dataclass(frozen=True)
class Gpu:
    """A GPU and its compute capability, such as "9.0"."""

    name: str
    compute_capability: str


@dataclass(frozen=True)
class Machine:
    """What compiled engines depend on.

    `driver` is None where there is none, `tensorrt` where no library of it was found, `torch` where PyTorch is not
    installed. `instructions` are the processor's, by the kernel's names. `shared`: Triton may run in another container,
    which has libraries and, where none is seen from here, GPUs of its own.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    tensorrt: str | None = None
    torch: str | None = None
    instructions: frozenset[str] = frozenset()
    shared: bool = False


def look() -> Machine:
    """This machine, as nvidia-smi and TensorRT's library tell; without either it has no GPU, no TensorRT."""
    gpus: list[Gpu] = []
    driver = None
    tool = shutil.which("nvidia-smi")
    if tool:
        try:
            done = subprocess.run(
                [tool, f"--query-gpu={QUERY}", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                timeout=LOOK_TIMEOUT_S,
                check=False,
            )
            rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
            for row in rows if done.returncode == 0 else []:
                if len(row) == 3:
                    gpus.append(Gpu(row[0], row[1]))
                    driver = row[2]
        except (OSError, subprocess.TimeoutExpired):
            pass  # a driver that does not answer is none
    return Machine(tuple(gpus), driver, _tensorrt(), _torch(), _instructions())


def _tensorrt() -> str | None:
    for major in (10, 11):
        try:
            number = ctypes.CDLL(f"libnvinfer.so.{major}").getInferLibVersion()
        except (OSError, AttributeError):
            continue
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return None


def _torch() -> str | None:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def _instructions() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return frozenset(next(flags, ()))


def obstacle(contract: Contract, machine: Machine | None) -> str | None:
    """Why `contract`'s engine cannot be served on `machine`, and what to do, in a sentence; None where it can.

    `machine` is None where Triton runs on another one: what that has is for its Triton to say.
    """
    if contract.engine == "onnx":
        return None
    if contract.engine == "tensorrt-rtx":
        return "Triton has no backend for TensorRT-RTX engines; build it with --target onnx or --target tensorrt"
    differ = _inductor_difference if contract.engine == "inductor" else _difference
    difference = differ(contract, machine) if machine else None
    return f"{difference}; build it again here: `{again(contract)}`" if difference else None


def _difference(contract: Contract, machine: Machine) -> str | None:
    passport = contract.passport
    if passport is None or not passport.gpu or not passport.compute_capability:
        return UNSAID
    if not machine.gpus:
        return None if machine.shared else f"it was built for {passport.gpu}, but here is no NVIDIA GPU with a driver"
    built = f"{passport.gpu} (compute capability {passport.compute_capability})"
    here = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in machine.gpus)
    if Gpu(passport.gpu, passport.compute_capability) not in machine.gpus:
        return f"it was built for {built}, but this machine has {here}"
    tensorrt = None if machine.shared else machine.tensorrt
    if passport.tensorrt and tensorrt and _numbers(tensorrt)[:3] != _numbers(passport.tensorrt)[:3]:
        return f"it was built with TensorRT {passport.tensorrt}, but this machine has {tensorrt}"
    if passport.driver and machine.driver and _numbers(machine.driver) < _numbers(passport.driver):
        return f"it was built with NVIDIA's driver {passport.driver}, but this machine has the older {machine.driver}"
    return None


def _inductor_difference(contract: Contract, machine: Machine) -> str | None:
    passport = contract.passport
    if passport is None or not passport.torch or (passport.device == "cuda" and not passport.compute_capability):
        return UNSAID
    if machine.torch is None and not machine.shared:
        return f"it runs in PyTorch {passport.torch}, which is not installed here"
    torch = None if machine.shared else machine.torch
    if torch and _numbers(torch)[:3] != _numbers(passport.torch)[:3]:
        return f"it was built with PyTorch {passport.torch}, but this machine has {torch}"
    if passport.device == "cpu":
        missing = sorted(set(passport.instructions) - machine.instructions)
        return f"it was built for a processor with {' '.join(missing)}, which this one lacks" if missing else None
    if not machine.gpus:
        here = f"it was built for {passport.gpu or 'a GPU'}, but here is no NVIDIA GPU with a driver"
        return None if machine.shared else here
    if passport.compute_capability not in {gpu.compute_capability for gpu in machine.gpus}:
        here = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in machine.gpus)
        built = f"{passport.gpu} (compute capability {passport.compute_capability})"
        return f"it was built for {built}, but this machine has {here}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())


def obstacle_of(triton_url: str | None) -> Obstacle:
    """`obstacle` for the machine on which that Triton runs, which is looked at once.

    The embedded one (None) has what is here; one on a loopback address has this processor, and what GPUs are seen here.
    """
    machine = replace(look(), shared=triton_url is not None) if _is_here(triton_url) else None
    return lambda contract: obstacle(contract, machine)


def _is_here(triton_url: str | None) -> bool:
    """Whether Triton runs on this machine: the embedded one (None), or one on a loopback address."""
    hosts = {(one.rsplit(":", 1)[0]).strip() for one in (triton_url or "127.0.0.1:0").split(",")}
    return hosts <= {"127.0.0.1", "localhost", "[::1]", os.uname().nodename}
