"""Checkpoints of every origin are read, and what cannot be is refused in a sentence."""

from __future__ import annotations

import argparse
import os
import re
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from eca_build.checkpoint import load, strip
from eca_build.cli.inspecting import described
from eca_build.detect import detect
from eca_build.errors import BuildError
from eca_build.layouts import canonical
from eca_build.networks import NetworkSpec, create, with_formula
from eca_build.networks.attention import Kind
from safetensors.torch import save_file
from torch import Tensor

from tests.unit.eca_net import EcaMobileNetV2, EcaNsLayer

State = dict[str, Tensor]
ECA18 = replace(with_formula("resnet18", "eca", 7), sizes=(3, 3, 5, 5, 7, 7, 7, 7))
ECA_MOBILE = replace(with_formula("mobilenetv2", "eca", 5, width=0.5), sizes=(1,) * 10 + (3,) * 7)


def state_of(spec: NetworkSpec) -> State:
    torch.manual_seed(1)
    state = create(spec).state_dict()  # ports of CBAM have no bias behind its 7x7 convolution
    return {k: torch.zeros_like(v) if k.endswith(".spatial.bias") else v for k, v in state.items()}


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    out = {}
    for key, value in state.items():
        for pattern, replacement in pairs:
            key = re.sub(pattern, replacement, key)
        out[key] = value
    return out


def old_mobilenet(state: State) -> State:
    """Torchvision's flat layout of 2018, with ECA last."""
    out = {}
    for key, value in state.items():
        if found := re.fullmatch(r"features\.(\d+)\.attention\.(.+)", key):
            key = f"features.{found[1]}.conv.{5 if found[1] == '1' else 8}.{found[2]}"
        elif found := re.fullmatch(r"features\.(\d+)\.conv\.(\d)\.(\d)\.(.+)", key):
            key = f"features.{found[1]}.conv.{3 * int(found[2]) + int(found[3])}.{found[4]}"
        elif found := re.fullmatch(r"features\.(\d+)\.conv\.(\d)\.(.+)", key):
            first = found[1] == "1"
            key = f"features.{found[1]}.conv.{int(found[2]) + (2 if first else 4)}.{found[3]}"
        out[key] = value
    return out


def timm_mobilenet(state: State) -> State:
    names = [f"blocks.{s}.{i}" for s, n in enumerate((1, 2, 3, 4, 3, 3, 1)) for i in range(n)]
    parts = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
    first = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
    out = {}
    for key, value in state.items():
        if found := re.fullmatch(r"features\.(\d+)\.conv\.(\d(?:\.\d)?)\.(\w+)", key):
            block = int(found[1])
            key = f"{names[block - 1]}.{(first if block == 1 else parts)[found[2]]}.{found[3]}"
        elif found := re.fullmatch(r"features\.(\d+)\.attention\.(.+)", key):
            key = f"{names[int(found[1]) - 1]}.se.{found[2]}"
        out[key] = value
    return renamed(
        out,
        (r"^features\.0\.0\.", "conv_stem."),
        (r"^features\.0\.1\.", "bn1."),
        (r"^features\.18\.0\.", "conv_head."),
        (r"^features\.18\.1\.", "bn2."),
        (r"^classifier\.1\.", "classifier."),
    )


def authors(state: State) -> dict[str, object]:
    return {
        "epoch": 100,
        "arch": "eca",
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "best_prec1": np.float64(77.5),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }


def attention_as(name: str) -> tuple[str, str]:
    return (r"\.attention\.", f".{name}.")


def with_norm(state: State, *names: tuple[str, str], swapped: bool) -> State:
    """CBAM under another code base's names: with the batch norm that was folded, and its planes perhaps swapped."""
    out: State = {}
    for key, value in renamed(state, *names).items():
        if key.endswith(".bias") and f"{key[:-5]}.running_var" not in out and ".spatial." in key:
            site = key.removesuffix(".conv.bias")
            scale = torch.tensor([4.0]) / (torch.tensor([0.25]) + 1e-5).sqrt()
            weight = out[f"{site}.conv.weight"]
            out[f"{site}.conv.weight"] = (weight.flip(1) if swapped else weight) / scale
            out |= {f"{site}.bn.weight": torch.tensor([4.0]), f"{site}.bn.running_var": torch.tensor([0.25])}
            out |= {f"{site}.bn.bias": value + 3 * scale, f"{site}.bn.running_mean": torch.tensor([3.0])}
        else:
            out[key] = value
    return out


