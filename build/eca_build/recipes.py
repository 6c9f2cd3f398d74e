"""What a network's images are turned into before it sees them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from eca_service.contract import Preprocessing
from pydantic import ValidationError

from eca_build.errors import BuildError

BESIDE = "config.json"  # timm's and Hugging Face's name for what goes with weights
TIMM_CROP_PCT, TIMM_FILTER = 0.875, "bicubic"  # where its file says nothing
# What of timm's `model_args` changes a network's answers and none of its weights, and what it is in ours.
UNSEEN = {"act_layer": "relu", "aa_layer": "", "global_pool": "avg", "output_stride": 32, "pad_type": ""}
INSTEAD = "move it away, or give all of --resize, --crop, --filter, --mean and --std"


def default_recipe(arch: str) -> Preprocessing:
    """ImageNet's recipe, or CIFAR's for the networks made for 32 x 32 pixels."""
    if not arch.endswith("_cifar"):
        return Preprocessing()
    return Preprocessing(resize=32, crop=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def recipe_beside(checkpoint: Path, arch: str) -> dict[str, object]:
    """What timm's `config.json` in the checkpoint's folder says of preprocessing, by Preprocessing's fields.

    As timm's own evaluation has it (`resolve_model_data_config`, `transforms_imagenet_eval`). Nothing where there is no
    such file, or one of another program. Raises BuildError where it cannot be read or is of another network than
    `arch`, and where network or service cannot do what it says.
    """
    file = checkpoint.parent / BESIDE
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BuildError(f"{file} cannot be read: {error.strerror}; {INSTEAD}") from None
    except (ValueError, RecursionError):  # of lists in lists without end
        raise BuildError(f"{file} is damaged or not JSON; {INSTEAD}") from None
    if not isinstance(found, dict):
        return {}
    # timm's older files have it all beside the architecture
    told = found.get("pretrained_cfg", found if "architecture" in found else None)
    if not isinstance(told, dict) or "input_size" not in told:
        return {}
    name = str(found.get("architecture"))
    if not re.fullmatch(rf"(\w+_)?(eca|se)?{arch}|{arch}_\d+", name):
        raise BuildError(f"{file} is of {name}, and {checkpoint.name} beside it is {arch}; {INSTEAD}")
    given = found.get("model_args")
    asked = given if isinstance(given, dict) else {}
    for argument, ours in UNSEEN.items():
        if (value := asked.get(argument)) and value != ours:
            raise BuildError(f"{file} has {argument}={value!r}, which no network here has; it cannot be built")
    if (mode := told.get("crop_mode") or "center") != "center":
        raise BuildError(f"{file} has images cropped by {mode!r}, but the service crops the centre; {INSTEAD}")
    try:
        _, height, width = told["input_size"]
        crop_pct = told.get("crop_pct") or TIMM_CROP_PCT
        recipe = {
            "resize": math.floor(height / crop_pct),
            "crop": height,
            "filter": told.get("interpolation") or TIMM_FILTER,
            **{name: told[name] for name in ("mean", "std") if told.get(name)},
        }
        made = Preprocessing.model_validate(recipe)
        if not all(0 <= value <= 1 for value in made.mean) or not all(0 < value <= 1 for value in made.std):
            raise ValueError("mean and std are between 0 and 1")
    except (TypeError, ValueError, ArithmeticError) as error:
        why = "; ".join(str(one["msg"]) for one in error.errors()) if isinstance(error, ValidationError) else error
        raise BuildError(f"{file} does not say what is done to images before the network: {why}; {INSTEAD}") from None
    if height != width:
        raise BuildError(f"{file} has images of {width} x {height} pixels, the networks here take squares; {INSTEAD}")
    return recipe


def recipe_of(arch: str, asked: Mapping[str, object]) -> Preprocessing:
    """The architecture's recipe with what is asked for in place of its own, by its fields.

    Raises BuildError where the crop would be larger than what it is cut from.
    """
    recipe = Preprocessing.model_validate({**default_recipe(arch).model_dump(), **asked})
    if recipe.crop > recipe.resize:
        raise BuildError(
            f"a crop of {recipe.crop} pixels cannot be cut from images of {recipe.resize}; give --resize and --crop"
        )
    return recipe
