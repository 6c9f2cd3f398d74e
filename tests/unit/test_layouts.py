"""The key names of every origin become ours, and the network answers as theirs does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from eca_build.checkpoint import load
from eca_build.errors import BuildError
from eca_build.networks import NetworkSpec, create, with_formula
from eca_build.networks.attention import Kind
from safetensors.torch import save_file
from torch.nn.utils import parametrizations, prune

from tests.unit.checkpoints import ECA18, State, authors, state_of
from tests.unit.eca_net import EcaMobileNetV2, EcaNsLayer
from tests.unit.test_export import stirred

ECA_MOBILE = replace(with_formula("mobilenetv2", "eca", 5, width=0.5), sizes=(1,) * 10 + (3,) * 7)


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


def test_the_authors_mobilenet(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = EcaMobileNetV2(7)
    stirred(theirs)  # type: ignore[arg-type]  # as PyTorch begins them its answers are all but zero, whatever is computed
    torch.save(authors(theirs.state_dict()), tmp_path / "m.pth.tar")
    found = load(tmp_path / "m.pth.tar")
    assert (found.spec, found.origin) == (
        replace(with_formula("mobilenetv2", "eca", 7), sizes=(1,) * 13 + (3,) * 4),
        "authors",
    )
    x = 3 * torch.randn(2, 3, 64, 64)  # so that ReLU6 cuts off
    with torch.inference_mode():
        expected = theirs(x)
        assert (expected[0] - expected[1]).abs().max() > 0.1
        torch.testing.assert_close(found.network(x), expected, rtol=0, atol=1e-5)


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
    with pytest.raises(BuildError, match=r"EfficientNets, .* behind the depthwise convolution"):
        load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("added", ["blocks.3.4", "blocks.7.0"])
def test_a_timm_mobilenet_of_more_blocks_is_another_network(tmp_path: Path, added: str) -> None:
    """Its block was taken for the next stage's first, whose weights were lost or took its place, as the order was."""
    state = timm_mobilenet(state_of(with_formula("mobilenetv2", "none", 5)))
    one_more = {k.replace("blocks.3.3", added): v for k, v in state.items() if k.startswith("blocks.3.3.")}
    for order in (state | one_more, one_more | state):
        torch.save(order, tmp_path / "m.pth")
        with pytest.raises(
            BuildError, match=rf"looks like mobilenetv2 but has also {added}\..*; that network is not supported"
        ):
            load(tmp_path / "m.pth")


def test_two_tensors_of_one_name_are_another_network(tmp_path: Path) -> None:
    state = renamed(state_of(ECA18), attention_as("eca"))
    torch.save(state | {"layer1.0.se.conv.weight": torch.zeros(1, 1, 3)}, tmp_path / "m.pth")
    with pytest.raises(BuildError, match=r"two tensors that would both be layer1\.0\.attention\.conv\.weight here"):
        load(tmp_path / "m.pth")


def test_a_cbam_with_another_batch_norm_or_for_positions_alone(tmp_path: Path) -> None:
    origin = next(convert for name, _, _, convert in CBAM_CASES if name == "timm CBAM")
    assert callable(origin)
    state = origin(state_of(CBAM18)) | {"layer1.0.se.spatial.conv.bn.weight": torch.ones(2)}
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(BuildError, match=r"layer1\.0\.attention\.spatial\.bn of other shapes than CBAM's \[1\]"):
        load(tmp_path / "m.pth")
    torch.save({k: v for k, v in state_of(CBAM18).items() if ".attention.fc" not in k}, tmp_path / "m.pth")
    with pytest.raises(BuildError, match="CBAM for positions alone"):
        load(tmp_path / "m.pth")


def test_halves_of_a_folded_batch_norm(tmp_path: Path) -> None:
    """Folded in float32, whatever the file's type."""
    origin = next(convert for name, _, _, convert in CBAM_CASES if name == "timm CBAM")
    assert callable(origin)
    halves = {key: value.half() for key, value in origin(state_of(CBAM18)).items()}
    torch.save(halves, tmp_path / "halves.pth")
    torch.save({key: value.float() for key, value in halves.items()}, tmp_path / "floats.pth")
    found, wanted = (load(tmp_path / f"{name}.pth").network.state_dict() for name in ("halves", "floats"))
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "weight_orig"),
        (parametrizations.weight_norm, r"parametrizations\.weight\.original0"),
    ],
)
def test_weights_that_pytorch_computes_are_told_as_such(
    tmp_path: Path, wrap: Callable[[torch.nn.Module], object], key: str
) -> None:
    """As pruning by masks leaves them; it was said that the network is not known."""
    net = create(with_formula("resnet14_cifar", "eca", 10))
    wrap(net.get_submodule("conv1"))
    torch.save(net.state_dict(), tmp_path / "m.pth")
    with pytest.raises(BuildError, match=rf"conv1\.{key}, from which .*; call torch\.nn\.utils\.prune\.remove or"):
        load(tmp_path / "m.pth")
