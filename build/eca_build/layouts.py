"""Key names of other code bases, turned into ours (torchvision's, with `attention` for the attention module)."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from eca_build.errors import BuildError
from eca_build.networks.mobilenetv2 import STAGES

State = dict[str, Tensor]
# CBAM's parts in its authors' code (github.com/Jongchan/attention-module), in timm, and in ports named `ca` and `sa`.
CBAM = (
    (r"\.cbam\.ChannelGate\.mlp\.1\.", ".attention.fc1."),
    (r"\.cbam\.ChannelGate\.mlp\.3\.", ".attention.fc2."),
    (r"\.cbam\.SpatialGate\.spatial\.(conv|bn)\.", r".attention.spatial.\1."),
    (r"\.se\.channel\.", ".attention."),
    (r"\.se\.spatial\.conv\.(conv|bn)\.", r".attention.spatial.\1."),
    (r"\.ca\.fc\.0\.", ".attention.fc1."),
    (r"\.ca\.fc\.2\.", ".attention.fc2."),
    (r"\.ca\.(fc[12])\.", r".attention.\1."),
    (r"\.sa\.conv1\.", ".attention.spatial.conv."),
)
# The classifier's layers: those who train a network for classes of their own put it into a sequence, or take it out.
# Ports of the CIFAR ResNets call it `linear`, and who gives it a head of its own `head.fc`.
CLASSIFIER = re.compile(r"(fc|linear|head\.fc|classifier)(?:\.\d+)?\.(weight|bias)")
OUR_CLASSIFIER = {"linear": "fc", "head.fc": "fc", "classifier": "classifier.1"}
# ECA-Net's authors put the attention of a MobileNetV2's block last in its sequence, behind the projection's batch norm.
LAST_IN_SEQUENCE = re.compile(r"(features\.\d+)\.conv\.[34]\.((?:conv|fc)\..+)")

# What PyTorch keeps in place of a weight that it computes anew at each step, as by a mask or a norm of its own.
COMPUTED = re.compile(r"\.\w+_(orig|mask)$|\.parametrizations\.\w+\.original\d*")


def canonical(state: State) -> tuple[State, str]:
    """The same tensors under our names, and where the names come from; keys that are not known stay as they are.

    Raises BuildError where two would have one name, and where a weight is computed from others.
    """
    if computed := next((key for key in state if COMPUTED.search(key)), None):
        raise BuildError(
            f"the checkpoint has {computed}, from which PyTorch computes a weight; call torch.nn.utils.prune.remove or "
            "parametrize.remove_parametrizations for it, and save the state_dict() then"
        )
    state = _classifier(state)
    if any(".attention." in key for key in state):
        return state, "eca-serve"
    if any(LAST_IN_SEQUENCE.fullmatch(key) for key in state):
        moved: State = {}
        for key, value in state.items():
            _put(moved, LAST_IN_SEQUENCE.sub(r"\1.attention.\2", key), value)
        return _attention(moved), "authors"
    if "conv_stem.weight" in state:
        return _attention(_timm_mobilenet(state)), "timm"
    if "features.1.conv.3.weight" in state:
        return _old_mobilenet(state), "authors"
    for part, origin in ((".cbam.", "authors"), (".se.channel.", "timm"), (".sa.conv1.", "port")):
        if any(part in key for key in state):
            return _cbam(state, swapped=part == ".cbam."), origin
    if any(".eca." in key for key in state):
        return _attention(state), "authors"
    if any(re.search(r"\.se\.(conv|fc1)\.", key) for key in state):
        return _attention(state), "timm"
    return _attention(state), "timm" if "conv1.0.weight" in state else "torchvision"


def _put(renamed: State, name: str, value: Tensor) -> None:
    """Under that name, which must be free: one of the two would be lost, and what is left be taken for the network."""
    if name in renamed:
        raise BuildError(
            f"the checkpoint has two tensors that would both be {name} here; that network is not supported"
        )
    renamed[name] = value


def _classifier(state: State) -> State:
    """The one linear layer is `fc`, or a MobileNetV2's `classifier.1`, wherever in a sequence it was."""
    found = {key: match for key in state if (match := CLASSIFIER.fullmatch(key))}
    layers = [key.rpartition(".")[0] for key, match in found.items() if match[2] == "weight"]
    if len(layers) > 1:
        raise BuildError(
            f"the checkpoint has a classifier of several layers with weights, {', '.join(layers)}; the networks here "
            "end in one linear layer"
        )
    names = {key: f"{OUR_CLASSIFIER.get(match[1], match[1])}.{match[2]}" for key, match in found.items()}
    renamed: State = {}
    for key, value in state.items():
        _put(renamed, names.get(key, key), value)
    return renamed


