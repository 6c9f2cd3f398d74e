"""Between Triton's tensors and numpy's arrays, in a process of Triton's Python backend.

By DLPack: Triton's own way knows numpy 1 alone, and sees no bytes of numpy 2's arrays.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


def array_of(tensor: Any) -> Any:
    """A tensor of Triton's as an array of its shape and type, without a copy."""
    return np.from_dlpack(tensor)


def tensor_of(name: str, rows: Any) -> Any:
    """An array of numbers as a tensor of Triton's, of the same shape and type.

    Triton takes rows in C's order alone; a package of PyTorch's compiler gives its maps pixel by pixel.
    """
    return pb_utils.Tensor.from_dlpack(name, _Shared(np.ascontiguousarray(rows)))


class _Shared:
    """An array that Triton takes by DLPack. It renames the capsule, which numpy's destructor would complain of."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self._rows.__dlpack__()
        ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)  # Triton frees what is in it
        return capsule

    def __dlpack_device__(self) -> Any:
        return self._rows.__dlpack_device__()
