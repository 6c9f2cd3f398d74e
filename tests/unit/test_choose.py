"""Of the engines that verified the fastest is taken, and of those about as fast the plainest."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from eca_build import cli, images, measure, targets, verify
from eca_build import compile as build
from eca_build.choose import _why, pick
from eca_build.describe import golden_images
from eca_build.engine import Engine, Maker
from eca_build.errors import BuildError
from eca_build.export import export
from eca_build.inputs import Options
from eca_build.measure import Runnable, Speed, speeds
from eca_build.targets import Variant, Wish
from eca_service import cgroups
from eca_service.contract import read
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tests.unit.test_export import SMALL, network

DEMO = Path(__file__).parents[2] / "build" / "demo"
WEIGHTS = DEMO / "resnet14-eca.safetensors"


def asked(repository: Path, **changes: object) -> Options:
    """The demo network's build."""
    options = Options(WEIGHTS, repository, labels=DEMO / "labels.txt", images=DEMO / "images")
    return replace(options, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("relative", "index"),
    [
        ([1.0], 0),
        ([1.0, 1.02, 0.9], 0),
        ([1.0, 1.04], 1),
        ([1.0, 2.0, 2.05], 1),
        ([1.0, 2.0, 2.07], 2),
        ([1.0, 0.5, 0.99], 0),
    ],
)
def test_the_plainest_wins_ties(relative: list[float], index: int) -> None:
    assert pick(relative) == index


def test_speeds_are_ratios_within_a_round() -> None:
    """A machine that is twice as slow in one round slows all engines alike, and the ratio does not see it."""
    generator = np.random.default_rng(0)
    load = generator.uniform(0.3, 1.0, (7, 1, 1))
    true = np.array([[100.0, 200.0], [110.0, 440.0]])
    found = speeds(true * load, (1, 8))
    assert found[0].relative == pytest.approx(1)
    assert found[1].relative == pytest.approx((1.1 * 2.2) ** 0.5)
    assert set(found[1].images_per_s) == {1, 8}


def test_a_round_in_which_the_machine_stood_still_decides_nothing() -> None:
    """Of either engine, in rounds of their own; what the contract says of it is the usual rate too."""
    rates = np.array([[[100.0], [150.0]]] * 5)
    rates[1, 0], rates[3, 1] = 1.0, 1.0
    first, second = speeds(rates, (1,))
    assert second.relative == pytest.approx(1.5)
    assert (first.images_per_s, second.images_per_s) == ({1: 100.0}, {1: 150.0})
    uneven = np.array([[[100.0], [110.0]], [[50.0], [100.0]], [[10.0], [200.0]]])
    assert speeds(uneven, (1,))[1].relative == pytest.approx(2), "and not 110 / 50, of two rounds"


