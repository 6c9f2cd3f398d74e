"""The five graphs of a network give the same answers, and rewrite every attention site or none."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from eca_build import images, lowering, verify
from eca_build.errors import BuildError
from eca_build.export import Served, export, reference
from eca_build.graphs import ATTENTION_GRAPHS, AttentionGraph, fold_batch_norms, rewrite
from eca_build.networks import Network, create, with_formula
from eca_build.networks.attention import AttentionSites, Kind
from eca_build.networks.resnet import Bottleneck, ResNet, Shape, Stage
from eca_build.sessions import open_session
from eca_plugin import NAMESPACE
from eca_service.contract import Preprocessing

from tests.unit.test_export import network, stirred

SMALL = Preprocessing(resize=32, crop=32)
OPERATOR = {"fused": "FusedECA", "hoisted-fused": "ScaleAddReLU", "epilogue": "GatedConv1x1"}
BOTTLENECKS = "a ResNet of five bottlenecks"  # with and without a shortcut of their own, in groups, and pruned
PRUNED = Shape(
    Bottleneck,
    (64,),
    (
        Stage(190, ((64, 64), (32, 48))),
        Stage(512, ((128, 96),)),
        Stage(1001, ((240, 256),)),
        Stage(2048, ((512, 504),)),
    ),
    groups=8,
)
CASES: list[tuple[str, Kind, AttentionGraph, int]] = [
    (arch, attention, graph, sites)
    for arch, sites in ((BOTTLENECKS, 5), ("resnet50", 16), ("mobilenetv2_cifar", 17))
    for attention in ("eca", "se")
    for graph in ATTENTION_GRAPHS[1:]
    # SE has no fused node; one of its hoisted graphs stands for the three, each export takes seconds
    if (attention == "eca" or graph == "epilogue") and (arch != "resnet50" or (attention, graph) == ("eca", "epilogue"))
]
FIXED: dict[tuple[str, Kind], Network] = {}


def bottlenecks(attention: Kind) -> Network:
    """As small as a network with bottlenecks can be."""
    torch.manual_seed(0)
    sizes = [3, 5, 5, 7, 9] if attention == "eca" else [16, 16, 32, 64, 128]
    return stirred(ResNet(PRUNED, 10, AttentionSites(attention, sizes)))


def calm(arch: str, attention: Kind) -> Network:
    """A network whose answers are soft: untrained and this deep, fp32 itself is 1e-5 off fp64 at sharper ones."""
    if (arch, attention) not in FIXED:
        net = bottlenecks(attention) if arch == BOTTLENECKS else network(arch, attention)
        with torch.no_grad():
            net.head.weight.div_(3)
        FIXED[arch, attention] = net
    return FIXED[arch, attention]


@pytest.mark.parametrize(("arch", "attention", "graph", "sites"), CASES)
def test_lowered_file_agrees(tmp_path: Path, arch: str, attention: Kind, graph: AttentionGraph, sites: int) -> None:
    net = calm(arch, attention)
    path = tmp_path / "model.onnx"
    assert export(net, SMALL, path, graph) == sites
    nodes = [node for node in onnx.load(path).graph.node if node.domain == NAMESPACE]
    assert [node.op_type for node in nodes] == [OPERATOR[graph]] * sites if graph in OPERATOR else not nodes
    lowering.lower_file(path)
    lowered = onnx.load(path)
    assert {node.domain for node in lowered.graph.node} == {""}
    if graph != "fused":
        pooled = [node for node in lowered.graph.node if node.op_type == "ReduceMean"]
        assert len(pooled) == sites + 1, "one pooling a site and the last one"
    sample = images.synthetic(SMALL.crop, 8)
    expected = reference(net, SMALL, torch.from_numpy(sample)).numpy()
    got = open_session("onnxruntime", "fp32", path)(sample)
    assert verify.compare(expected, got, 1e-5, 1.0, "test").top1_agreement == 1


@pytest.mark.parametrize("graph", ATTENTION_GRAPHS)
@pytest.mark.parametrize("arch", ["resnet50", "mobilenetv2_cifar"])
def test_graphs_without_an_export_agree(arch: str, graph: AttentionGraph) -> None:
    net = calm(arch, "eca")
    sample = torch.from_numpy(images.synthetic(SMALL.crop, 4))
    with torch.inference_mode():
        probabilities, _ = Served(net, SMALL, graph)(sample)
    torch.testing.assert_close(probabilities, reference(net, SMALL, sample), rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["se-var1", "se-var2", "se-var3", "se-gc1", "se-gc2", "se-gc3", "eca-ns"])
def test_every_gate_of_the_pooled_map_is_hoisted(attention: Kind) -> None:
    """What is done with a gate does not depend on its kind, so that one graph stands for the three."""
    net = calm("mobilenetv2_cifar", attention)
    sample = torch.from_numpy(images.synthetic(SMALL.crop, 4))
    with torch.inference_mode():
        served = Served(net, SMALL, "hoisted")
        assert served.sites_rewritten == 17
        torch.testing.assert_close(served(sample)[0], reference(net, SMALL, sample), rtol=0, atol=1e-5)


def test_every_kernel_size_is_lowered(tmp_path: Path) -> None:
    spec = with_formula("resnet20_cifar", "eca", 10)
    torch.manual_seed(0)
    net = create(type(spec)(spec.arch, "eca", 10, (1, 3, 5, 7, 9, 9, 7, 5, 1))).eval()
    assert export(net, SMALL, tmp_path / "model.onnx", "fused") == 9
    lowering.lower_file(tmp_path / "model.onnx")
    sample = images.synthetic(SMALL.crop, 4)
    expected = reference(net, SMALL, torch.from_numpy(sample)).numpy()
    got = open_session("onnxruntime", "fp32", tmp_path / "model.onnx")(sample)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "sites"),
    [
        ("resnet50", 16),
        ("resnet101", 33),
        ("resnet152", 50),
        ("resnet50d", 16),
        ("resnext26t_32x4d", 8),
        ("wide_resnet50_2", 16),
        ("mobilenetv2", 17),
    ],
)
def test_every_site_is_rewritten(arch: str, sites: int) -> None:
    for graph in ATTENTION_GRAPHS[1:]:
        with torch.device("meta"):
            net = create(with_formula(arch, "eca", 10))
        fold_batch_norms(net.eval())
        assert rewrite(net, graph) == sites


@pytest.mark.parametrize(
    ("arch", "attention", "graph", "sites"),
    [
        ("resnet18", "eca", "hoisted", "0 of this network's 8"),
        ("resnet18", "eca", "epilogue", "0 of this network's 8"),
        ("resnet50", "none", "fused", "0 of this network's 0"),
        ("resnet50", "se", "fused", "0 of this network's 16"),
        ("resnet50", "cbam", "hoisted", "0 of this network's 16"),
    ],
)
def test_what_cannot_be_rewritten_is_a_sentence(
    tmp_path: Path, arch: str, attention: Kind, graph: AttentionGraph, sites: str
) -> None:
    net = create(with_formula(arch, attention, 10)).eval()
    with pytest.raises(BuildError, match=f"{sites}.*use --attention-graph plain"):
        export(net, SMALL, tmp_path / "model.onnx", graph)
    assert not (tmp_path / "model.onnx").exists()
