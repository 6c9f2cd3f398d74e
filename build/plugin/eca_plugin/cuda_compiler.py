"""CUDA C++ to PTX: by nvcc where it is installed, else by NVRTC, which comes with PyTorch for GPUs."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

LIBRARIES = ("libnvrtc.so.13", "libnvrtc.so.12")


class CompilerError(Exception):
    """There is no compiler, or it refuses the source; the message is a sentence."""


def ptx_of(source: Path, constants: Mapping[str, int], capability: int) -> str:
    """The PTX of a source that includes nothing, with `constants` defined, for a compute capability (90 is 9.0).

    Raises CompilerError.
    """
    options = ["-std=c++17", *(f"-D{name}={value}" for name, value in constants.items())]
    tool = shutil.which("nvcc")
    if tool is None:
        return _by_nvrtc(source, [*options, f"--gpu-architecture=compute_{capability}"])
    with tempfile.TemporaryDirectory(prefix="eca-cuda-") as folder:
        target = Path(folder, "kernel.ptx")
        command = [tool, "--ptx", f"-arch=compute_{capability}", *options, str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompilerError(f"nvcc refuses {source.name}: {_first_error(done.stderr or done.stdout)}")
        return target.read_text()


def _by_nvrtc(source: Path, options: list[str]) -> str:
    library = _nvrtc()
    program = ctypes.c_void_p()
    text = source.read_bytes()
    library.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 0, None, None)
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), given):
            log = _answer(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
            raise CompilerError(f"NVRTC refuses {source.name}: {_first_error(log)}")
        return _answer(library.nvrtcGetPTXSize, library.nvrtcGetPTX, program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _answer(size_of: Callable[..., int], read: Callable[..., int], program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    read(program, buffer)
    return buffer.value.decode()


def _nvrtc() -> ctypes.CDLL:
    folders = [Path(folder, "nvidia") for folder in sys.path if Path(folder, "nvidia").is_dir()]
    wheels = [found for folder in folders for name in LIBRARIES for found in folder.glob(f"*/lib/{name}")]
    for name in (*map(str, wheels), *LIBRARIES):
        try:
            for needed in Path(name).parent.glob("libnvrtc-builtins.so.*") if name in map(str, wheels) else ():
                ctypes.CDLL(str(needed))  # it looks for them by name alone
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CompilerError("a kernel in CUDA C++ needs nvcc, or NVRTC, which comes with PyTorch for GPUs")


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "it does not say why")
