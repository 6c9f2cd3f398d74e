"""What is compared: backbone x attention x precision x graph, and the presets that choose from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from eca_build import initial
from eca_build.compile import compile_checkpoint
from eca_build.errors import BuildError
from eca_build.graphs import AttentionGraph
from eca_build.inputs import Options
from eca_build.networks.attention import Kind
from eca_build.targets import PRECISIONS, Auto, Precision, Runtime, Wish

from tests.load.arrivals import Process

DEMO = Path(__file__).parents[2] / "build" / "demo"
# Architecture and width of what can be compared, by the name that a report uses.
BACKBONES = {
    "resnet50": ("resnet50", 1.0),
    "resnet18": ("resnet18", 1.0),
    "mobilenetv2": ("mobilenetv2", 1.0),
    "resnet14-demo": ("resnet14_cifar", 2.0),
    "mobilenetv2-demo": ("mobilenetv2_cifar", 1.0),
}
DEMO_WEIGHTS = {"resnet14-demo": "resnet14", "mobilenetv2-demo": "mobilenetv2"}


@dataclass(frozen=True)
class Variant:
    """One network as it is served."""

    backbone: str
    attention: Kind
    precision: Precision | Auto = "fp32"  # auto: with the fastest runtime too, as `make serve` builds
    graph: AttentionGraph = "plain"
    runtime: Runtime | Auto | None = None  # the plainest that has the precision

    @property
    def name(self) -> str:
        """Its model's name: backbone and attention, and what else is not the default."""
        parts = [self.backbone, "plain" if self.attention == "none" else self.attention]
        parts += [self.precision] if self.precision != "fp32" else []
        parts += [self.graph] if self.graph != "plain" else []
        parts += [f"in-{self.runtime}"] if self.runtime else []
        return "-".join(parts)

    @property
    def base(self) -> Variant:
        """What it is compared with: its backbone without attention."""
        return Variant(self.backbone, "none", self.precision)

    @property
    def weights(self) -> Path | None:
        """Trained weights of a demo network, where there are some."""
        stem = DEMO_WEIGHTS.get(self.backbone)
        path = DEMO / f"{stem}-{self.attention}.safetensors"
        return path if stem and path.exists() else None


@dataclass(frozen=True)
class Level:
    """One kind of load on one interface: `callers` at once, or arrivals at `share` of the plain network's capacity."""

    way: str  # http, grpc, triton
    callers: int = 0
    share: float = 0.0
    process: Process = "poisson"

    @property
    def name(self) -> str:
        """Such as `http closed 8` or `http poisson 70 %`."""
        return (
            f"{self.way} closed {self.callers}"
            if self.callers
            else f"{self.way} {self.process} {100 * self.share:.0f} %"
        )


ALONE, BUSY, ENGINE = Level("http", 1), Level("http", 8), Level("triton", 1)


@dataclass(frozen=True)
class Preset:
    """A run: `rounds` rounds of blocks of `seconds` each, twice that for open load; `most` requests a block."""

    backbones: tuple[str, ...]
    attentions: tuple[Kind, ...] = ("none", "se", "eca", "cbam")
    precisions: tuple[Precision | Auto, ...] = ("fp32",)
    graphs: tuple[AttentionGraph, ...] = ("plain",)
    levels: tuple[Level, ...] = (ALONE, BUSY, ENGINE)
    rounds: int = 5
    seconds: float = 1.0
    most: int = 20_000
    others: dict[str, tuple[Kind, ...]] = field(default_factory=dict)  # further attentions of a backbone

    def variants(self, backbone: str) -> list[Variant]:
        """All of one backbone; only the plain graph where there is no attention to rewrite."""
        return [
            Variant(backbone, attention, precision, graph)
            for attention in (*self.attentions, *self.others.get(backbone, ()))
            for precision in self.precisions
            for graph in (self.graphs if attention != "none" else ("plain",))
        ]


