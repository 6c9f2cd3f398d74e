"""Stands for NVIDIA's driver: launches PTX on the CPU, over tensors that lie there."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import torch
from torch import Tensor

from tests.unit.ptx_machine import launch
from tests.unit.ptx_memory import DeviceMemory
from tests.unit.ptx_program import Program, parsed

SHARED_BYTES = 48 << 10  # that a launch has without more ado
MOST_BLOCKS = 65535  # on a grid's second axis
CONTEXTS = itertools.count(1)


class Driver:
    """The calls that `eca_plugin.driver` makes, on the buffers of `memory`."""

    def __init__(self) -> None:
        self.memory = DeviceMemory()
        self.launches = 0
        self._context = next(CONTEXTS)
        self._programs: list[Program] = []

    def add(self, tensor: Tensor) -> int:
        """The address of a tensor, contiguous or channels_last, whose memory stays its own."""
        plain = tensor if tensor.is_contiguous() else tensor.permute(0, 2, 3, 1)
        assert plain.is_contiguous()
        return self.memory.add(plain.reshape(-1).view(torch.uint8).numpy())

    def cuCtxGetCurrent(self, context: Any) -> int:
        context._obj.value = self._context
        return 0

    def cuModuleLoadData(self, module: Any, text: bytes) -> int:
        assert text.endswith(b"\0")
        self._programs.append(parsed(text[:-1].decode()))
        module._obj.value = len(self._programs)
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        assert self._programs[module.value - 1].name == name.decode()
        function._obj.value = module.value
        return 0

    def cuLaunchKernel(self, function: Any, *shape: Any) -> int:
        """As NVIDIA's reads its arguments: of each parameter that the PTX declares, as many bytes as it has."""
        *grid, z, threads, y_threads, z_threads, shared_bytes, _stream, pointers, extra = shape
        program = self._programs[function.value - 1]
        assert (z, threads, y_threads, z_threads, extra) == (1, program.threads, 1, 1, None)
        assert 0 < grid[1] <= MOST_BLOCKS
        assert shared_bytes <= SHARED_BYTES
        assert len(pointers) == len(program.parameters)
        given = [
            int.from_bytes(ctypes.string_at(pointer, size), "little")
            for pointer, (_, size) in zip(pointers, program.parameters, strict=True)
        ]
        launch(program, (grid[0], grid[1]), shared_bytes, given, self.memory)
        self.launches += 1
        return 0
