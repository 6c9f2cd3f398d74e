"""Measures the kernels and the networks on this machine's GPU, the most important first, within ten minutes.

    python -m tests.gpu.measure --out FOLDER [--write build/plugin/MEASURED.md]

from the repository's root. It needs PyTorch 2.11, Triton 3.6 and this repository, no installation; the sections `rtx`
(TensorRT-RTX's engines) and `service` need more, and say what of it is missing. Every figure is written to
FOLDER/measured.json and to the page as soon as there is one; FOLDER/kernels.json is the table of the fastest kernels.
With `--only` the other sections stay as an earlier run left them in FOLDER, so that two short runs make one page.
Each section runs in a process of its own: after a kernel that fails nothing else runs in the same.
`--dry-run` goes through all of it on a CPU, under Triton's interpreter, with tiny shapes: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOMES = (ROOT, ROOT / "build", ROOT / "build" / "plugin", ROOT / "service")
for home in HOMES:
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))
if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
import triton
from eca_plugin.sources import kernels_sha256
from eca_plugin.timing import copy_bandwidth

from tests.gpu.report import Report, Row
from tests.gpu.sections import SECTIONS, SHARES, Run

MOST_TRIES = 5  # of a section, each without what failed before
GRACE_S = 10.0


def isolated(name: str, section: Callable[[Run], Iterator[Row]], run: Run) -> None:
    """Measures a section until its `run.end`, in new processes: after one that died another, as long as that helps."""
    run.report.section = name
    for _ in range(MOST_TRIES):
        failed = set(run.report.failed)
        process = multiprocessing.get_context("spawn").Process(target=_measure, args=(name, section, run))
        process.start()
        process.join(max(0.0, run.left_s) + GRACE_S)
        late = process.is_alive()
        if late:
            os.kill(process.pid or 0, signal.SIGINT)  # so that it ends what it has started
            process.join(GRACE_S)
            process.kill()
            process.join()
        run.report.reload()
        new = [what for what in run.report.failed if what not in failed]
        if late or process.exitcode:
            how = "not over in its time" if late else f"its process ended with status {process.exitcode}"
            run.report.note(f"{name}: {how}" + (f", with {new[-1]}" if new else ""))
        if late or not process.exitcode or not new:
            return


def _measure(name: str, section: Callable[[Run], Iterator[Row]], run: Run) -> None:
    try:
        for row in section(run):
            run.report.add(name, row)
            print("  " + ", ".join(f"{key} {value}" for key, value in row.items()), file=sys.stderr, flush=True)
    except Exception as error:
        run.report.note(f"{name}: {type(error).__name__}: {str(error).strip()[:300]}")
        raise


def environment(dry: bool) -> tuple[Row, int | None, int]:
    """What the figures depend on, the compute capability (90 is 9.0), and the bytes of the L2 cache."""
    command = " ".join(["python -m tests.gpu.measure", *sys.argv[1:]])
    found: Row = {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "command": command}
    found |= {"torch": torch.__version__, "triton": triton.__version__, "kernels": kernels_sha256()[:12]}
    if dry:
        return found | {"chip": "none: a dry run, whose figures mean nothing"}, None, 1 << 16
    if not torch.cuda.is_available():
        sys.exit("measure: PyTorch finds no GPU here; --dry-run goes through all sections on a CPU")
    chip = torch.cuda.get_device_properties(0)
    found |= {"chip": chip.name, "multiprocessors": chip.multi_processor_count, "L2 MB": chip.L2_cache_size / 1e6}
    return found | {"cuda": torch.version.cuda or "?"}, 10 * chip.major + chip.minor, chip.L2_cache_size


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures; made where it is missing")
    parser.add_argument("--write", type=Path, help="page between whose marks the tables go, such as MEASURED.md")
    parser.add_argument("--seconds", type=float, default=560, help="the whole run's time, default %(default)s")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="a section; may be given again")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny shapes, to see that nothing breaks")
    options = parser.parse_args()
    # what the sections start finds this repository too, where it is not installed
    os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, HOMES), *filter(None, [os.environ.get("PYTHONPATH")])])
    options.out.mkdir(parents=True, exist_ok=True)
    found, chip, cache_bytes = environment(options.dry_run)
    wanted = options.only or list(SECTIONS)
    try:
        report = Report(options.out, found, options.write, wanted)
    except (OSError, ValueError) as error:
        sys.exit(f"measure: {error}")
    if "bandwidth" in wanted:
        (options.out / "kernels.json").unlink(missing_ok=True)  # an earlier run's
    end = time.monotonic() + options.seconds
    copy = copy_bandwidth(1 << 20 if options.dry_run else 1 << 30, 0.0 if options.dry_run else 0.5)
    found["copy GB/s"] = copy / 1e9
    run = Run(options.out, report, str(found["chip"]), chip, cache_bytes, copy)
    for name in wanted:
        left_s = end - time.monotonic()
        print(f"measure: {name}, {left_s:.0f} s left", file=sys.stderr, flush=True)
        run.end = time.monotonic() + (1.0 if name == wanted[-1] else SHARES[name]) * left_s
        isolated(name, SECTIONS[name], run)
    print(report.markdown())


if __name__ == "__main__":
    main()
