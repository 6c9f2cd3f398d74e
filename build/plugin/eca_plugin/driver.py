"""Launches a compiled kernel through NVIDIA's driver alone, in the context that is current."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

from eca_plugin.ahead_of_time import Compiled


class DriverError(Exception):
    """NVIDIA's driver is missing or refused a call."""


@cache
def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise DriverError("NVIDIA's driver (libcuda.so.1) is not installed; a GPU engine cannot run here") from None


def _call(name: str, *arguments: object) -> None:
    status = getattr(_library(), name)(*arguments)
    if status:
        raise DriverError(f"{name} failed with CUDA's status {status}")


@cache
def _function(compiled: Compiled, context: int) -> ctypes.c_void_p:
    """The kernel, loaded once for each context."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _call("cuModuleLoadData", ctypes.byref(module), compiled.ptx.encode() + b"\0")
    _call("cuModuleGetFunction", ctypes.byref(function), module, compiled.name.encode())
    return function


def launch(
    compiled: Compiled,
    grid: tuple[int, int],
    inputs: Sequence[int],
    scalars: Sequence[int],
    output: int,
    stream: int,
) -> None:
    """Starts the kernel on `stream`; `inputs` and `output` are addresses in device memory, `scalars` int32.

    Raises DriverError where the driver refuses.
    """
    context = ctypes.c_void_p()
    _call("cuCtxGetCurrent", ctypes.byref(context))
    values: list[ctypes.c_void_p | ctypes.c_int32] = [ctypes.c_void_p(address) for address in inputs]
    values += [ctypes.c_int32(scalar) for scalar in scalars]
    values.append(ctypes.c_void_p(output))
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    shape = (*grid, 1, compiled.threads, 1, 1, compiled.shared_bytes)
    function = _function(compiled, context.value or 0)
    _call("cuLaunchKernel", function, *shape, ctypes.c_void_p(stream), pointers, None)
