"""Accuracy and speed of every runtime and precision that a CPU has, for each demo network.

    python build/demo/precisions.py --data cifar10-jpeg.tar.xz

Each engine answers for all of CIFAR-10's test images; those of one network are then measured together, in blocks that
alternate. Prints a Markdown table, row by row: accuracy, agreement with PyTorch in float32, and images per second by
batch, of one session with all cores and of two with half of them each. OpenVINO's rows need the extra `openvino`.
Exit code 1 where an engine loses more than half a point of accuracy.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from cifar10 import load
from eca_build import checkpoint, images, measure, targets
from eca_build.engine import Maker
from eca_build.export import reference
from eca_build.measure import BATCHES, Runnable
from eca_build.recipes import default_recipe
from eca_build.targets import Wish
from eca_service import cgroups
from tqdm import tqdm

HERE = Path(__file__).parent
LAYOUTS = (1, 2)  # sessions at once
ROUNDS = 25
MOST_LOST = 0.005  # of the accuracy


def rows(weights: Path, source: Path, most: int, bar: tqdm[str]) -> tuple[list[str], float]:
    """The table's rows of one network, and the most of its accuracy that an engine loses, in [0, 1].

    `most` test images are asked, all where it is 0.
    """
    _, _, pixels, labels = load(source)
    pixels, labels = pixels[: most or None], labels[: most or None]
    loaded = checkpoint.load(weights)
    recipe = default_recipe(loaded.spec.arch)
    expected = reference(loaded.network, recipe, torch.from_numpy(pixels), 250).numpy().argmax(1)
    variants = targets.variants(Wish(precision="auto", runtime="auto"))
    with tempfile.TemporaryDirectory(prefix="eca-precisions-") as temporary:
        maker = Maker(loaded.network, recipe, Path(temporary), pixels, images.load(HERE / "images", recipe))
        engines = []
        for index, variant in enumerate(variants):
            home = Path(temporary, str(index))
            home.mkdir()
            engines.append(maker.make(variant, home, bar.set_postfix_str))
        runnables = [
            Runnable(variant.kind, variant.precision, str(engine.file))
            for variant, engine in zip(variants, engines, strict=True)
            if variant.kind
        ]
        bar.set_postfix_str("measure")
        speeds = [measure.measure(runnables, pixels, max(BATCHES), streams, ROUNDS) for streams in LAYOUTS]
    table = [f"| {weights.stem} | PyTorch fp32 | {(expected == labels).mean():.2%} | |" + " |" * 2 * len(BATCHES)]
    lost = 0.0
    for index, (variant, engine) in enumerate(zip(variants, engines, strict=True)):
        best = engine.answers[0].argmax(1)
        lost = max(lost, float((expected == labels).mean() - (best == labels).mean()))
        rates = [f"{speed[index].images_per_s[batch]:.0f}" for speed in speeds for batch in BATCHES]
        table.append(
            f"| {weights.stem} | {variant.runtime} {variant.precision} | {(best == labels).mean():.2%} "
            f"| {(best == expected).mean():.2%} | {' | '.join(rates)} |"
        )
    return table, lost


def main() -> int:
    """Prints the table; see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10: an archive or an unpacked folder")
    parser.add_argument("--network", action="append", help="default: all whose weights are there")
    parser.add_argument("--images", type=int, default=0, help="test images to ask; default: all")
    options = parser.parse_args()
    found = {path.stem: path for path in sorted(HERE.glob("*.safetensors"))}
    if unknown := set(options.network or ()) - set(found):
        raise SystemExit(f"there are no weights of {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    cores = cgroups.cores()
    heads = [f"{n} x {max(1, cores // n)}: {batch}" for n in LAYOUTS for batch in BATCHES]
    print(f"{measure.machine()}; sessions x threads: batch\n")
    print(f"| network | engine | accuracy | agreement | {' | '.join(heads)} |")
    print("|---|---|---|---|" + "---|" * len(heads), flush=True)
    with tqdm(options.network or list(found), unit="network", disable=None) as bar:
        losses = []
        for name in bar:
            table, lost = rows(found[name], options.data, options.images, bar)
            losses.append(lost)
            print("\n".join(table), flush=True)
    return int(max(losses) > MOST_LOST)


if __name__ == "__main__":
    sys.exit(main())
