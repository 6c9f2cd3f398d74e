"""Parameters are the published ones; attention is what the papers say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from eca_build import cost
from eca_build.networks import create, site_channels, with_formula
from eca_build.networks.attention import (
    CBAM,
    ECA,
    KINDS,
    SE,
    BareGate,
    DiagonalGate,
    FullGate,
    GroupedGate,
    Kind,
    UnsharedECA,
    adaptive_kernel_size,
)
from eca_build.networks.cifar_resnet import PaddedShortcut

from tests.load.paper import TABLE_2, TABLE_3, Published, flops_unit


@pytest.mark.parametrize("row", TABLE_3, ids=lambda row: f"{row.arch}-{row.attention}")
def test_parameters_are_the_published_ones(row: Published) -> None:
    with torch.device("meta"):
        network = create(with_formula(row.arch, row.attention, 1000))
    assert round(cost.parameters(network) / 2**20, 2) == row.parameters


@pytest.mark.parametrize("kind", TABLE_2)
def test_table_2_s_parameters(kind: Kind) -> None:
    spec = with_formula("resnet50", kind, 1000)
    if kind == "eca":
        spec = replace(spec, sizes=(3,) * 16)
    with torch.device("meta"):
        added = cost.parameters(create(spec)) - 25_557_032
    weights, _ = TABLE_2[kind]
    assert added == sum(weights(channels) for channels in site_channels(spec))


def test_eca_adds_its_kernels_alone() -> None:
    with torch.device("meta"):
        plain, eca = (cost.parameters(create(with_formula("resnet50", kind, 1000))) for kind in ("none", "eca"))
    assert plain == 25_557_032
    assert eca - plain == 86  # kernels 5557 over 3, 4, 6, 3 blocks
    assert [len(site_channels(with_formula(arch, "none", 2))) for arch in ("resnet50", "mobilenetv2")] == [16, 17]


@pytest.mark.parametrize(("arch", "giga"), [("resnet18", 1.81), ("resnet50", 4.09), ("mobilenetv2", 0.30)])
def test_flops_are_multiply_adds(arch: str, giga: float) -> None:
    with torch.device("meta"):
        network = create(with_formula(arch, "none", 1000))
    assert round(cost.flops(network, 224) / 1e9, 2) == giga


@pytest.mark.parametrize(("channels", "size"), [(16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)])
def test_formula(channels: int, size: int) -> None:
    assert adaptive_kernel_size(channels) == size


def test_eca_is_a_padded_convolution_over_channels() -> None:
    attention = ECA(3)
    with torch.no_grad():
        attention.conv.weight.copy_(torch.tensor([[[1.0, 10.0, 100.0]]]))
    x = torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 3, 5) / 1000
    pooled = torch.tensor([0.0, 1, 2, 3]) / 1000
    mixed = 10 * pooled + torch.cat([torch.zeros(1), pooled[:-1]]) + 100 * torch.cat([pooled[1:], torch.zeros(1)])
    torch.testing.assert_close(attention(x), x * mixed.sigmoid().view(1, 4, 1, 1))


def test_se_gate() -> None:
    torch.manual_seed(0)
    attention = SE(8, 2)
    pooled = torch.randn(3, 8)
    expected = (torch.relu(pooled @ attention.fc1.weight.T) @ attention.fc2.weight.T).sigmoid()
    torch.testing.assert_close(attention.gate(pooled), expected)


def test_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        ECA(4)


# Why our count is not the published one, cut off, and by how many units of its last digit at most.
DIFFERENT = {
    ("resnet152", "eca"): 1.2,  # 10.841 for 10.83; why is not known
    ("mobilenetv2", "se"): 1.2,  # 320.07 for 320.1; why is not known: perhaps rounded, where the others are cut off
    # 7.369 for 7.35, which is SE's figure; CBAM has SE's layers on a second pooled map besides, and its 7x7 convolution
    ("resnet101", "cbam"): 2.0,
}


@pytest.mark.parametrize("row", TABLE_3, ids=lambda row: f"{row.arch}-{row.attention}")
def test_flops_are_the_published_ones(row: Published) -> None:
    digits = 10 if row.arch == "mobilenetv2" else 100
    with torch.device("meta"):
        net = create(with_formula(row.arch, row.attention, 1000))
    flops = cost.paper_flops(net, 224) / flops_unit(row.arch)
    most = DIFFERENT.get((row.arch, row.attention))
    same = int(digits * flops) == round(digits * row.flops)  # the tables cut off
    assert same == (most is None)
    assert most is None or abs(flops - row.flops) < most / digits


def test_new_channels_of_a_padded_shortcut_are_on_both_sides() -> None:
    x = torch.arange(1.0, 33).view(1, 2, 4, 4)
    y = PaddedShortcut(2, stride=2)(x)
    torch.testing.assert_close(y[:, 1:3], x[:, :, ::2, ::2])
    assert y.shape == (1, 4, 2, 2)
    assert not y[:, [0, 3]].any()


def test_grouped_gate_mixes_within_its_groups_alone() -> None:
    gate, full = GroupedGate(6, 3), FullGate(6)
    with torch.no_grad():
        full.fc.weight.zero_()
        full.fc.weight[:3, :3] = gate.grouped.weight[:3, :, 0]
        full.fc.weight[3:, 3:] = gate.grouped.weight[3:, :, 0]
    pooled = torch.randn(2, 6)
    torch.testing.assert_close(gate.gate(pooled), full.gate(pooled))
    torch.testing.assert_close(full.gate(pooled), (pooled @ full.fc.weight.T).sigmoid())


def test_gates_without_layers() -> None:
    pooled = torch.randn(2, 4)
    torch.testing.assert_close(BareGate().gate(pooled), pooled.sigmoid())
    diagonal = DiagonalGate(4)
    with torch.no_grad():
        diagonal.weight.copy_(torch.tensor([1.0, -2, 3, 0]))
    torch.testing.assert_close(diagonal.gate(pooled), (pooled * torch.tensor([1.0, -2, 3, 0])).sigmoid())


def test_unshared_eca_is_eca_where_its_rows_are_equal() -> None:
    shared, own = ECA(5), UnsharedECA(7, 5)
    with torch.no_grad():
        own.taps.copy_(shared.conv.weight[0].expand(7, 5))
        pooled = torch.randn(3, 7)
        torch.testing.assert_close(own.gate(pooled), shared.gate(pooled))
        own.taps[2] = torch.tensor([0.0, 0, 2, 0, 0])
        torch.testing.assert_close(own.gate(pooled)[:, 2], (2 * pooled[:, 2]).sigmoid())


def test_cbam_gates_channels_and_then_positions() -> None:
    cbam, x = CBAM(8, 2), torch.randn(2, 8, 5, 5)
    mean, highest = x.mean((2, 3)), x.flatten(2).max(2).values
    mlp = [torch.relu(pooled @ cbam.fc1.weight.T) @ cbam.fc2.weight.T for pooled in (mean, highest)]
    y = x * (mlp[0] + mlp[1]).sigmoid()[:, :, None, None]
    planes = torch.stack([y.mean(1), y.max(1).values], 1)
    where = torch.nn.functional.conv2d(planes, cbam.spatial.weight, cbam.spatial.bias, padding=3).sigmoid()
    torch.testing.assert_close(cbam(x), y * where)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["mobilenetv2_cifar", "resnet14_cifar", "resnet18"])
def test_every_kind_fits_every_network(arch: str, kind: Kind) -> None:
    with torch.device("meta"):
        net = create(with_formula(arch, kind, 10))
        assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