def fc4(state: State) -> State:
    """Linear layers of attention as 1x1 convolutions."""
    return {k: v[..., None, None] if re.search(r"\.attention\.fc\d\.weight", k) else v for k, v in state.items()}


CBAM18 = with_formula("resnet18", "cbam", 3)
CBAM_CASES: list[tuple[str, NetworkSpec, str, object]] = [
    (
        "authors' CBAM",
        replace(CBAM18, bias=True),
        "m.pth",
        lambda s: authors(
            with_norm(
                s,
                (r"\.attention\.fc1", ".cbam.ChannelGate.mlp.1"),
                (r"\.attention\.fc2", ".cbam.ChannelGate.mlp.3"),
                (r"\.attention\.spatial\.", ".cbam.SpatialGate.spatial.conv."),
                swapped=True,
            )
        ),
    ),
    (
        "timm CBAM",
        CBAM18,
        "m.safetensors",
        lambda s: with_norm(
            fc4(s),
            (r"\.attention\.fc", ".se.channel.fc"),
            (r"\.attention\.spatial\.", ".se.spatial.conv.conv."),
            swapped=False,
        ),
    ),
    *(
        (
            name,
            CBAM18,
            "m.pth",
            lambda s, first=first, second=second: {
                k: v
                for k, v in renamed(
                    fc4(s),
                    (r"\.attention\.fc1\.", first),
                    (r"\.attention\.fc2\.", second),
                    (r"\.attention\.spatial\.", ".sa.conv1."),
                ).items()
                if not k.endswith(".sa.conv1.bias")
            },
        )
        for name, first, second in (("CBAM port", ".ca.fc.0.", ".ca.fc.2."), ("older port", ".ca.fc1.", ".ca.fc2."))
    ),
]
THOP = ("total_ops", "total_params")  # what it leaves in every layer that it counts
VARIANTS: tuple[Kind, ...] = ("se-var2", "se-var3", "se-gc1", "se-gc2", "se-gc3", "eca-ns", "cbam")

CASES: list[tuple[str, NetworkSpec, str, object]] = [
    ("ours", ECA18, "m.pth", lambda s: s),
    ("ours in safetensors", ECA_MOBILE, "m.safetensors", lambda s: s),
    ("authors' resnet", ECA18, "m.pth.tar", lambda s: authors(renamed(s, attention_as("eca")))),
    ("old mobilenet with ECA", ECA_MOBILE, "m.pth.tar", lambda s: authors(old_mobilenet(s))),
    ("torchvision resnet", with_formula("resnet34", "none", 9), "m.pth", lambda s: s),
    ("torchvision mobilenet", with_formula("mobilenetv2", "none", 9), "m.pth", lambda s: s),
    ("torchvision old mobilenet", with_formula("mobilenetv2", "none", 9), "m.pth", old_mobilenet),
    ("timm ecaresnet", ECA18, "m.safetensors", lambda s: renamed(s, attention_as("se"))),
    ("timm seresnet", with_formula("resnet18", "se", 3), "m.pth", lambda s: renamed(s, attention_as("se"))),
    ("timm mobilenet", with_formula("mobilenetv2", "none", 5, width=0.5), "m.safetensors", timm_mobilenet),
    (
        "SE port",
        with_formula("resnet18", "se", 3),
        "m.pth",
        lambda s: renamed(s, (r"\.attention\.fc1", ".se.fc.0"), (r"\.attention\.fc2", ".se.fc.2")),
    ),
    (
        "SE as 1x1 convolutions",
        replace(with_formula("resnet18", "se", 3), bias=True),
        "m.pth",
        lambda s: {
            k.replace(".attention.", ".se."): v[..., None, None] if "attention" in k and "weight" in k else v
            for k, v in s.items()
        },
    ),
    ("classifier behind a dropout", ECA18, "m.pth", lambda s: renamed(s, (r"^fc\.", "fc.1."))),
    (
        "mobilenet with a classifier of its own",
        with_formula("mobilenetv2", "none", 9),
        "m.pth",
        lambda s: renamed(s, (r"^classifier\.1\.", "classifier.")),
    ),
    ("bottlenecks", with_formula("resnet50", "eca", 4), "m.pth", lambda s: s),
    ("cifar", with_formula("resnet32_cifar", "eca", 10), "m.pth", lambda s: s),
    ("CIFAR port", with_formula("resnet20_cifar", "none", 10), "m.pth", lambda s: renamed(s, (r"^fc\.", "linear."))),
    ("classifier in a head", ECA18, "m.pth", lambda s: renamed(s, (r"^fc\.", "head.fc."))),
    *((kind, with_formula("resnet20_cifar", kind, 10), "m.safetensors", lambda s: s) for kind in VARIANTS),
    *CBAM_CASES,
]


