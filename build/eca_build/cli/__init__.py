"""The `eca-build` command."""

from __future__ import annotations

import atexit
import errno
import gc
import io
import os
import signal
import sys

import click
from eca_service.cgroups import cores

from eca_build.cli.compiling import compile_
from eca_build.cli.inspecting import archs, init, inspect
from eca_build.errors import BuildError

EXTRA = {"torch", "safetensors", "onnx", "onnxruntime", "onnxscript"}  # what pyproject.toml's extra `build` installs
NO_MEMORY = "DefaultCPUAllocator"  # in torch's RuntimeError where it gets none


class _Commands(click.Group):
    """Turns what a user can mend into its sentence and exit code 2: a BuildError of any command, a base install without
    the extra, an output that is full, too little memory."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BuildError as error:
            click.echo(f"eca-build: {error}", err=True)
            ctx.exit(2)
        except ModuleNotFoundError as error:
            if error.name not in EXTRA:
                raise
            click.echo(f"eca-build: {error.name} is not installed; pip install 'eca-serve[build]'", err=True)
            ctx.exit(2)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            click.echo(f"eca-build: the output cannot be written: {error.strerror}", err=True)
            ctx.exit(2)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and NO_MEMORY not in str(error):
                raise
            click.echo(
                "eca-build: the memory does not suffice; give fewer --most-images or a smaller --crop, or build where "
                "there is more",
                err=True,
            )
            ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="eca-serve")
def main() -> None:
    """Turns trained checkpoints into verified, published model versions."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files that are no UTF-8 are written as they are
        sys.stdout.reconfigure(errors="surrogateescape")
    # `docker stop`: as Ctrl-C, so that what it started ends and nothing it wrote stays
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # of unlike GPUs CUDA's first is another than nvidia-smi's
    if (worth := cores()) < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(worth))  # torch knows of no quota
    atexit.register(gc.freeze)  # else all of torch is looked through for garbage at the end, for a second


for command in (archs, inspect, init, compile_):
    main.add_command(command)
