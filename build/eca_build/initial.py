"""Checkpoints with random weights: for latency, which needs no trained ones, and for nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from eca_build import images
from eca_build.checkpoint import begins, read_safetensors, save
from eca_build.detect import WIDTH_STEP
from eca_build.errors import BuildError
from eca_build.networks import ARCHS, RESNETS, Network, NetworkSpec, create, with_formula
from eca_build.networks.attention import Kind
from eca_build.networks.resnet import BasicBlock, Bottleneck
from eca_build.recipes import default_recipe

SAMPLE = 16  # images that the batch norms are set by
SIDE_PX = 64  # of those images; the statistics hardly depend on it, the time does
BRANCH = 0.1  # the weight of a residual branch's last batch norm


def write(path: Path, arch: str, attention: Kind, classes: int, width: float = 1.0, seed: int = 0) -> NetworkSpec:
    """Writes a network with random weights, noted as such in the file, to `path`, which ends in .safetensors.

    Its sizes follow the paper's formulas. Raises BuildError for an unknown `arch`, a width that it has not, another
    suffix, where the file cannot be written, and where it would replace another than one of these.
    """
    if arch not in ARCHS:
        raise BuildError(f"there is no architecture {arch}; `eca-build archs` lists those that are")
    step = WIDTH_STEP if arch.startswith("mobilenetv2") else 1.0
    if width != 1 and (arch in RESNETS or abs(width / step - round(width / step)) > 1e-6):
        raise BuildError(
            f"{arch} has no width of {width:g}; MobileNetV2 takes multiples of {WIDTH_STEP}, the CIFAR ResNets whole "
            "numbers"
        )
    if path.suffix != ".safetensors":
        raise BuildError(f"{path} must end in .safetensors: the file says there that its weights are random")
    if os.path.lexists(path) and not is_random(path):
        raise BuildError(f"{path} exists and does not hold random weights of eca-build; give another name to -o")
    spec = with_formula(arch, attention, classes, width)
    torch.manual_seed(seed)
    network = create(spec)
    settle(network, default_recipe(arch).crop, seed)
    save(path, network, {"weights": "random", "architecture": arch, "attention": attention})
    return spec


def is_random(path: Path) -> bool:
    """Whether the file says that its weights are random, as those written here do."""
    try:
        return begins(path)[8:] == b"{" and read_safetensors(path)[1].get("weights") == "random"
    except BuildError:  # whatever it is, it is none of ours
        return False


@torch.no_grad()
def settle(network: Network, crop: int, seed: int) -> None:
    """Sets the batch norms by synthetic images, in place: a deep random network would overflow without.

    Residual branches begin small, as by Goyal et al. 2017, section 5.1: else what one block makes of other images than
    these, the next ones multiply, and their answers are so sharp that float32 itself differs by more than is verified.
    """
    for block in network.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            last = block.bn2 if isinstance(block, BasicBlock) else block.bn3
            last.weight.fill_(BRANCH)
    sample = images.synthetic(min(crop, SIDE_PX), SAMPLE, seed)
    x = torch.from_numpy(sample).permute(0, 3, 1, 2).float() / 64 - 2
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain mean over the passes, so that one suffices
    network.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
