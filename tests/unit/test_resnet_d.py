"""timm's variants of the ResNet, its networks with ECA among them: stems of three convolutions, pooled shortcuts, other
widths, groups, and what pruning leaves.

The definition stands here a second time, in timm's key names and PyTorch's functions. By hand it was held against timm
itself, 1.0.31, too: the answers of ten of them, and of sixteen of other widths, groups or fewer channels, are the same,
to the last bit for all but those with SE, of 152d and the ResNeXts (2e-6 of logits up to 5).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from eca_build import cost
from eca_build.checkpoint import load
from eca_build.detect import detect
from eca_build.errors import BuildError
from eca_build.graphs import fold_batch_norms
from eca_build.networks import RESNETS, NetworkSpec, create, with_formula
from eca_build.networks.attention import Kind
from eca_build.networks.resnet import Bottleneck, Shape, Stage
from torch import Tensor, nn

from tests.unit.test_export import network, stirred

State = dict[str, Tensor]
# Counted in timm: its ecaresnets and ecaresnexts, and its networks without attention.
PARAMETERS: dict[tuple[str, Kind], int] = {
    ("resnet26t", "eca"): 16_011_916,
    ("resnetlight", "eca"): 30_162_046,
    ("resnet50d", "eca"): 25_576_350,
    ("resnet50t", "eca"): 25_573_814,
    ("resnet101d", "eca"): 44_568_563,
    ("resnet269d", "eca"): 102_093_077,
    ("resnet10t", "none"): 5_435_488,
    ("resnet14t", "none"): 10_081_632,
    ("resnet18d", "none"): 11_708_744,
    ("resnet26", "none"): 15_995_176,
    ("resnet26d", "none"): 16_014_408,
    ("resnet34d", "none"): 21_816_904,
    ("resnet200d", "none"): 64_693_064,
    ("resnext26t_32x4d", "eca"): 15_406_220,
    ("resnext50t_32x4d", "eca"): 25_045_686,
    ("resnext50_32x4d", "none"): 25_028_904,
    ("resnext50d_32x4d", "none"): 25_048_136,
    ("resnext101_32x8d", "none"): 88_791_336,
    ("wide_resnet50_2", "none"): 68_883_240,
    ("wide_resnet101_2", "none"): 126_886_696,
}
# timm/models/_pruned/ecaresnet50d_pruned.txt
PRUNED_50D = Shape(
    Bottleneck,
    (32, 32, 64),
    (
        Stage(19, ((47, 18), (52, 22), (64, 35))),
        Stage(171, ((85, 37), (107, 80), (120, 85), (125, 87))),
        Stage(818, ((198, 126), (255, 232), (256, 233), (253, 235), (256, 225), (256, 239))),
        Stage(2022, ((492, 237), (512, 500), (512, 490))),
    ),
    pooled=True,
)


def pruned(arch: str) -> NetworkSpec:
    """The network with ECA and fewer channels, of other numbers from block to block.

    The first stage gives as many as it takes, by which it must not be taken for one without a shortcut of its own.
    """
    whole = RESNETS[arch]
    stages: list[Stage] = []
    for stage in whole.stages:
        inner = [
            tuple(width - whole.groups * (1 + (index + place) % 3) for place, width in enumerate(widths))
            for index, widths in enumerate(stage.inner)
        ]
        stages.append(Stage(stage.channels - 5 if stages else whole.stem[-1], tuple(inner)))
    return replace(with_formula(arch, "eca", 10), arch=f"{arch}_pruned", shape=whole._replace(stages=tuple(stages)))


def timms(state: State) -> State:
    return {key.replace(".attention.", ".se."): value for key, value in state.items()}


def forward(w: State, x: Tensor) -> Tensor:
    """Logits [N, classes] of an ecaresnet of timm's, from its weights and float [N, 3, H, W]."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, w[f"{name}.weight"], w[f"{name}.bias"])

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = w[f"{name}.weight"]
        return F.conv2d(x, weight, None, stride, weight.shape[2] // 2, groups=x.shape[1] // weight.shape[1])

    if "conv1.weight" in w:
        x = conv(x, "conv1", 2)
    else:
        x = norm(conv(x, "conv1.0", 2), "conv1.1").relu()
        x = conv(norm(conv(x, "conv1.3"), "conv1.4").relu(), "conv1.6")
    x = F.max_pool2d(norm(x, "bn1").relu(), 3, 2, 1)
    for stage in range(1, 5):
        for index in count():
            block = f"layer{stage}.{index}"
            if f"{block}.conv1.weight" not in w:
                break
            stride = 2 if stage > 1 and index == 0 else 1
            bottleneck = f"{block}.conv3.weight" in w
            y = norm(conv(x, f"{block}.conv1", 1 if bottleneck else stride), f"{block}.bn1").relu()
            y = norm(conv(y, f"{block}.conv2", stride if bottleneck else 1), f"{block}.bn2")
            if bottleneck:
                y = norm(conv(y.relu(), f"{block}.conv3"), f"{block}.bn3")
            taps = w[f"{block}.se.conv.weight"]
            gate = F.conv1d(y.mean((2, 3))[:, None], taps, padding=taps.shape[2] // 2)[:, 0].sigmoid()
            if f"{block}.downsample.1.weight" in w:
                x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else x
                x = norm(conv(x, f"{block}.downsample.1"), f"{block}.downsample.2")
            x = (y * gate[:, :, None, None] + x).relu()
    return F.linear(x.mean((2, 3)), w["fc.weight"], w["fc.bias"])


@pytest.mark.parametrize(
    "spec",
    [with_formula(arch, "eca", 10) for arch in ("resnet10t", "resnet14t", "resnet26d", "resnetlight")]
    + [with_formula("resnext26t_32x4d", "eca", 10)]
    + [pruned(arch) for arch in ("resnet10t", "resnet26d", "resnext26d_32x4d")],
    ids=lambda spec: str(spec.arch),
)
def test_they_are_what_timm_defines(tmp_path: Path, spec: NetworkSpec) -> None:
    torch.manual_seed(0)
    state = timms(stirred(create(spec)).state_dict())
    torch.save(state, tmp_path / "m.pth")
    found = load(tmp_path / "m.pth")
    assert (found.spec, found.origin) == (spec, "timm")
    with torch.inference_mode():
        for size in (64, 97):  # of 97 the last maps have 13 and 7 pixels a side: their last ones are pooled alone
            x = torch.randn(2, 3, size, size)
            torch.testing.assert_close(found.network(x), forward(state, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("arch", "attention"), PARAMETERS)
def test_they_have_as_many_weights_as_timm_s(arch: str, attention: Kind) -> None:
    with torch.device("meta"):
        assert cost.parameters(create(with_formula(arch, attention, 1000))) == PARAMETERS[arch, attention]


def test_timm_s_pruned_one_costs_what_it_does_there() -> None:
    with torch.device("meta"):
        spec = NetworkSpec("resnet50d_pruned", "eca", 1000, (5,) * 13 + (7,) * 3, shape=PRUNED_50D)
        net = create(spec)
        assert detect(net.state_dict(), Path("m.pth")) == spec
    assert cost.attention_parameters(spec) == 86
    assert (cost.parameters(net), cost.flops(net, 224)) == (19_939_713, 2_519_874_113)


@pytest.mark.parametrize("arch", RESNETS)
def test_each_is_found_from_its_names_and_shapes(arch: str) -> None:
    spec = with_formula(arch, "se", 7)
    *whole, last = RESNETS[arch].stages
    fewer = last._replace(channels=last.channels - 16)  # of the widest alone: no narrower network has as many
    less = replace(spec, arch=f"{arch}_pruned", shape=RESNETS[arch]._replace(stages=(*whole, fewer)))
    with torch.device("meta"):
        for each in (spec, less):
            assert detect(create(each).state_dict(), Path("m.pth")) == each


@pytest.mark.parametrize("arch", ["resnet10t", "resnet14t"])
def test_every_batch_norm_is_folded(arch: str) -> None:
    """That of the stem's last convolution too, which is not registered beside it."""
    net = network(arch, "eca")
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = net(x)
        fold_batch_norms(net)
        assert not [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        torch.testing.assert_close(net(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("spec", "drop", "sentence"),
    [
        (with_formula("resnet26d", "eca", 7), "conv1.3", r"\(2, 2, 2, 2\) bottleneck .* \(32, 64\) channels, with"),
        (with_formula("resnet10t", "eca", 7), "conv1.4.", r"lacks conv1\.4\."),
        (with_formula("resnet14t", "eca", 7), "layer2.0.downsample.", r"\(24, 32, 64\) channels, which is none"),
    ],
)
def test_another_one_is_told_what_it_is(tmp_path: Path, spec: NetworkSpec, drop: str, sentence: str) -> None:
    """As are timm's 50c and 50s: a stem of several convolutions before shortcuts that are not pooled."""
    torch.save({k: v for k, v in create(spec).state_dict().items() if not k.startswith(drop)}, tmp_path / "m.pth")
    with pytest.raises(BuildError, match=sentence):
        load(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("spec", "change", "sentence"),
    [
        (pruned("resnet14t"), {"layer1.0.downsample.1.weight": (60, 64, 1, 1)}, r"\[60, 64, 1, 1\], .*_pruned needs"),
        (pruned("resnet26d"), {"layer2.1.conv3.weight": (500, 125, 1, 1)}, r"layer2\.1\.conv3\.weight has shape"),
        (pruned("resnet26d"), {"layer2.0.conv2.weight": (126, 1, 3, 3)}, r"layer2\.0\.conv2\.weight has shape"),
        (pruned("resnet26d"), {"layer1.0.conv2.weight": (62,)}, r"layer1\.0\.conv2\.weight has shape \[62\]"),
        (pruned("resnet26d"), {"layer1.0.conv2.weight": (62, 60, 3, 3)}, r"layer1\.0\.conv2\.weight has shape"),
        (pruned("resnet26d"), {"layer1.0.conv2.weight": (62, 0, 3, 3)}, r"layer1\.0\.conv2\.weight has shape"),
        (pruned("resnet26d"), {"layer1.1.conv1.weight": (0, 64, 1, 1)}, r"lacks layer1\.1\.conv1\.weight"),
        (with_formula("resnet26d", "eca", 9), {"layer1.1.conv1.weight": (65, 256, 1, 1)}, r"resnet26d needs \[64, 256"),
        (pruned("resnet18"), {"layer1.0.conv2.weight": (60, 63, 3, 3)}, r"\[60, 63, 3, 3\], .* needs \[64, 63, 3, 3\]"),
        (
            pruned("resnext26t_32x4d"),
            {"layer3.1.conv1.weight": (333, 1019, 1, 1)},
            "does not fit it: .* divisible by groups",
        ),
        (pruned("resnext26t_32x4d"), {"layer1.0.conv2.weight": (64, 6, 3, 3)}, "bottleneck blocks of 16 groups behind"),
        (with_formula("resnet20_cifar", "eca", 9), {"conv1.weight": (12, 3, 3, 3)}, r"\(3, 3, 3\) basic .* is none"),
        (
            with_formula("resnet18", "se-gc3", 9),
            {"layer1.0.attention.grouped.weight": (49, 7, 1)},
            "does not fit it: .* divisible by groups",
        ),
        (with_formula("resnet18", "eca", 9), {"fc.weight": (1 << 40, 0)}, r"fc\.weight has shape \[1099511627776, 0\]"),
    ],
)
def test_widths_that_do_not_agree_are_told(
    tmp_path: Path, spec: NetworkSpec, change: dict[str, tuple[int, ...]], sentence: str
) -> None:
    state = create(spec).state_dict() | {key: torch.zeros(shape) for key, shape in change.items()}
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(BuildError, match=sentence):
        load(tmp_path / "m.pth")
