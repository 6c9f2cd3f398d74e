"""From a network to engines on disk and their answers; what several engines of one network share is made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from eca_service.contract import ENGINE_FILES, Passport, Preprocessing
from numpy.typing import NDArray

from eca_build import images, inductor, lowering, quantise, tensorrt_plan, tensorrt_rtx, verify
from eca_build.errors import BuildError
from eca_build.export import Served, export, export_program
from eca_build.graphs import FUSED, AttentionGraph
from eca_build.networks import Network
from eca_build.provenance import sha256
from eca_build.quantise import Scheme
from eca_build.sessions import computes_bf16
from eca_build.targets import Variant

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Engine:
    """An engine on disk; `sites` attention sites were rewritten.

    `answers` are probabilities float32 [N, K] for the sample: the engine's own from a new process, then those of other
    runtimes that may serve the file; or, where it cannot run on this machine, those of all that stands for it, which
    `verified` then says.
    """

    file: Path
    onnx_sha256: str
    sites: int
    passport: Passport | None
    answers: tuple[NDArray[np.float32], ...]
    verified: str = ""


class Maker:
    """Makes engines of `network`; `folder` takes what is not published, `sample` is uint8 [N, crop, crop, 3].

    `calibration` are images of the same shape that integers' ranges come from, None where there are none. With
    `expose_gates` the attention's gates are one more output.
    """

    def __init__(
        self,
        network: Network,
        recipe: Preprocessing,
        folder: Path,
        sample: NDArray[np.uint8],
        calibration: NDArray[np.uint8] | None = None,
        expose_gates: bool = False,
    ) -> None:
        self._network, self._recipe, self._folder = network, recipe, folder
        self._sample, self._calibration, self._expose_gates = sample, calibration, expose_gates
        self._models: dict[tuple[AttentionGraph, str], tuple[Path, int]] = {}
        self._integers: dict[tuple[AttentionGraph, Scheme], Path] = {}
        self._answers: dict[tuple[str, ...], NDArray[np.float32]] = {}

    def make(self, variant: Variant, home: Path, step: Callable[[str], None]) -> Engine:
        """Builds the engine in `home` and asks it about the sample; `step` is told what begins.

        Raises BuildError where the network has no such graph or the engine cannot be built or run.
        """
        step(f"build {variant}")
        engine = home / ENGINE_FILES[variant.target]
        if variant.target == "onnx":
            return self._onnx(variant, engine, step)
        if variant.target == "inductor":
            served = self._served(variant)
            passport = inductor.build(served, engine, self._recipe.crop, variant.max_batch)
            step(f"verify {variant}")
            return Engine(engine, "", served.sites_rewritten, passport, (self._ask(variant, engine),))
        if variant.frontend == "torch-tensorrt":
            return self._torch_tensorrt(variant, engine, step)
        integers = variant.precision == "int8"
        model, sites = self._model(variant.attention_graph, "fp32" if integers else variant.precision)
        if integers:
            model = self._int8(variant.attention_graph, quantise.TENSORRT)
        if variant.target == "tensorrt":
            passport = tensorrt_plan.build(model, engine, variant.max_batch)
            step(f"verify {variant}")
            return Engine(engine, sha256(model), sites, passport, (self._ask(variant, engine),))
        passport = tensorrt_rtx.build(model, engine, variant.max_batch)
        step(f"verify {variant}")
        note = "the ONNX model of the engine, on a CPU: the engine itself was not run, no GPU here runs it"
        return Engine(engine, sha256(model), sites, passport, self._in_its_place(variant, model), note)

    def _torch_tensorrt(self, variant: Variant, plan: Path, step: Callable[[str], None]) -> Engine:
        served = self._served(variant)
        sites = served.sites_rewritten
        program = self._folder / f"{variant.attention_graph}-{variant.precision}.pt2"
        export_program(served, program, self._recipe.crop, variant.max_batch)
        fused = sites if variant.attention_graph in FUSED else 0
        passport = tensorrt_plan.build_program(program, plan, variant.max_batch, fused)
        step(f"verify {variant}")
        return Engine(plan, "", sites, passport, (self._ask(variant, plan),))

    def _onnx(self, variant: Variant, engine: Path, step: Callable[[str], None]) -> Engine:
        if variant.runtime == "openvino" and variant.precision == "bf16" and not computes_bf16():
            raise BuildError(
                "this processor computes no bf16, so OpenVINO would give fp32's answers and verify nothing; build on "
                "one with AVX-512 BF16 or AMX, or choose another --precision"
            )
        model, sites = self._model(variant.attention_graph, "fp32")
        if variant.precision == "int8":
            model = self._int8(variant.attention_graph, quantise.CPU)
        shutil.copyfile(model, engine)
        lowering.lower_file(engine)
        step(f"verify {variant}")
        answers = [self._ask(variant, engine)]
        if variant.runtime != "onnxruntime":  # what serves it where that runtime is not installed
            answers.append(self._answer(engine, verify.RUNNER))
        return Engine(engine, sha256(engine), sites, None, tuple(answers))

    def _model(self, graph: AttentionGraph, precision: str) -> tuple[Path, int]:
        """The ONNX model with its custom nodes, and how many sites were rewritten."""
        if (graph, precision) not in self._models:
            path = self._folder / f"{graph}-{precision}.onnx"
            self._models[graph, precision] = (
                path,
                export(self._network, self._recipe, path, graph, DTYPES[precision], self._expose_gates),
            )
        return self._models[graph, precision]

    def _served(self, variant: Variant) -> Served:
        dtype = DTYPES[variant.precision]
        return Served(self._network, self._recipe, variant.attention_graph, dtype, self._expose_gates)

    def _int8(self, graph: AttentionGraph, scheme: Scheme) -> Path:
        if self._calibration is None:
            raise BuildError("int8 needs typical images to set its ranges; give a folder of them to --calibration")
        images.require_typical(self._calibration, "set its ranges")
        images.require_typical(self._sample, "verify it")
        if (graph, scheme) not in self._integers:
            path = self._folder / f"{graph}-int8-{len(self._integers)}.onnx"
            quantise.quantise(self._model(graph, "fp32")[0], path, self._calibration, scheme)
            self._integers[graph, scheme] = path
        return self._integers[graph, scheme]

    def _ask(self, variant: Variant, engine: Path) -> NDArray[np.float32]:
        assert variant.kind is not None
        return self._answer(engine, verify.runner(variant.kind, variant.precision))

    def _answer(self, engine: Path, command: list[str]) -> NDArray[np.float32]:
        key = (sha256(engine), *command)
        if key not in self._answers:
            self._answers[key] = verify.answers(engine, self._sample, command)
        return self._answers[key]

    def _in_its_place(self, variant: Variant, model: Path) -> tuple[NDArray[np.float32], ...]:
        lowered = self._folder / "lowered.onnx"
        shutil.copyfile(model, lowered)
        lowering.lower_file(lowered, widen=variant.precision == "bf16")
        answers = [self._answer(lowered, verify.RUNNER)]
        if variant.precision == "bf16":  # the file was widened: no CPU runtime has these types, PyTorch has
            answers.append(self._in_pytorch(variant))
        return tuple(answers)

    @torch.inference_mode()
    def _in_pytorch(self, variant: Variant, batch: int = 32) -> NDArray[np.float32]:
        served = self._served(variant)
        parts = [served(part)[0] for part in torch.from_numpy(self._sample).split(batch)]
        answers: NDArray[np.float32] = torch.cat(parts).numpy()
        return answers