def test_each_image_of_a_batch_counts() -> None:
    """Of all sessions that run side by side."""

    def session(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        time.sleep(0.1)
        return np.zeros((len(images), 2), np.float32)

    with ThreadPoolExecutor(2) as pool:
        rate = measure._block([session] * 2, images.synthetic(1, 8), pool)()
    assert 16 / 0.1 / 4 < rate <= 16 / 0.1


@pytest.mark.parametrize(
    ("relative", "why"),
    [
        ([1.0], "the only one that could be built and run"),
        ([1.0, 2.0], "the fastest of 2 verified engines"),
        (
            [1.0, 2.0, 2.05],
            "of 3 verified engines the fastest, openvino int8 plain, leads by 2.5% alone, which may be noise; "
            "this one is plainer",
        ),
    ],
)
def test_why_an_engine_is_served(relative: list[float], why: str) -> None:
    variants = targets.variants(Wish(precision="auto"))
    three: Any = [SimpleNamespace(variant=one) for one in (*variants, replace(variants[1], runtime="openvino"))]
    told = _why(three[: len(relative)], [Speed({}, one) for one in relative], pick(relative))
    assert told == why


def test_no_engine_is_proved_by_another_s_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of the same bytes is not asked again, by the same runtime."""
    told: list[tuple[str, ...]] = []

    def answers(engine: Path, _: object, command: list[str]) -> object:
        told.append((engine.read_text(), *command))
        return told[-1]

    monkeypatch.setattr(verify, "answers", answers)
    maker = Maker(network("resnet14_cifar", "eca"), SMALL, tmp_path, images.synthetic(SMALL.crop, 1))
    for name, content in (("plain", "a"), ("fused", "b"), ("same", "a")):
        (tmp_path / name).write_text(content)
        for command in (["onnxruntime"], ["openvino"]):
            assert maker._answer(tmp_path / name, command) == (content, *command)
    assert len(told) == 4


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed here")
def test_every_runtime_that_may_serve_the_file_is_asked(tmp_path: Path) -> None:
    """ONNX Runtime serves what is built for OpenVINO where that is not installed."""
    sample = images.synthetic(SMALL.crop, 4)
    maker = Maker(network("resnet14_cifar", "eca"), SMALL, tmp_path, sample)
    (tmp_path / "home").mkdir()
    engine = maker.make(Variant("onnx", "openvino", "fp32", "plain", 4), tmp_path / "home", lambda _: None)
    assert len(engine.answers) == 2
    np.testing.assert_allclose(*engine.answers, atol=1e-5)


@pytest.mark.parametrize("runtime", ["openvino", "auto"])
def test_what_a_processor_does_not_compute_is_not_verified(
    runtime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it has no bf16 OpenVINO computes in float32, whatever it is asked for."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed here")
    monkeypatch.setattr("eca_build.engine.computes_bf16", lambda: False)
    wish = Wish(precision="bf16" if runtime == "openvino" else "auto", runtime=runtime)
    if runtime == "openvino":
        with pytest.raises(BuildError, match=r"computes no bf16.*choose another --precision"):
            build.compile_checkpoint(asked(tmp_path, wish=wish), lambda _: None)
        assert not list(tmp_path.iterdir())
    else:
        choice = build.compile_checkpoint(asked(tmp_path, wish=wish), lambda _: None).contract.choice
        assert choice
        refused = {one.precision for one in choice.candidates if one.refused}
        assert refused == {"bf16"}


@pytest.mark.parametrize(
    ("difference", "changed", "passes"),
    [(1.9e-3, 40, True), (9e-3, 0, True), (9e-3, 3, True), (9e-3, 4, False), (1.1e-2, 0, False)],
)
def test_a_network_that_tells_classes_apart_may_differ_by_more_in_half_precision(
    difference: float, changed: int, passes: bool
) -> None:
    """Of 60 images so many have another best class. Correct fp16 engines of the demo networks differ by 3.3e-3."""
    generator = np.random.default_rng(0)
    expected = generator.dirichlet([0.3] * 10, 60).astype(np.float32)
    got = expected.copy()
    got[-1, 0] += difference
    for row in range(changed):  # two that are all but equal change places
        best, other = expected[row].argsort()[::-1][:2]
        expected[row, [best, other]] = expected[row, [best, other]].mean()
        got[row] = expected[row]
        expected[row, best] += 1e-5
        got[row, other] += 1e-5
    inputs: Any = SimpleNamespace(random=False, source="images/", classes=None)
    engine: Any = SimpleNamespace(verified="", answers=(got,))
    variant = Variant("tensorrt", None, "fp16", "plain", 8)
    if passes:
        found = build.compared(inputs, expected, variant, engine, lambda: 1.0)
        assert found.tolerance == (2e-3 if difference < 2e-3 else 1e-2)
    else:
        with pytest.raises(BuildError, match="where 95% and 1e-02 are required"):
            build.compared(inputs, expected, variant, engine, lambda: 1.0)


@pytest.mark.parametrize(
    ("difference", "rounding", "passes"),
    [(0.9e-5, 0.0, True), (2e-5, 0.5e-5, False), (2e-5, 1.9e-5, False), (2e-5, 2.1e-5, True), (1.1e-4, 1.0, False)],
)
def test_float32_may_differ_as_float32_itself_does(difference: float, rounding: float, passes: bool) -> None:
    """Networks of large logits multiply what it rounds: correct engines of them were refused."""
    expected = np.random.default_rng(0).dirichlet([0.3] * 10, 60).astype(np.float32)
    got = expected.copy()
    got[3, expected[3].argmax()] += difference
    inputs: Any = SimpleNamespace(random=False, source="images/", classes=None)
    engine: Any = SimpleNamespace(verified="", answers=(expected, got))
    variant = Variant("onnx", "openvino", "fp32", "plain", 8)
    if passes:
        figures = build.compared(inputs, expected, variant, engine, lambda: rounding)
        assert figures.largest_difference == pytest.approx(difference, rel=0.01), "the worst of both"
        assert figures.tolerance == max(1e-5, rounding)
    else:
        with pytest.raises(BuildError, match="the engine disagrees with the network"):
            build.compared(inputs, expected, variant, engine, lambda: rounding)


def test_what_float32_rounds_is_of_the_network_s_own_logits(tmp_path: Path) -> None:
    """ONNX Runtime is 1.4e-5 off the demo network whose logits are twenty times as large, and PyTorch 2.3e-5."""
    state = load_file(WEIGHTS)
    for name in ("fc.weight", "fc.bias"):
        state[name] *= 20
    save_file(state, tmp_path / "sharp.safetensors")
    options = asked(tmp_path / "models", checkpoint=tmp_path / "sharp.safetensors")
    found = build.compile_checkpoint(options, lambda _: None).contract.verification
    assert found.largest_difference <= found.tolerance <= 1e-4


@pytest.mark.quiet
def test_engines_are_measured_as_they_are(tmp_path: Path) -> None:
    """One does two and a half times the work of the other, so it is slower."""
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    export(network("resnet14_cifar", "none"), SMALL, small)
    export(network("resnet32_cifar", "none"), SMALL, large)
    runnables = [Runnable("onnxruntime", "fp32", str(path)) for path in (large, small)]
    for streams in (1, 2):
        first, second = measure.measure(runnables, images.synthetic(32, 4), 8, streams)
        assert (first.relative, set(first.images_per_s)) == (1.0, {1, 8})
        assert second.relative > 1.3
    runnables[1] = Runnable("onnxruntime", "fp32", str(tmp_path / "absent.onnx"))
    with pytest.raises(BuildError, match=r"could not be measured: .*absent\.onnx.*; name one, by --precision"):
        measure.measure(runnables, images.synthetic(32, 4), 8)


def test_the_contract_says_what_was_compared(tmp_path: Path) -> None:
    """Every graph is built; those that this network lacks are left out with the reason; the fastest is published."""
    steps: list[str] = []
    options = asked(tmp_path / "models", wish=Wish(attention_graph="auto", precision="auto"))
    built = build.compile_checkpoint(options, steps.append)
    choice = built.contract.choice
    assert choice is not None
    assert len(choice.candidates) == 10
    raced = [candidate for candidate in choice.candidates if candidate.refused is None]
    assert [(one.precision, one.attention_graph) for one in raced] == [
        (precision, graph) for precision in ("fp32", "int8") for graph in ("plain", "fused")
    ]
    assert all("0 of this network's 6" in str(one.refused) for one in choice.candidates if one not in raced)
    speeds = [one.relative or 0 for one in raced]
    assert speeds[0] == 1
    assert all(one.images_per_s and set(one.images_per_s) == {1, 8, 32} for one in raced)
    winner = raced[pick(speeds)]
    assert (built.contract.precision, built.contract.attention_graph) == (winner.precision, winner.attention_graph)
    assert built.contract.sites_rewritten == (6 if winner.attention_graph == "fused" else 0)
    assert "4 verified engines" in choice.why
    assert (choice.machine, choice.threads) == (measure.machine(), cgroups.cores())
    assert built.contract == read(built.folder, head=True)
    assert sorted(path.name for path in built.folder.iterdir()) == ["contract.json", "golden.npy", "model.onnx"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["resnet14-eca"]
    assert not build.compile_checkpoint(options, steps.append).changed


def test_an_engine_that_ends_the_process_that_measures_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was verified, and ended the whole build when it was measured beside the others."""
    compared, notes = build.compared, list[str]()

    def break_int8(inputs: Any, expected: Any, variant: Variant, engine: Engine, rounding: Any) -> Any:
        figures = compared(inputs, expected, variant, engine, rounding)
        if variant.precision == "int8":
            engine.file.write_bytes(b"damaged")
        return figures

    monkeypatch.setattr(build, "compared", break_int8)
    wish = Wish(precision="auto")
    built = build.compile_checkpoint(asked(tmp_path / "models", wish=wish), lambda _: None, notes.append)
    choice = built.contract.choice
    assert choice
    left = {one.precision: one.refused for one in choice.candidates}
    assert left["fp32"] is None
    assert left["int8"]
    assert left["int8"].startswith("the engine could not be measured: ")
    assert notes == [f"onnxruntime int8 plain is left out: {left['int8']}"]
    assert (built.contract.precision, choice.why) == ("fp32", "the only one that could be built and run")


def test_where_nothing_verifies_nothing_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "EXACT", {"fp32": targets.Gate(1e-12, 1.0, 1e-4)})
    with pytest.raises(
        BuildError, match=r"none of 5 engines could be built; the first, onnxruntime fp32 plain: .*disagrees"
    ):
        build.compile_checkpoint(asked(tmp_path / "models", wish=Wish(attention_graph="auto")), lambda _: None)
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_a_network_that_answers_nothing_finite_is_a_sentence(tmp_path: Path, precision: Any) -> None:
    """Every comparison with NaN is false, and integers have no ranges then: calibration ended in a traceback."""
    steps: list[str] = []
    options = asked(tmp_path / "models", wish=Wish(precision=precision), preprocessing={"std": (1e-38, 1e-38, 1e-38)})
    with pytest.raises(BuildError, match=r"the network itself answers values that are not finite.*--std is too small"):
        build.compile_checkpoint(options, steps.append)
    # long for many images and large networks: while it was asked the bar said that other builds are waited for
    assert steps == ["read checkpoint and images", "wait for other builds", "ask the network itself"]
    assert list((tmp_path / "models").iterdir()) == []


