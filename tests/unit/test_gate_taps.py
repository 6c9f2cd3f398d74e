"""The gates as an output of the exported network: the network's own, in the order that the contract says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from eca_build import images, lowering, targets
from eca_build.errors import BuildError
from eca_build.export import export
from eca_build.gate_taps import gate_sites
from eca_build.graphs import AttentionGraph
from eca_build.networks.attention import ChannelAttention, Kind
from eca_service.contract import Preprocessing

from tests.unit.test_export import network

RECIPE = Preprocessing(resize=32, crop=32)


@pytest.mark.parametrize(
    ("arch", "attention", "graph"),
    [
        ("resnet14_cifar", "eca", "plain"),
        ("mobilenetv2_cifar", "se", "epilogue"),
    ],
)
def test_gates_are_the_network_s(tmp_path: Path, arch: str, attention: Kind, graph: AttentionGraph) -> None:
    net = network(arch, attention)
    file = tmp_path / "model.onnx"
    export(net, RECIPE, file, graph, expose_gates=True)
    lowering.lower_file(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    sample = images.synthetic(32, 3)
    found = session.run(["gates"], {"image": sample})[0]
    sites = gate_sites(net, 32)
    expected: dict[str, torch.Tensor] = {}
    for path, module in net.named_modules():
        if isinstance(module, ChannelAttention):
            block = path.rpartition(".")[0]
            module.register_forward_hook(
                lambda m, given, _, block=block: expected.update({block: m.gate(given[0].mean((2, 3)))})
            )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (RECIPE.mean, RECIPE.std))
    with torch.inference_mode():
        net((torch.from_numpy(sample).permute(0, 3, 1, 2).float() / 255 - mean) / std)
    assert [site.block for site in sites] == list(expected)
    assert len(sites) == {"resnet14_cifar": 6, "mobilenetv2_cifar": 17}[arch]
    np.testing.assert_allclose(found, torch.cat([expected[site.block] for site in sites], 1), atol=1e-5)
    assert found.shape == (3, sum(site.channels for site in sites))
    assert 0 < found.min() < found.max() < 1


def test_without_attention_there_are_none(tmp_path: Path) -> None:
    net = network("resnet14_cifar", "none")
    export(net, RECIPE, tmp_path / "model.onnx", expose_gates=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["probabilities", "features"]
    assert gate_sites(net, 32) == ()


def test_the_fused_graph_says_why_not() -> None:
    with pytest.raises(BuildError, match="fused computes its gates inside of one operator"):
        targets.variants(targets.Wish(attention_graph="fused", expose_gates=True))