@pytest.mark.parametrize(("spec", "file", "convert"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_every_origin(tmp_path: Path, spec: NetworkSpec, file: str, convert: object) -> None:
    assert callable(convert)
    state = state_of(spec)
    path = tmp_path / file
    if file.endswith(".safetensors"):
        save_file({k: v.contiguous() for k, v in convert(state).items()}, path)
    else:
        torch.save(convert(state), path)
    found = load(path)
    assert found.spec == spec
    expected = create(spec).eval()
    expected.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        tolerance = 1e-5 if spec.attention == "cbam" else 0.0  # whose batch norm was folded
        torch.testing.assert_close(found.network(x), expected(x), rtol=0, atol=tolerance)


@pytest.mark.parametrize("width", [0.1, 0.35, 0.75, 1.3, 1.4, 2.0])
@pytest.mark.parametrize("arch", ["mobilenetv2", "mobilenetv2_cifar"])
def test_every_width_is_found(arch: str, width: float) -> None:
    """Or another one that gives the same network."""
    with torch.device("meta"):
        state = create(with_formula(arch, "none", 5, width=width)).state_dict()
        found = detect(state, Path("m.pth"))
        again = create(found).state_dict()
    assert found.arch == arch
    assert {key: value.shape for key, value in again.items()} == {key: value.shape for key, value in state.items()}


def test_the_authors_mobilenet(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = EcaMobileNetV2(7).eval()
    torch.save(authors(theirs.state_dict()), tmp_path / "m.pth.tar")
    found = load(tmp_path / "m.pth.tar")
    assert (found.spec, found.origin) == (
        replace(with_formula("mobilenetv2", "eca", 7), sizes=(1,) * 13 + (3,) * 4),
        "authors",
    )
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(found.network(x), theirs(x), rtol=0, atol=1e-6)


def test_the_authors_eca_ns(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = EcaNsLayer(64, 5)
    state = state_of(replace(with_formula("resnet18", "eca-ns", 7), sizes=(5,) * 8))
    state["layer1.0.attention.taps"] = theirs.conv.weight.detach().squeeze(1)
    named = {k.replace(".attention.taps", ".eca.conv.weight"): v for k, v in state.items()}
    torch.save(authors({k: v.unsqueeze(1) if ".eca." in k else v for k, v in named.items()}), tmp_path / "m.pth.tar")
    found = load(tmp_path / "m.pth.tar")
    assert (found.spec.attention, found.spec.sizes) == ("eca-ns", (5,) * 8)
    x = torch.randn(2, 64, 8, 8)
    with torch.inference_mode():
        ours = found.network.get_submodule("layer1.0.attention")(x)
        torch.testing.assert_close(ours, theirs(x), rtol=0, atol=1e-6)


def test_timm_mobilenet_with_attention_elsewhere_is_refused(tmp_path: Path) -> None:
    save_file({k: v.contiguous() for k, v in timm_mobilenet(state_of(ECA_MOBILE)).items()}, tmp_path / "m.safetensors")
    with pytest.raises(BuildError, match="behind the depthwise convolution"):
        load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("added", ["blocks.3.4", "blocks.7.0"])
def test_a_timm_mobilenet_of_more_blocks_is_another_network(tmp_path: Path, added: str) -> None:
    """Its block was taken for the next stage's first, whose weights were lost or took its place, as the order was."""
    state = timm_mobilenet(state_of(with_formula("mobilenetv2", "none", 5)))
    one_more = {k.replace("blocks.3.3", added): v for k, v in state.items() if k.startswith("blocks.3.3.")}
    for order in (state | one_more, one_more | state):
        torch.save(order, tmp_path / "m.pth")
        with pytest.raises(
            BuildError, match=rf"looks like mobilenetv2 but has also {added}\..*; it is another network"
        ):
            load(tmp_path / "m.pth")


def test_two_tensors_of_one_name_are_another_network(tmp_path: Path) -> None:
    state = renamed(state_of(ECA18), attention_as("eca"))
    torch.save(state | {"layer1.0.se.conv.weight": torch.zeros(1, 1, 3)}, tmp_path / "m.pth")
    with pytest.raises(BuildError, match=r"two tensors that would both be layer1\.0\.attention\.conv\.weight here"):
        load(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("kind", "told"),
    [("eca-ns", "kernel_sizes"), ("se", "hidden"), ("cbam", "hidden"), ("se-gc2", "group"), ("none", "")],
)
def test_what_is_told_of_each_attention(tmp_path: Path, kind: Kind, told: str) -> None:
    spec = with_formula("resnet20_cifar", kind, 10)
    torch.save(state_of(spec), tmp_path / "m.pth")
    found = described(load(tmp_path / "m.pth"))
    sizes = {name: found[name] for name in ("kernel_sizes", "hidden", "group")}
    assert sizes == {name: list(spec.sizes) if name == told else [] for name in sizes}
    assert (found["architecture"], found["attention"], found["input_size"]) == (spec.arch, kind, 32)


def test_se_var1_must_be_said(tmp_path: Path) -> None:
    spec = with_formula("resnet20_cifar", "se-var1", 10)
    torch.save(state_of(spec), tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").spec.attention == "none"
    assert load(tmp_path / "m.pth", attention="se-var1").spec == spec
    with pytest.raises(BuildError, match="with attention none, not eca; leave --attention out"):
        load(tmp_path / "m.pth", attention="eca")
    torch.save(state_of(ECA18), tmp_path / "m.pth")
    assert load(tmp_path / "m.pth", attention="eca").spec == ECA18
    with pytest.raises(BuildError, match="with attention eca, not se-var1"):
        load(tmp_path / "m.pth", attention="se-var1")


def test_other_groups_than_the_paper_s(tmp_path: Path) -> None:
    spec = replace(with_formula("resnet20_cifar", "se-gc2", 10), sizes=(4,) * 9)
    torch.save(state_of(spec), tmp_path / "m.pth")
    with pytest.raises(BuildError, match="SE-GC with groups of 4 of 16 channels"):
        load(tmp_path / "m.pth")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def save(path: Path, **changes: object) -> Path:
    torch.save({**state_of(ECA18), **changes}, path)
    return path


@pytest.mark.parametrize(
    ("beside", "name"),
    [
        (Evil(), r"(posix|os)\.system"),
        (np.array([1, "a"], object), r"numpy\.dtypes\.ObjectDType"),
        (np.zeros(2, [("a", "i4")]), r"numpy\.dtypes\.VoidDType"),
    ],
    ids=["code", "objects", "records"],
)
def test_pickle_that_runs_code_is_refused_by_name(tmp_path: Path, beside: object, name: str) -> None:
    with pytest.raises(BuildError, match=rf"wants to run code \({name}\).*state_dict"):
        load(save(tmp_path / "m.pth", evil=beside))


@pytest.mark.parametrize(
    "beside",
    [
        {"best": [np.float64(1), np.float16(1), np.int32(1), np.uint8(1), np.bool_(True), np.str_("top-1")]},
        {"args": argparse.Namespace(lr=0.1, sizes=[3, 5], inner=argparse.Namespace(seed=0), data=Path("/data"))},
        {
            "seen": np.arange(6).reshape(2, 3),
            "names": np.array(["a", "b"]),
            "state": np.random.RandomState(0).get_state(),
        },
        {"out": PureWindowsPath("C:/runs/1")},
    ],
)
def test_what_training_scripts_keep_beside_the_weights(tmp_path: Path, beside: dict[str, object]) -> None:
    torch.save({"model": state_of(ECA18), **beside}, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").spec == ECA18


def test_numbers_of_the_other_generation_of_numpy(tmp_path: Path) -> None:
    torch.save(authors(state_of(ECA18)), tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "m.pth").read_bytes()
    names = (b"cnumpy.core.multiarray\nscalar", b"cnumpy._core.multiarray\nscalar")
    assert any(name in content for name in names)
    for name in names:
        (tmp_path / "m.pth").write_bytes(re.sub(rb"cnumpy\._?core\.multiarray\nscalar", name, content))
        assert load(tmp_path / "m.pth").spec == ECA18


@pytest.mark.parametrize("wrap", ["state_dict_ema", "model_ema"])
def test_averages_are_taken_where_they_are_alone(tmp_path: Path, wrap: str) -> None:
    torch.save({wrap: state_of(ECA18), "epoch": 3}, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").spec == ECA18


@pytest.mark.parametrize("wrap", [None, "model_ema"])
def test_averages_as_pytorch_counts_them(tmp_path: Path, wrap: str | None) -> None:
    network = create(ECA18)
    state = torch.optim.swa_utils.AveragedModel(network).state_dict()
    torch.save({wrap: state} if wrap else state, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").spec == ECA18


def test_the_only_state_dict_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    state = state_of(ECA18)
    torch.save({"ema": state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").spec == ECA18
    torch.save({"student": state, "teacher": state}, tmp_path / "m.pth")
    with pytest.raises(BuildError, match=r"holds several state_dicts \(student, teacher\); save"):
        load(tmp_path / "m.pth")


def test_what_thop_counted_is_no_weight(tmp_path: Path) -> None:
    counts = {f"{name}{what}": torch.zeros(1) for name in ("", "layer1.0.conv1.") for what in THOP}
    torch.save(state_of(ECA18) | counts, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").spec == ECA18


def test_a_dict_that_holds_itself_is_a_sentence(tmp_path: Path) -> None:
    itself: dict[str, object] = {}
    itself["model"] = {"state_dict": itself}
    torch.save(itself, tmp_path / "m.pth")
    with pytest.raises(BuildError, match="holds no state_dict"):
        load(tmp_path / "m.pth")


def test_newer_protocols_of_pickle_are_not_called_damaged(tmp_path: Path) -> None:
    torch.save(state_of(ECA18), tmp_path / "m.pth", pickle_protocol=4)
    with pytest.raises(BuildError, match=r"protocol 4 or newer.*without pickle_protocol"):
        load(tmp_path / "m.pth")


def test_lightning_s_prefix(tmp_path: Path) -> None:
    torch.save({"state_dict": {f"model.{key}": value for key, value in state_of(ECA18).items()}}, tmp_path / "m.ckpt")
    assert load(tmp_path / "m.ckpt").spec == ECA18


@pytest.mark.parametrize("name", ["model", "network"])
def test_what_lightning_modules_have_beside_their_network(tmp_path: Path, name: str) -> None:
    state = {f"{name}.{key}": value for key, value in state_of(ECA18).items()}
    beside: State = {"criterion.weight": torch.ones(7), "val_loss.weight": torch.ones(7)}
    beside |= {"val_metrics.accuracy.tp": torch.zeros(7, dtype=torch.long)}
    beside |= {f"model_ema.module.{key}": value + 1 for key, value in state_of(ECA18).items()}
    torch.save({"state_dict": state | beside}, tmp_path / "m.ckpt")
    found = load(tmp_path / "m.ckpt")
    assert found.spec == ECA18
    assert torch.equal(found.network.head.weight, state[f"{name}.fc.weight"])


@pytest.mark.parametrize("beside", ["teacher.fc.weight", "normalize.mean", "head.weight"])
def test_what_may_be_of_the_network_is_not_passed_over(tmp_path: Path, beside: str) -> None:
    state = {f"model.{key}": value for key, value in state_of(ECA18).items()}
    torch.save({"state_dict": state | {beside: torch.ones(7)}}, tmp_path / "m.ckpt")
    with pytest.raises(BuildError, match=f"no network known here, its weights are in .*{beside.partition('.')[0]}"):
        load(tmp_path / "m.ckpt")


def test_a_file_that_is_written_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights would be of one epoch and its SHA-256 of the next, which then would not be built."""
    path = save(tmp_path / "m.pth")

    def trained_on(state: State) -> tuple[State, str]:
        save(path, **{"fc.bias": torch.ones(7)})
        return canonical(state)

    monkeypatch.setattr("eca_build.checkpoint.canonical", trained_on)
    with pytest.raises(BuildError, match=r"m\.pth changed while it was read; give a copy"):
        load(path)


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    state = state_of(ECA18)
    save_file(state, tmp_path / "m.pth")
    torch.save(state, tmp_path / "m.safetensors")
    assert load(tmp_path / "m.pth").spec == load(tmp_path / "m.safetensors").spec == ECA18


def test_other_kinds_of_files(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "m.pt")
    with pytest.raises(BuildError, match=r"m\.pt is a TorchScript program; save its state_dict"):
        load(tmp_path / "m.pt")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(BuildError, match="is no regular file"):
            load(path)
    with (tmp_path / "large.pth").open("wb") as file:
        file.truncate(300 << 30)  # all holes
    with pytest.raises(BuildError, match="damaged or no checkpoint"):
        load(tmp_path / "large.pth")


def test_damaged_files(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.pth").read_bytes()
    for name, content, sentence in (
        ("cut.pth", whole[: len(whole) // 2], "damaged"),
        ("empty.pth", b"", "is empty"),
        ("text.pth", b"hello there", "damaged"),
        ("note.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "`git lfs pull` brings"),
        ("cut.safetensors", b"\xff" * 40, "damaged"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BuildError, match=sentence):
            load(tmp_path / name)
    for missing in ("missing.pth", "x" * 300):
        with pytest.raises(BuildError, match="cannot be read"):
            load(tmp_path / missing)


def test_a_small_file_that_asks_for_much_memory_is_refused(tmp_path: Path) -> None:
    whole, packed = save(tmp_path / "whole.pth"), tmp_path / "packed.pth"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    assert load(packed).spec == load(whole).spec, "packed as far as weights can be"
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/none", bytes(20 * packed.stat().st_size))
    with pytest.raises(BuildError, match=r"packed\.pth would be \d+ bytes when it is unpacked"):
        load(packed)


def test_what_was_saved_on_a_gpu_is_read_without_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(save(tmp_path / "cpu.pth")) as source, zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name).replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0"))
    with zipfile.ZipFile(tmp_path / "m.pth") as archive:
        assert b"cuda:0" in archive.read("cpu/data.pkl")
    assert load(tmp_path / "m.pth").spec == ECA18


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layer1.0.bn1.bias": torch.tensor([float("nan")] + [0.0] * 63)}, r"layer1\.0\.bn1\.bias.*not finite"),
        ({"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, r"layer1\.0\.conv1\.weight has shape"),
        ({"layer1.0.bn1.weight": torch.full((64,), 1e300, dtype=torch.float64)}, r"layer1\.0\.bn1\.weight.*not finite"),
        (
            {"layer1.0.bn1.weight": torch.ones(64, dtype=torch.float8_e4m3fn)},
            r"bn1\.weight is no plain .*float8_e4m3fn",
        ),
        ({"layer1.0.bn1.weight": torch.ones(64, dtype=torch.complex64)}, "no plain tensor of floats .complex64"),
        ({"layer1.0.bn1.weight": torch.ones(64).to_sparse()}, "no plain tensor of floats .float32, sparse_coo"),
        (
            {"layer1.0.bn1.weight": torch.ones(64, device="meta")},
            "no plain tensor of floats .float32, strided, on meta",
        ),
        (
            {"fc.weight": torch.nested.nested_tensor([torch.ones(3), torch.ones(4)], layout=torch.jagged)},
            "no plain tensor of floats .float32, nested",
        ),
        ({"fc.weight": torch.zeros(1).expand(1 << 36, 512)}, r"fc\.weight has more values than the file holds"),
        ({"conv1.weight": torch.zeros(())}, r"conv1\.weight has 0 axes"),
        ({"fc.weight": torch.zeros(0, 512), "fc.bias": torch.zeros(0)}, "classifier of no classes"),
        ({"fc.weight": torch.zeros(1, 512), "fc.bias": torch.zeros(1)}, "classifier of one class.*class 1 is yes"),
        ({"fc.4.weight": torch.zeros(7, 7)}, r"a classifier of several layers with weights, fc, fc\.4"),
        ({"layer1.0.bn1.running_var": torch.tensor([-1.0] + [1.0] * 63)}, "negative variances"),
        ({"layer9.surprise": torch.zeros(1)}, r"has also layer9\.surprise;"),
        ({f"more.{n}": torch.zeros(1) for n in range(5)}, r"has also more\.0, more\.1, more\.2 and 2 more;"),
        ({"layer1.0.attention.conv.weight": torch.zeros(1, 1, 4)}, "kernel sizes are odd"),
    ],
)
def test_wrong_weights_name_the_key(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    with pytest.raises(BuildError, match=sentence):
        load(save(tmp_path / "m.pth", **change))


def test_missing_keys_and_other_networks(tmp_path: Path) -> None:
    state = state_of(ECA18)
    for drop, sentence in (
        ("layer1.0.bn1.weight", r"lacks layer1\.0\.bn1\.weight"),
        ("layer1.0.attention.conv.weight", "ECA in 7 of 8 blocks"),
        ("fc.weight", "no network known here, its weights are in bn1, conv1, fc, layer1, layer2, layer3, layer4;"),
    ):
        torch.save({k: v for k, v in state.items() if k != drop}, tmp_path / "m.pth")
        with pytest.raises(BuildError, match=sentence):
            load(tmp_path / "m.pth")
    torch.save({k: v for k, v in state.items() if not k.startswith("layer1.0.")}, tmp_path / "m.pth")
    with pytest.raises(BuildError, match=r"looks like a ResNet but lacks layer1\.0\.conv1\.weight"):
        load(tmp_path / "m.pth")
    torch.save(state, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth", arch="resnet18").spec == ECA18
    with pytest.raises(BuildError, match="holds resnet18, not resnet50"):
        load(tmp_path / "m.pth", arch="resnet50")
    for odd, sentence in (({1: torch.zeros(1)}, "no state_dict"), (state | {"fc.weight": torch.zeros(())}, "0 axes")):
        torch.save(odd, tmp_path / "m.pth")
        with pytest.raises(BuildError, match=sentence):
            load(tmp_path / "m.pth")
    torch.save([1, 2], tmp_path / "m.pth")
    with pytest.raises(BuildError, match="no state_dict"):
        load(tmp_path / "m.pth")


def test_a_cbam_with_another_batch_norm_or_for_positions_alone(tmp_path: Path) -> None:
    origin = next(convert for name, _, _, convert in CBAM_CASES if name == "timm CBAM")
    assert callable(origin)
    state = origin(state_of(CBAM18)) | {"layer1.0.se.spatial.conv.bn.weight": torch.ones(2)}
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(BuildError, match=r"layer1\.0\.attention\.spatial\.bn of other shapes than \[1\]"):
        load(tmp_path / "m.pth")
    torch.save({k: v for k, v in state_of(CBAM18).items() if ".attention.fc" not in k}, tmp_path / "m.pth")
    with pytest.raises(BuildError, match="CBAM for positions alone"):
        load(tmp_path / "m.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "_orig_mod.module.", "model.backbone.module."])
def test_wrappers_leave_no_prefix_in_whichever_order_they_were_put_on(prefix: str) -> None:
    state = {f"{prefix}{key}": torch.zeros(1) for key in ("conv.weight", "module.weight", "bn.num_batches_tracked")}
    assert list(strip(state)) == ["conv.weight", "module.weight"]