def names(wish: Wish) -> list[str]:
    return [str(variant) for variant in targets.variants(wish)]


def test_variants_from_the_plainest() -> None:
    assert names(Wish()) == ["onnxruntime fp32 plain"]
    assert names(Wish(precision="auto")) == ["onnxruntime fp32 plain", "onnxruntime int8 plain"]
    assert len(names(Wish(precision="auto", attention_graph="auto"))) == 10


def test_for_the_gpu_of_this_machine_all_graphs_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = [targets.usual_graph(target) for target in targets.TARGETS]
    assert dict(zip(targets.TARGETS, usual, strict=True)) | {"inductor": ""} == {
        "onnx": "plain", "tensorrt": "auto", "tensorrt-rtx": "plain", "inductor": "",
    }  # fmt: skip
    for gpu, graph in ((True, "auto"), (False, "plain")):
        monkeypatch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
        assert targets.usual_graph("inductor") == graph


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra `openvino`")
def test_variants_of_both_runtimes() -> None:
    assert names(Wish(precision="auto", runtime="auto")) == [
        "onnxruntime fp32 plain",
        "openvino fp32 plain",
        "openvino bf16 plain",
        "onnxruntime int8 plain",
        "openvino int8 plain",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--precision", "bf16"], "--runtime onnxruntime has no --precision bf16; .*--runtime openvino has bf16"),
        (["--precision", "fp16", "--runtime", "auto"], "has no --precision fp16"),
        (["--target", "tensorrt", "--runtime", "openvino"], "--runtime openvino is for --target onnx"),
        (["--target", "tensorrt-rtx", "--precision", "auto"], "those of --target tensorrt-rtx cannot be run here"),
        (["--target", "inductor", "--precision", "int8"], "--target inductor has no --precision int8; it has bf16"),
        (["--precision", "int8"], "int8 needs typical images to set its ranges; give a folder of them to --calib"),
        (["--precision", "int8", "--calibration", "absent"], "absent cannot be read: .* another to --calibration"),
        (["--precision", "int8", "--calibration", "damaged"], "1.jpg cannot be read as an image"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_a_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "1.jpg").write_bytes(b"no image")
    given = [str(tmp_path / word) if word in ("absent", "damaged") else word for word in arguments]
    done = CliRunner().invoke(cli.main, ["compile", str(WEIGHTS), "--repository", str(tmp_path / "models"), *given])
    assert done.exit_code == 2
    assert done.output.startswith("eca-build: ")
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(done.output)
    assert not (tmp_path / "models").exists() or list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "wish", "sentence"),
    [
        ("openvino", Wish(runtime="openvino"), r"pip install 'eca-serve\[openvino\]'"),
        ("g++", Wish("inductor"), "there is no g\\+\\+; install one"),
    ],
)
def test_what_is_not_installed_is_a_sentence(
    missing: str, wish: Wish, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match=sentence):
        targets.variants(wish)


