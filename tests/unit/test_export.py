"""The exported file gives the network's answers, read back from disk in a new process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from eca_build import images, verify
from eca_build.errors import BuildError
from eca_build.export import export, reference
from eca_build.networks import ARCHS, Network, create, site_channels, with_formula
from eca_build.networks.attention import KINDS, Kind
from eca_build.sessions import open_session
from eca_service.contract import Preprocessing

SMALL = Preprocessing(resize=32, crop=32)


def network(arch: str, attention: Kind, classes: int = 10) -> Network:
    """A network of ours with random weights."""
    torch.manual_seed(0)
    return stirred(create(with_formula(arch, attention, classes)))


def stirred(net: Network) -> Network:
    """The network with batch norms that are not the identity, so that folding them matters."""
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    sample = torch.from_numpy(images.synthetic(64, 16, seed=1)).permute(0, 3, 1, 2).float() / 64 - 2
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.3, 0.3)
            norm.momentum = None  # a plain mean of the passes, so that one suffices
        net.train()(sample)
        net.head.weight.mul_(3)
    return net.eval()


# without attention and with SE, the small ones are what the demo networks are: whose build is refused otherwise
@pytest.mark.parametrize(
    ("arch", "attention"),
    [(arch, "eca") for arch in ("resnet20_cifar", "mobilenetv2_cifar")]
    + [("resnet18", k) for k in ("none", "se", "eca")]
    + [("resnet14t", "eca")],
)
def test_exported_file_agrees(tmp_path: Path, arch: str, attention: Kind) -> None:
    net = network(arch, attention)
    recipe = SMALL if arch.endswith("_cifar") else Preprocessing(resize=64, crop=64)
    export(net, recipe, tmp_path / "model.onnx")
    sample = images.synthetic(recipe.crop, 16)
    expected = reference(net, recipe, torch.from_numpy(sample)).numpy()
    figures = verify.compare(expected, verify.answers(tmp_path / "model.onnx", sample), 1e-5, 1.0, "test")
    assert figures.top1_agreement == 1
    assert np.ptp(expected, axis=0).max() > 1e-3, "the images must not all get the same answer"
    assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "model.onnx").read_bytes()
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "BatchNormalization" not in operators


@pytest.mark.parametrize("attention", [kind for kind in KINDS if kind not in ("none", "se", "eca")])
def test_every_kind_of_attention_is_exported(tmp_path: Path, attention: Kind) -> None:
    net = network("resnet14_cifar", attention)
    export(net, SMALL, tmp_path / "model.onnx")
    sample = images.synthetic(SMALL.crop, 8)
    expected = reference(net, SMALL, torch.from_numpy(sample)).numpy()
    got = open_session("onnxruntime", "fp32", tmp_path / "model.onnx")(sample)
    figures = verify.compare(expected, got, 1e-5, 1.0, "test")
    assert figures.top1_agreement == 1


def test_only_an_operator_that_onnx_does_not_know_costs_a_second_tracing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shuffled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.channel_shuffle(super().forward(x)[:, :, None, None], 2)[:, :, 0, 0]

    decompose: Any = torch.export.ExportedProgram.run_decompositions
    decomposed: list[object] = []

    def counted(program: object, table: object) -> object:
        decomposed.append(program)
        return decompose(program, table)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", counted)
    net = network("resnet14_cifar", "eca")
    export(net, SMALL, tmp_path / "model.onnx")
    assert not decomposed
    net.head.__class__ = Shuffled
    export(net, SMALL, tmp_path / "model.onnx")
    assert len(decomposed) == 1
    sample = images.synthetic(SMALL.crop, 8)
    expected = reference(net, SMALL, torch.from_numpy(sample)).numpy()
    got = open_session("onnxruntime", "fp32", tmp_path / "model.onnx")(sample)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_disagreement_is_refused_with_the_figures() -> None:
    expected = np.full((4, 2), 0.5, np.float32)
    expected[:, 0] += 0.1
    got = expected.copy()
    got[2] = got[2, ::-1]
    with pytest.raises(BuildError, match=r"agreement 75.00%.*1\.00e-01 on 4 images, where 100% and 1e-05 are required"):
        verify.compare(expected, got, 1e-5, 1.0, "test")
    with pytest.raises(BuildError, match=r"agreement 75.00%"):
        verify.compare(expected, got, 0.2, 1.0, "test")
    moved = expected + np.array([2e-3, -2e-3], np.float32)
    with pytest.raises(BuildError, match=r"agreement 100.00%.*2\.00e-03 .*nothing was published"):
        verify.compare(expected, moved, 1e-3, 1.0, "test")
    with pytest.raises(BuildError, match=r"2\.00e-03 .*nothing was published"):
        verify.compare(expected, moved, 1.9e-3, 1.0, "test")
    assert verify.compare(expected, moved, 2.1e-3, 1.0, "test").largest_difference == pytest.approx(2e-3, rel=1e-3)
    expected = np.array([[0.4, 0.2, 0.2, 0.2], [0.7, 0.1, 0.1, 0.1]], np.float32)
    fallen = expected + np.array([-3e-3, 1e-3, 1e-3, 1e-3], np.float32)  # no other rises by as much
    with pytest.raises(BuildError, match=r"agreement 100.00%.*3\.00e-03 .*nothing was published"):
        verify.compare(expected, fallen, 2e-3, 1.0, "test")


def test_what_is_no_number_is_refused() -> None:
    """It differs from nothing by more than is allowed, and is no worse a class than any."""
    expected = np.array([[0.6, 0.4], [0.7, 0.3]], np.float32)
    got = expected.copy()
    got[1] = np.nan
    with pytest.raises(BuildError, match="not all finite; nothing was published"):
        verify.compare(expected, got, 1e-5, 1.0, "test")
    with pytest.raises(BuildError, match=r"the engine answered \(1, 2\)"):
        verify.compare(expected, expected[:1], 1.0, 0.0, "test")


def test_engine_that_cannot_run_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not an engine")
    with pytest.raises(BuildError, match=r"model\.onnx could not be run from disk"):
        verify.answers(tmp_path / "model.onnx", images.synthetic(32, 2))


@pytest.mark.parametrize("arch", [arch for arch in ARCHS if sum(site_channels(with_formula(arch, "none", 2))) < 20_000])
def test_feature_map_and_head_make_the_logits(arch: str) -> None:
    torch.manual_seed(0)
    net = create(with_formula(arch, "eca", 10)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(net(x), net.head(net.feature_map(x).mean((2, 3))))


def rows(best: list[int], classes: int = 2) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Probabilities whose largest are those given."""
    return np.eye(classes, dtype=np.float32)[best]


