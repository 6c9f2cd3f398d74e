"""Parameters are the published ones; attention is what the papers say."""

from __future__ import annotations

import pytest
import torch
from eca_build import cost
from eca_build.networks import create, site_channels, with_formula
from eca_build.networks.attention import ECA, SE, Kind, adaptive_kernel_size

# ECA-Net, table 3 and the text; in units of 2**20, as the paper counts.
PUBLISHED = [
    ("resnet18", "eca", 11.15),
    ("resnet34", "eca", 20.79),
    ("resnet50", "none", 24.37),
    ("resnet50", "se", 26.77),
    ("resnet50", "eca", 24.37),
    ("resnet101", "none", 42.49),
    ("resnet101", "se", 47.01),
    ("resnet101", "eca", 42.49),
    ("resnet152", "none", 57.40),
    ("resnet152", "se", 63.68),
    ("resnet152", "eca", 57.40),
    ("mobilenetv2", "none", 3.34),
    ("mobilenetv2", "se", 3.40),
    ("mobilenetv2", "eca", 3.34),
]


@pytest.mark.parametrize(("arch", "attention", "published"), PUBLISHED)
def test_parameters_are_the_published_ones(arch: str, attention: Kind, published: float) -> None:
    with torch.device("meta"):
        network = create(with_formula(arch, attention, 1000))
    assert round(cost.parameters(network) / 2**20, 2) == published


def test_eca_adds_its_kernels_alone() -> None:
    with torch.device("meta"):
        plain, eca = (cost.parameters(create(with_formula("resnet50", kind, 1000))) for kind in ("none", "eca"))
    assert plain == 25_557_032
    assert eca - plain == 86  # kernels 5557 over 3, 4, 6, 3 blocks
    assert (len(site_channels("resnet50")), len(site_channels("mobilenetv2"))) == (16, 17)


@pytest.mark.parametrize(("arch", "giga"), [("resnet18", 1.81), ("resnet50", 4.09), ("mobilenetv2", 0.30)])
def test_flops_are_multiply_adds(arch: str, giga: float) -> None:
    assert round(cost.flops(create(with_formula(arch, "none", 1000)), 224) / 1e9, 2) == giga


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


# ECA-Net, table 3 and the text: units of 2**30, for MobileNetV2 of 2**20.
PUBLISHED_FLOPS = [
    ("resnet18", "eca", 1.70),
    ("resnet34", "eca", 3.43),
    ("resnet50", "none", 3.86),
    ("resnet50", "se", 3.87),
    ("resnet50", "eca", 3.86),
    ("resnet101", "none", 7.34),
    ("resnet101", "se", 7.35),
    ("resnet101", "eca", 7.35),
    ("resnet152", "none", 10.82),
    ("resnet152", "se", 10.85),
    ("mobilenetv2", "none", 319.4),
    ("mobilenetv2", "eca", 319.9),
]


@pytest.mark.parametrize(("arch", "attention", "published"), PUBLISHED_FLOPS)
def test_flops_are_the_published_ones(arch: str, attention: Kind, published: float) -> None:
    unit, digits = (2**20, 10) if arch == "mobilenetv2" else (2**30, 100)
    flops = cost.paper_flops(create(with_formula(arch, attention, 1000)), 224)
    assert int(digits * flops / unit) == round(digits * published)  # the tables cut off


@pytest.mark.parametrize(
    ("arch", "attention", "published", "unit", "digit"),
    [
        # 10.841; why is not known.
        ("resnet152", "eca", 10.83, 2**30, 0.01),
        # 320.07; why is not known: perhaps rounded, where the other rows are cut off.
        ("mobilenetv2", "se", 320.1, 2**20, 0.1),
    ],
)
def test_flops_that_differ_in_the_last_digit(
    arch: str, attention: Kind, published: float, unit: int, digit: float
) -> None:
    flops = cost.paper_flops(create(with_formula(arch, attention, 1000)), 224) / unit
    assert 0 < abs(flops - published) < 1.2 * digit