def _attention(state: State) -> State:
    """`eca.conv`, `se.conv`, `se.fc1`, `se.fc.0` become `attention...`; 1x1 convolutions become linear layers.

    ECA-NS is a convolution with a group for each channel in its authors' code.
    """
    renamed: State = {}
    for key, value in state.items():
        name = re.sub(r"\.(eca|se)\.", ".attention.", key)
        name = name.replace(".attention.fc.0.", ".attention.fc1.").replace(".attention.fc.2.", ".attention.fc2.")
        if re.search(r"\.attention\.fc[12]\.weight$", name) and value.ndim == 4:
            value = value.flatten(1)
        if name.endswith(".attention.conv.weight") and value.ndim == 3 and len(value) > 1:
            name, value = name.replace(".conv.weight", ".taps"), value.flatten(1)
        _put(renamed, name, value)
    return renamed


def _cbam(state: State, swapped: bool) -> State:
    """CBAM, the batch norm of its 7x7 convolution folded into that; `swapped`: the maximum comes before the mean."""
    renamed: State = {}
    for key, value in state.items():
        for pattern, ours in CBAM:
            key = re.sub(pattern, ours, key)
        _put(renamed, key, value)
    for key in [key for key in renamed if key.endswith(".attention.spatial.conv.weight")]:
        site = key.removesuffix(".conv.weight")
        weight, bias = renamed.pop(key), torch.zeros(1)
        norm = [renamed.pop(f"{site}.bn.{part}", None) for part in ("weight", "bias", "running_mean", "running_var")]
        gain, offset, mean, variance = norm
        if gain is not None and offset is not None and mean is not None and variance is not None:
            if any(part.shape != (1,) for part in (gain, offset, mean, variance)):
                raise BuildError(f"the checkpoint has {site}.bn of other shapes than CBAM's [1]; that is not supported")
            scale = gain / (variance.float() + 1e-5).sqrt()
            weight, bias = weight * scale.view(-1, 1, 1, 1), offset - mean * scale
        _put(renamed, f"{site}.weight", weight.flip(1) if swapped else weight)
        _put(renamed, f"{site}.bias", bias)
    return _attention(renamed)


def _old_mobilenet(state: State) -> State:
    """Torchvision's older flat layout: conv, BN, ReLU6 thrice over in one sequence, attention behind the last BN."""
    renamed: State = {}
    for key, value in state.items():
        found = re.fullmatch(r"features\.(\d+)\.conv\.(\d+)\.(.+)", key)
        if found is None:
            _put(renamed, key, value)
            continue
        block, index, rest = int(found[1]), int(found[2]), found[3]
        expanded = block != 1  # the first block has no expansion
        last = 8 if expanded else 5
        if index == last:
            name = f"attention.{rest}"
        elif index >= last - 2:
            name = f"conv.{index - last + 2 + (2 if expanded else 1)}.{rest}"
        else:
            name = f"conv.{index // 3}.{index % 3}.{rest}"
        _put(renamed, f"features.{block}.{name}", value)
    return _attention(renamed)


def _timm_mobilenet(state: State) -> State:
    """timm's `blocks.stage.index` naming; a block that the network here has not keeps its name, and is told by it."""
    depths = [depth for *_, depth in STAGES]
    first = [1 + sum(depths[:stage]) for stage in range(len(depths))]
    renamed: State = {}
    for key, value in state.items():
        found = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(\w+)\.(.+)", key)
        if found is None:
            for theirs, ours in (
                ("conv_stem.", "features.0.0."),
                ("bn1.", "features.0.1."),
                ("conv_head.", "features.18.0."),
                ("bn2.", "features.18.1."),
            ):
                if key.startswith(theirs):
                    key = ours + key.removeprefix(theirs)
                    break
            _put(renamed, key, value)
            continue
        if found[3] == "se":
            raise BuildError(
                f"the checkpoint has {key}: timm's EfficientNets, MobileNetV3s and MobileNetV2s have their attention "
                "behind the depthwise convolution, the networks here have it behind the projection, so the answers "
                "would be others; it cannot be served"
            )
        stage, index, part, rest = int(found[1]), int(found[2]), found[3], found[4]
        if stage >= len(depths) or index >= depths[stage]:
            _put(renamed, key, value)
            continue
        names = {"conv_pw": "conv.0.0", "bn1": "conv.0.1", "conv_dw": "conv.1.0", "bn2": "conv.1.1"}
        names |= {"conv_pwl": "conv.2", "bn3": "conv.3"}
        if stage == 0:
            names = {"conv_dw": "conv.0.0", "bn1": "conv.0.1", "conv_pw": "conv.1", "bn2": "conv.2"}
        _put(renamed, f"features.{first[stage] + index}.{names.get(part, part)}.{rest}", value)
    return renamed