def test_accuracy_that_is_lost_beyond_chance_is_refused() -> None:
    known = np.array([0, 1] * 50)
    right = rows(known.tolist())
    few_wrong, more_wrong = (rows([*(1 - known[:n]).tolist(), *known[n:].tolist()]) for n in (4, 5))
    figures = verify.compare(right, few_wrong, 1.0, 0.95, "test", known)
    assert (figures.labelled, figures.accuracy, figures.reference_accuracy) == (100, 0.96, 1.0)
    assert figures.least_agreement == 0.95
    with pytest.raises(BuildError, match=r"less accurate.*95 of 100 images right"):
        verify.compare(right, more_wrong, 1.0, 0.95, "test", known)
    many = np.tile(known, 100)
    wrong = many.copy()
    wrong[:100] = 1 - wrong[:100]  # a point of ten thousand images is no chance
    with pytest.raises(BuildError, match=r"less accurate.*9900 of 10000 images right, where the network has 10000"):
        verify.compare(rows(many.tolist()), rows(wrong.tolist()), 1.0, 0.95, "test", many)
    half = np.where(np.arange(100) < 50, known, -1)  # of which alone it is known what they show
    figures = verify.compare(right, few_wrong, 1.0, 0.95, "test", half)
    assert (figures.labelled, figures.accuracy, figures.reference_accuracy) == (50, 0.92, 1.0)
    unknown = np.full(100, -1)
    assert verify.compare(right, more_wrong, 1.0, 0.95, "test", unknown).accuracy is None
    with pytest.raises(BuildError, match=r"agreement 90.00%.*95% is required"):
        verify.compare(right, rows([*(1 - known[:10]).tolist(), *known[10:].tolist()]), 1.0, 0.95, "test", known)


def test_classes_are_read_from_the_names(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.png", "cat-3.png", "tabby cat-4.png", "dog.png", "horse-5.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    labels = ("cat", "dog", "tabby cat")
    found = dict(zip(sorted(tmp_path.rglob("*.png")), images.classes(tmp_path, labels), strict=True))
    assert {path.relative_to(tmp_path).as_posix(): int(index) for path, index in found.items()} == {
        "cat/1.png": 0, "dog/2.png": 1, "cat-3.png": 0, "tabby cat-4.png": 2, "dog.png": 1, "horse-5.png": -1,
    }  # fmt: skip
