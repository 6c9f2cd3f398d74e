"""From a PyTorch network to an ONNX file with the contract's tensors."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from eca_service.contract import FEATURES, GATES, INPUT, PROBABILITIES, Preprocessing
from onnxscript import opset18
from torch import Tensor, nn

from eca_build.custom_nodes import as_nodes, as_operators
from eca_build.gate_taps import gate_sites, tap
from eca_build.graphs import AttentionGraph, fold_batch_norms, rewrite
from eca_build.networks import Network

OPSET = opset18.version
logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports torchvision's absence, which nothing here needs


class Served(nn.Module):
    """The network as it is served: uint8 [N, H, W, 3] RGB -> probabilities float [N, K], features float [N, C, h, w].

    In float32 the scale of the normalisation goes into the first convolution. The mean is subtracted: zero padding of
    the normalised image means the mean there, so it cannot become the convolution's bias. In another `dtype` the
    network runs in that type from the first convolution to the last map; the scale stays out of the weights, where it
    would make small ones subnormal, and pooling, classifier and softmax of a few thousand values stay in float32.

    With `expose_gates` a third output holds all gates of the attention, float [N, sum of channels]: see `gate_sites`.
    """

    def __init__(
        self,
        network: Network,
        recipe: Preprocessing,
        graph: AttentionGraph = "plain",
        dtype: torch.dtype = torch.float32,
        expose_gates: bool = False,
    ) -> None:
        super().__init__()
        self._gates: dict[str, Tensor] = {}
        self.network = copy.deepcopy(network).eval()
        self.dtype = dtype
        fold_batch_norms(self.network)
        self.sites_rewritten = rewrite(self.network, graph)
        if expose_gates:
            tap(self.network, self._gates)
        std = 255 * torch.tensor(recipe.std).view(1, 3, 1, 1)
        if dtype == torch.float32:
            first = next(m for m in self.network.modules() if isinstance(m, nn.Conv2d))
            with torch.no_grad():
                first.weight /= std
        else:
            self.network.to(dtype).head.float()
            self.register_buffer("std", std)
        self.register_buffer("mean", 255 * torch.tensor(recipe.mean).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs for uint8 [N, H, W, 3]: probabilities, features, and the gates where they are exposed."""
        self._gates.clear()
        x = image.to(torch.float32).permute(0, 3, 1, 2) - self.get_buffer("mean")  # TensorRT moves no uint8 about
        if self.dtype != torch.float32:
            x = (x / self.get_buffer("std")).to(self.dtype)
        features = self.network.feature_map(x).float()
        logits = self.network.head(features.mean((2, 3)))
        outputs = (logits.softmax(1), features)
        if not self._gates:
            return outputs
        gates = torch.cat([gate.float() for gate in self._gates.values()], 1)
        self._gates.clear()  # an export must leave no tensor of its own behind
        return *outputs, gates


@torch.inference_mode()
def reference(network: Network, recipe: Preprocessing, images: Tensor, batch: int = 32) -> Tensor:
    """What the trained network itself answers, in its own type: uint8 [N, crop, crop, 3] -> probabilities [N, K]."""
    dtype = network.head.weight.dtype
    mean, std = (torch.tensor(v, dtype=dtype).view(1, 3, 1, 1) for v in (recipe.mean, recipe.std))
    pixels = (part.permute(0, 3, 1, 2).to(dtype) / 255 for part in images.split(batch))
    parts = [network((part - mean) / std).softmax(1) for part in pixels]
    return torch.cat(parts)


def export(
    network: Network,
    recipe: Preprocessing,
    path: Path,
    graph: AttentionGraph = "plain",
    dtype: torch.dtype = torch.float32,
    expose_gates: bool = False,
) -> int:
    """Writes the served network as ONNX with a dynamic batch to `path`; the number of attention sites rewritten.

    The types in the file are those that run, see `Served`; the fused graphs hold custom nodes, see `custom_nodes`.
    Raises BuildError where the network has no such graph.
    """
    served = Served(network, recipe, graph, dtype, expose_gates)
    outputs = [PROBABILITIES, FEATURES]
    if expose_gates and gate_sites(network, recipe.crop):
        outputs.append(GATES)
    example = torch.zeros(2, recipe.crop, recipe.crop, 3, dtype=torch.uint8)
    batch = {0: torch.export.Dim("N", min=1, max=4096)}
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        with as_nodes():
            program = torch.export.export(served, (example,), dynamic_shapes={"image": batch})
        # The exporter would trace it anew, half of the time, to decompose operators: all of ours it knows as they are.
        program.run_decompositions = lambda *_: program
        try:
            _write(program, path, outputs)
        except torch.onnx.OnnxExporterError:  # not all of these, then
            del program.run_decompositions
            _write(program, path, outputs)
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]  # where in this machine's files each node comes from
    onnx.save(model, path)
    return served.sites_rewritten


def _write(program: torch.export.ExportedProgram, path: Path, outputs: Sequence[str]) -> None:
    torch.onnx.export(
        program,
        f=path,
        input_names=[INPUT],
        output_names=outputs,
        opset_version=OPSET,
        custom_translation_table={torch.ops.aten.to.dtype: _cast},
        external_data=False,
        verbose=False,
        dynamo=True,
    )


def _cast(x: Any, dtype: int) -> Any:
    return opset18.Cast(x, to=dtype)


def export_program(served: Served, path: Path, crop: int, max_batch: int) -> None:
    """Writes the served network as a PyTorch program for batches of 1 to `max_batch` of uint8 [N, crop, crop, 3].

    Its fused graphs hold operators of `torch.ops.eca`.
    """
    module = served.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    example = torch.zeros(min(2, max_batch), crop, crop, 3, dtype=torch.uint8)
    batch = {0: torch.export.Dim("N", min=1, max=max_batch)} if max_batch > 1 else {}
    with as_operators(), torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes={"image": batch}), path)
