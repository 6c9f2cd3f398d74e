"""The build: checkpoint -> ONNX -> verified in a new process -> published."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from eca_service.contract import (
    CONTRACT_FILE,
    ENGINE_FILES,
    GOLDEN_FILE,
    Contract,
    ContractError,
    Verification,
    read,
)
from numpy.typing import NDArray

from eca_build import targets, verify
from eca_build.choose import fastest
from eca_build.describe import Outputs, contract_of, outputs_of
from eca_build.engine import Engine, Maker
from eca_build.errors import BuildError
from eca_build.export import reference
from eca_build.inputs import Inputs, Options, gather
from eca_build.provenance import sha256
from eca_build.publish import (
    CONFIG_FILE,
    LABELS_FILE,
    check,
    publish,
    require_utf8,
    require_writable,
    restore,
    staging,
    versions,
)
from eca_build.targets import Variant, Wish
from eca_build.triton_config import config


@dataclass(frozen=True)
class Built:
    """A published version; `changed` is false where the repository already held the result of the same inputs.

    `recipe_beside` is as in `inputs.Inputs`. `restored` are the model's files that were gone and are written again.
    """

    folder: Path
    contract: Contract
    changed: bool
    recipe_beside: bool
    restored: tuple[str, ...] = ()


def steps(wish: Wish) -> int:
    """How many steps a build takes that is not refused."""
    count = len(targets.variants(wish))
    return 4 + 2 * count + (count > 1)


def compile_checkpoint(
    options: Options, step: Callable[[str], None], note: Callable[[str], None] = lambda _: None
) -> Built:
    """Builds, verifies and publishes one version; `step` is told the name of each step as it begins, `note` what else
    its log should say.

    Raises BuildError, with nothing published, for everything that can be wrong with the inputs or the result.
    """
    require_utf8(options.repository)
    step("read checkpoint and images")
    inputs = gather(options)
    network, home = inputs.checkpoint.network, options.repository / inputs.name
    outputs = outputs_of(inputs)
    files = {CONFIG_FILE: _config(inputs, outputs), LABELS_FILE: "\n".join(inputs.labels) + "\n"}
    with suppress(OSError):  # where nothing is to be done, a repository may be read-only, or be built into by others
        newest, same = published(options, inputs)
        if same and all((home / name).exists() for name in files):
            check(home, files)
            return Built(newest, same, changed=False, recipe_beside=inputs.recipe_beside)
    step("wait for other builds")
    with staging(options.repository, note) as staged:
        newest, same = published(options, inputs)
        version = int(newest.name) + 1
        restored = restore(staged, home, files) if same else ()
        check(home, files)  # before anything is built
        if same:
            return Built(newest, same, changed=False, recipe_beside=inputs.recipe_beside, restored=restored)
        require_writable(home)
        scratch, trials = staged / "scratch", staged / "trials"
        scratch.mkdir()
        trials.mkdir()  # on the repository's file system, so that publishing is a rename
        step("ask the network itself")
        pixels = torch.from_numpy(inputs.sample)
        expected = reference(network, inputs.recipe, pixels).numpy()
        verify.require_finite(expected)
        maker = Maker(network, inputs.recipe, scratch, inputs.sample, inputs.calibration, options.wish.expose_gates)

        @cache
        def rounding() -> float:
            exact = reference(copy.deepcopy(network).double(), inputs.recipe, pixels).numpy()
            return verify.rounding(expected, exact)

        def figures_of(variant: Variant, engine: Engine) -> Verification:
            return compared(inputs, expected, variant, engine, rounding)

        chosen, choice = fastest(inputs.variants, maker, trials, figures_of, inputs.sample, step, note)
        step("publish")
        made = chosen.home.rename(staged / str(version))
        shutil.rmtree(scratch)
        shutil.rmtree(trials)
        contract = contract_of(inputs, outputs, version, chosen, choice, made)
        (made / CONTRACT_FILE).write_text(contract.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for file_name, text in files.items():
            (staged / file_name).write_text(text, encoding="utf-8")
        folder = publish(staged, options.repository, inputs.name, version)
    return Built(folder, contract, changed=True, recipe_beside=inputs.recipe_beside)


def published(options: Options, inputs: Inputs) -> tuple[Path, Contract | None]:
    """The folder of the model's newest version, 0 where there is none, and its contract where it is of this build.

    Raises BuildError as `require_same_network` unless the model's name was given.
    """
    newest = options.repository / inputs.name / str((versions(options.repository, inputs.name) or [0])[-1])
    if not options.name:
        require_same_network(newest, inputs)
    return newest, unchanged(newest, inputs.key)


def require_same_network(newest: Path, inputs: Inputs) -> None:
    """BuildError where the version in `newest` is of another network: by its file's name alone nobody meant that."""
    try:
        served = read(newest)
    except ContractError:
        return
    spec = inputs.checkpoint.spec
    if (served.architecture, served.attention) != (spec.arch, spec.attention):
        raise BuildError(
            f"{newest} is {served.architecture} with attention {served.attention}, and {inputs.checkpoint.path} would "
            f"follow it as {spec.arch} with attention {spec.attention}; give it a --name of its own, or --name "
            f"{inputs.name} if that is meant"
        )


def unchanged(folder: Path, key: str) -> Contract | None:
    """The contract of a published version where it is of the build `key` and its files are those that it names.

    None for any other: beside what cannot be read or was overwritten, a sound version is published.
    """
    try:
        contract = read(folder)
        if contract.build_key != key:
            return None
        found = sha256(folder / ENGINE_FILES[contract.engine]), sha256(folder / GOLDEN_FILE)
    except (ContractError, OSError):
        return None
    return contract if found == (contract.engine_sha256, contract.golden.sha256) else None


def compared(
    inputs: Inputs,
    expected: NDArray[np.float32],
    variant: Variant,
    engine: Engine,
    rounding: Callable[[], float],
) -> Verification:
    """The worst of the figures of an engine's answers, each against `expected` [N, K], the network's own.

    `rounding` is `verify.rounding` of them, asked for only where it decides. Raises BuildError as `verify.compare`.
    """
    gate = targets.gate(variant, inputs.random)
    told = f"{inputs.source}; {engine.verified}" if engine.verified else inputs.source

    def figures_of(got: NDArray[np.float32]) -> Verification:
        try:
            return verify.compare(expected, got, gate.largest, gate.agreement, told, inputs.classes)
        except BuildError:
            if gate.apart:
                return verify.compare(expected, got, gate.apart, targets.ACCURACY.agreement, told, inputs.classes)
            tolerance = min(gate.golden, rounding()) if gate.rounded else 0.0
            if tolerance <= gate.largest:
                raise
            return verify.compare(expected, got, tolerance, gate.agreement, told, inputs.classes)

    return max(map(figures_of, engine.answers), key=lambda one: one.largest_difference)


def _config(inputs: Inputs, outputs: Outputs) -> str:
    return config(
        name=inputs.name,
        engine=inputs.wish.target,
        max_batch=inputs.wish.max_batch,
        crop=inputs.recipe.crop,
        classes=inputs.checkpoint.spec.classes,
        features_shape=outputs.features_shape,
        gates=outputs.gates,
    )