def test_gates_are_by_accuracy_where_a_probability_may_move() -> None:
    integers = Variant("onnx", "onnxruntime", "int8", "plain", 8)
    assert targets.gate(integers) == targets.ACCURACY
    assert targets.gate(replace(integers, precision="fp32")) == targets.EXACT["fp32"]
    assert targets.gate(replace(integers, precision="bf16", runtime="openvino")) == targets.ACCURACY
    assert targets.gate(Variant("tensorrt", None, "bf16", "plain", 8)) == targets.EXACT["bf16"]
    assert targets.gate(integers, random_weights=True).agreement == 0
    held = {name: (gate.largest, gate.agreement, gate.golden, gate.apart) for name, gate in targets.EXACT.items()}
    said = {"fp32": (1e-5, 1, 1e-4, 0), "fp16": (2e-3, 0, 2e-2, 1e-2), "bf16": (2e-2, 0, 2e-1, 1e-1)}
    assert held == said, "as build/README.md says"
    assert targets.Gate(1, 0.95, 0.1) == targets.ACCURACY


def test_golden_images_are_those_on_which_the_runtimes_agree() -> None:
    one = np.zeros((60, 2), np.float32)
    other = one.copy()
    other[::2] = 0.5
    picked = golden_images((one, other), 0.1)
    assert picked.tolist() == [1, 19, 39, 59]
    assert golden_images((one, one + 1), 0.1).tolist() == [0, 1, 2, 3]
    assert golden_images((one[:2],), 0.1).tolist() == [0, 1]
