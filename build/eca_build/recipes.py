"""What a network's images are turned into before it sees them."""

from __future__ import annotations

from collections.abc import Mapping

from eca_service.contract import Preprocessing

from eca_build.errors import BuildError


def default_recipe(arch: str) -> Preprocessing:
    """ImageNet's recipe, or CIFAR's for the networks made for 32 x 32 pixels."""
    if not arch.endswith("_cifar"):
        return Preprocessing()
    return Preprocessing(resize=32, crop=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def recipe_of(arch: str, asked: Mapping[str, object]) -> Preprocessing:
    """The architecture's recipe with what is asked for in place of its own, by its fields; None: its own.

    Raises BuildError where the crop would be larger than what it is cut from.
    """
    merged = default_recipe(arch).model_dump() | {name: value for name, value in asked.items() if value is not None}
    recipe = Preprocessing.model_validate(merged)
    if recipe.crop > recipe.resize:
        raise BuildError(
            f"a crop of {recipe.crop} pixels cannot be cut from images of {recipe.resize}; give --resize and --crop"
        )
    return recipe