OPEN = tuple(Level("http", share=share) for share in (0.4, 0.7, 0.9))
ABLATION: tuple[Kind, ...] = ("se-var1", "se-var2", "se-var3", "se-gc1", "se-gc2", "se-gc3", "eca-ns")
PRESETS = {
    "smoke": Preset(
        ("resnet14-demo",), ("none", "eca"), levels=(ALONE, Level("grpc", 2), ENGINE, OPEN[1]), rounds=2, seconds=0.3
    ),
    "default": Preset(
        ("resnet50", "resnet18", "mobilenetv2", "resnet14-demo"), levels=(ALONE, BUSY, ENGINE, *OPEN), seconds=0.6
    ),
    "full": Preset(
        tuple(BACKBONES),
        precisions=PRECISIONS["openvino"],
        graphs=("plain", "hoisted"),
        levels=(
            *(ALONE, BUSY, ENGINE, *OPEN),
            *(Level("http", 32), Level("grpc", 1), Level("grpc", 8), Level("triton", 4)),
            *(Level("http", share=0.7, process="constant"), Level("grpc", share=0.7)),
        ),
        rounds=8,
        seconds=2.0,
        others={"resnet50": ABLATION},
    ),
}


def selected(preset: Preset, **given: tuple[str, ...]) -> Preset:
    """`preset` with these backbones, attentions, precisions, graphs instead. ValueError for an unknown one."""
    known: dict[str, tuple[str, ...]] = {
        "backbones": tuple(BACKBONES),
        "attentions": get_args(Kind),
        "precisions": (*PRECISIONS["openvino"], "auto"),
        "graphs": get_args(AttentionGraph),
    }
    chosen = {name: values for name, values in given.items() if values}
    for name, values in chosen.items():
        for value in values:
            if value not in known[name]:
                raise ValueError(f"{value} is none of the {name}: {', '.join(known[name])}")
    if "attentions" in chosen and "none" not in chosen["attentions"]:
        chosen["attentions"] = ("none", *chosen["attentions"])  # all are compared with it
    return Preset(**(preset.__dict__ | {"others": {} if "attentions" in chosen else preset.others} | chosen))


def build(variant: Variant, folder: Path) -> Path:
    """Publishes the variant below `folder` and returns its backbone's repository. Raises BuildError.

    Weights are the demo's where there are some, else random: `eca-build init` writes them, and they say so. What was
    built before is kept; a repository holds one backbone, so that only what is compared is loaded together.
    """
    arch, width = BACKBONES[variant.backbone]
    weights = variant.weights
    if weights is None:
        weights = folder / "checkpoints" / f"{variant.backbone}-{variant.attention}.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        classes = 10 if arch.endswith("_cifar") else 1000
        initial.write(weights, arch, variant.attention, classes, width)  # the same each time
    repository = folder / "repositories" / variant.backbone
    precision, runtime = variant.precision, variant.runtime
    if runtime is None:
        plainest: Runtime = "onnxruntime" if precision in PRECISIONS["onnxruntime"] else "openvino"
        runtime = "auto" if precision == "auto" else plainest
    wish = Wish(precision=precision, attention_graph=variant.graph, runtime=runtime)
    options = Options(weights, repository, name=variant.name, images=DEMO / "images", wish=wish)
    compile_checkpoint(options, lambda step: None)
    return repository


def build_all(variants: list[Variant], folder: Path, done: Callable[[str], None]) -> dict[str, str]:
    """Builds what is not there, and why each that could not be built was not, by name; `done` hears each name."""
    notes: dict[str, str] = {}
    for variant in variants:
        done(variant.name)
        mark = folder / "repositories" / variant.backbone / variant.name
        key = _key(variant)
        stamp = folder / "built" / variant.name
        if mark.is_dir() and stamp.exists() and stamp.read_text() == key:
            continue
        try:
            build(variant, folder)
        except BuildError as error:
            notes[variant.name] = str(error)
            continue
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(key)
    return notes


def _key(variant: Variant) -> str:
    """Changes with the weights and with the build step's sources, so that a stale model is built again."""
    sources = sorted((Path(__file__).parents[2] / "build" / "eca_build").rglob("*.py"))
    parts = [variant.name, *(hashlib.sha256(path.read_bytes()).hexdigest() for path in sources)]
    if variant.weights:
        parts.append(hashlib.sha256(variant.weights.read_bytes()).hexdigest())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
