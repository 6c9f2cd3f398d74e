"""What a network's images are turned into before it sees them, where nothing else is asked for."""

from __future__ import annotations

from eca_service.contract import Preprocessing


def default_recipe(arch: str) -> Preprocessing:
    """ImageNet's recipe, or CIFAR's for the networks made for 32 x 32 pixels."""
    if not arch.endswith("_cifar"):
        return Preprocessing()
    return Preprocessing(resize=32, crop=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
