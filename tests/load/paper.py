"""What ECA-Net's tables 2 and 3 say (arXiv 1910.03151 v4): held against our networks, and shown beside our figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from eca_build.networks.attention import Kind


@dataclass(frozen=True)
class Published:
    """A row of table 3, ImageNet at 224 pixels: `fps` is inference on an RTX 2080Ti, images/s, where it is given.

    `parameters` are in units of 2**20, `flops` of 2**30 (MobileNetV2: 2**20); top-1 and top-5 are accuracies in %.
    """

    arch: str
    attention: Kind
    parameters: float
    flops: float
    fps: int | None
    top1: float | None
    top5: float | None


TABLE_3 = (
    Published("resnet18", "eca", 11.15, 1.70, None, None, None),
    Published("resnet34", "eca", 20.79, 3.43, None, None, None),
    Published("resnet50", "none", 24.37, 3.86, 1855, 75.20, 92.52),
    Published("resnet50", "se", 26.77, 3.87, 1620, 76.71, 93.38),
    Published("resnet50", "cbam", 26.77, 3.87, 1213, 77.34, 93.69),
    Published("resnet50", "eca", 24.37, 3.86, 1805, 77.48, 93.68),
    Published("resnet101", "none", 42.49, 7.34, 1174, 76.83, 93.48),
    Published("resnet101", "se", 47.01, 7.35, 1044, 77.62, 93.93),
    Published("resnet101", "cbam", 47.01, 7.35, 635, 78.49, 94.31),
    Published("resnet101", "eca", 42.49, 7.35, 1089, 78.65, 94.34),
    Published("resnet152", "none", 57.40, 10.82, 815, 77.58, 93.66),
    Published("resnet152", "se", 63.68, 10.85, 761, 78.43, 94.27),
    Published("resnet152", "eca", 57.40, 10.83, 785, 78.92, 94.55),
    Published("mobilenetv2", "none", 3.34, 319.4, 2086, 71.64, 90.20),
    Published("mobilenetv2", "se", 3.40, 320.1, 2000, 72.42, 90.67),
    Published("mobilenetv2", "eca", 3.34, 319.9, 2010, 72.56, 90.81),
)

# Table 2, on ResNet-50: weights of a site of C channels, and top-1. ECA-NS and ECA have kernels of 3 there.
TABLE_2: dict[Kind, tuple[Callable[[int], int], float]] = {
    "none": (lambda c: 0, 75.20),
    "se": (lambda c: 2 * c * c // 16, 76.71),
    "se-var1": (lambda c: 0, 76.00),
    "se-var2": (lambda c: c, 77.07),
    "se-var3": (lambda c: c * c, 77.42),
    "se-gc1": (lambda c: c * c // 16, 76.95),
    "se-gc2": (lambda c: 16 * c, 76.98),
    "se-gc3": (lambda c: 8 * c, 76.96),
    "eca-ns": (lambda c: 3 * c, 77.35),
    "eca": (lambda c: 3, 77.43),
}


def flops_unit(arch: str) -> int:
    """What table 3 counts operations in."""
    return 2**20 if arch.startswith("mobilenet") else 2**30


def published_cost(arch: str, attention: str) -> float | None:
    """How much slower than its plain network the paper saw it infer, as a share of the plain one's images/s.

    0.127 means 12.7 % fewer images a second; None where the paper gives no speeds.
    """
    fps = {row.attention: row.fps for row in TABLE_3 if row.arch == arch}
    ours, plain = fps.get(attention), fps.get("none")  # type: ignore[call-overload]
    return None if ours is None or plain is None else 1 - ours / plain
