"""What is in checkpoints: a network's weights, and what its authors' training script puts around them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from eca_build.networks import NetworkSpec, create, with_formula
from torch import Tensor

State = dict[str, Tensor]
ECA18 = replace(with_formula("resnet18", "eca", 7), sizes=(3, 3, 5, 5, 7, 7, 7, 7))


def state_of(spec: NetworkSpec) -> State:
    """The weights of such a network, random and the same each time."""
    torch.manual_seed(1)
    state = create(spec).state_dict()  # ports of CBAM have no bias behind its 7x7 convolution
    return {k: torch.zeros_like(v) if k.endswith(".spatial.bias") else v for k, v in state.items()}


def authors(state: State) -> dict[str, object]:
    """As ECA-Net's authors save it."""
    return {
        "epoch": 100,
        "arch": "eca",
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "best_prec1": np.float64(77.5),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }
