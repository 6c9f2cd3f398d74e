"""The gates as an output of the exported network: the network's own, in the order that the contract says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from eca_build import images, targets
from eca_build.errors import BuildError
from eca_build.export import Served, export
from eca_build.gate_taps import gate_sites
from eca_build.graphs import AttentionGraph
from eca_build.networks.attention import ChannelAttention, Kind
from eca_service.contract import Preprocessing
from numpy.typing import NDArray

from tests.unit.test_export import network

RECIPE = Preprocessing(resize=32, crop=32)


def normalised(sample: NDArray[np.uint8]) -> torch.Tensor:
    """As the network was trained on it: float [N, 3, 32, 32]."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (RECIPE.mean, RECIPE.std))
    return (torch.from_numpy(sample).permute(0, 3, 1, 2).float() / 255 - mean) / std


@pytest.mark.parametrize(
    ("arch", "attention", "graph"),
    [
        ("resnet14_cifar", "eca", "plain"),
        ("mobilenetv2_cifar", "se", "epilogue"),
    ],
)
def test_gates_are_the_network_s(arch: str, attention: Kind, graph: AttentionGraph) -> None:
    net, sample = network(arch, attention), images.synthetic(32, 3)
    with torch.inference_mode():
        *_, found = Served(net, RECIPE, graph, expose_gates=True)(torch.from_numpy(sample))
    expected: dict[str, torch.Tensor] = {}
    sites = gate_sites(net, 32)
    for path, module in net.named_modules():
        if isinstance(module, ChannelAttention):
            block = path.rpartition(".")[0]
            module.register_forward_hook(
                lambda m, given, _, block=block: expected.update({block: m.gate(given[0].mean((2, 3)))})
            )
    with torch.inference_mode():
        net(normalised(sample))
    assert [site.block for site in sites] == list(expected)
    assert len(sites) == {"resnet14_cifar": 6, "mobilenetv2_cifar": 17}[arch]
    torch.testing.assert_close(found, torch.cat([expected[site.block] for site in sites], 1), atol=1e-5, rtol=0)
    assert found.shape == (3, sum(site.channels for site in sites))
    assert 0 < found.min() < found.max() < 1


@pytest.mark.parametrize("attention", ["eca", "none"])
def test_the_file_has_them_where_there_are_any(tmp_path: Path, attention: Kind) -> None:
    net, sample = network("resnet14_cifar", attention), images.synthetic(32, 3)
    export(net, RECIPE, tmp_path / "model.onnx", expose_gates=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["probabilities", "features", *(["gates"] if attention == "eca" else [])]
    for got, expected in zip(
        session.run(names, {"image": sample}),
        Served(net, RECIPE, expose_gates=True)(torch.from_numpy(sample)),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected.detach(), atol=1e-4)
    assert (gate_sites(net, 32) == ()) == (attention == "none")


def test_the_fused_graph_says_why_not() -> None:
    with pytest.raises(BuildError, match="fused cannot expose its gates"):
        targets.variants(targets.Wish(attention_graph="fused", expose_gates=True))
