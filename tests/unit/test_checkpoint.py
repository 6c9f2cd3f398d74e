"""Checkpoint files of every kind are read as data, and what cannot be is refused in a sentence."""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import warnings
import zipfile
from collections import defaultdict
from datetime import datetime, timedelta, timezone
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from eca_build.checkpoint import load, strip
from eca_build.errors import BuildError
from eca_build.layouts import canonical
from eca_build.networks import create, with_formula
from safetensors.torch import save_file

from tests.unit.checkpoints import ECA18, State, authors, state_of

THOP = ("total_ops", "total_params")  # what it leaves in every layer that it counts


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def save(path: Path, **changes: object) -> Path:
    torch.save({**state_of(ECA18), **changes}, path)
    return path


@pytest.mark.parametrize(
    ("beside", "name"),
    [
        (Evil(), r"(posix|os)\.system"),
        (np.array([1, "a"], object), r"numpy\.dtypes\.ObjectDType"),
        (np.zeros(2, [("a", "i4")]), r"numpy\.dtypes\.VoidDType"),
    ],
    ids=["code", "objects", "records"],
)
def test_pickle_that_runs_code_is_refused_by_name(tmp_path: Path, beside: object, name: str) -> None:
    with pytest.raises(BuildError, match=rf"wants to run code \({name}\).*state_dict"):
        load(save(tmp_path / "m.pth", evil=beside))


@pytest.mark.parametrize(
    "beside",
    [
        {"best": [np.float64(1), np.float16(1), np.int32(1), np.uint8(1), np.bool_(True), np.str_("top-1")]},
        {"args": argparse.Namespace(lr=0.1, sizes=[3, 5], inner=argparse.Namespace(seed=0), data=Path("/data"))},
        {
            "seen": np.arange(6).reshape(2, 3),
            "names": np.array(["a", "b"]),
            "state": np.random.RandomState(0).get_state(),
        },
        {"out": PureWindowsPath("C:/runs/1")},
        {"history": defaultdict(list, {"loss": [0.3]}), "times": defaultdict(dict), "counts": defaultdict(int, a=1)},
        {"begun": datetime.now(timezone.utc), "took": timedelta(hours=1)},
    ],
)
def test_what_training_scripts_keep_beside_the_weights(tmp_path: Path, beside: dict[str, object]) -> None:
    torch.save({"model": state_of(ECA18), **beside}, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").spec == ECA18


def test_numbers_of_the_other_generation_of_numpy(tmp_path: Path) -> None:
    torch.save(authors(state_of(ECA18)), tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "m.pth").read_bytes()
    names = (b"cnumpy.core.multiarray\nscalar", b"cnumpy._core.multiarray\nscalar")
    assert any(name in content for name in names)
    for name in names:
        (tmp_path / "m.pth").write_bytes(re.sub(rb"cnumpy\._?core\.multiarray\nscalar", name, content))
        assert load(tmp_path / "m.pth").spec == ECA18


@pytest.mark.parametrize("wrap", ["state_dict_ema", "model_ema"])
def test_averages_are_taken_where_they_are_alone(tmp_path: Path, wrap: str) -> None:
    torch.save({wrap: state_of(ECA18), "epoch": 3}, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").spec == ECA18


@pytest.mark.parametrize("wrap", ["state_dict_ema", "model_ema"])
def test_beside_the_trained_weights_their_averages_are_not_taken(tmp_path: Path, wrap: str) -> None:
    state = state_of(ECA18)
    averages = {key: value + 1 for key, value in state.items()}
    torch.save({wrap: averages, "epoch": 3, wrap.replace("_ema", ""): state}, tmp_path / "m.pth")
    assert torch.equal(load(tmp_path / "m.pth").network.head.weight, state["fc.weight"])


@pytest.mark.parametrize("wrap", [None, "model_ema"])
def test_averages_as_pytorch_counts_them(tmp_path: Path, wrap: str | None) -> None:
    network = create(ECA18)
    state = torch.optim.swa_utils.AveragedModel(network).state_dict()
    torch.save({wrap: state} if wrap else state, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").spec == ECA18


def test_the_only_state_dict_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    state = state_of(ECA18)
    torch.save({"ema": state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").spec == ECA18
    torch.save({"student": state, "teacher": state}, tmp_path / "m.pth")
    with pytest.raises(BuildError, match=r"holds several state_dicts \(student, teacher\); save"):
        load(tmp_path / "m.pth")


def test_what_thop_counted_is_no_weight(tmp_path: Path) -> None:
    counts = {f"{name}{what}": torch.zeros(1) for name in ("", "layer1.0.conv1.") for what in THOP}
    torch.save(state_of(ECA18) | counts, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").spec == ECA18


def test_a_dict_that_holds_itself_is_a_sentence(tmp_path: Path) -> None:
    itself: dict[str, object] = {}
    itself["model"] = {"state_dict": itself}
    torch.save(itself, tmp_path / "m.pth")
    with pytest.raises(BuildError, match="holds no state_dict"):
        load(tmp_path / "m.pth")


def test_newer_protocols_of_pickle_are_not_called_damaged(tmp_path: Path) -> None:
    torch.save(state_of(ECA18), tmp_path / "m.pth", pickle_protocol=4)
    with pytest.raises(BuildError, match=r"protocol 4 or newer.*without pickle_protocol"):
        load(tmp_path / "m.pth")


@pytest.mark.parametrize("prefix", ["model.", "model_ema.module."])
def test_lightning_s_prefix(tmp_path: Path, prefix: str) -> None:
    """Averages too, where there is nothing else."""
    torch.save({"state_dict": {prefix + key: value for key, value in state_of(ECA18).items()}}, tmp_path / "m.ckpt")
    assert load(tmp_path / "m.ckpt").spec == ECA18


@pytest.mark.parametrize("name", ["model", "network"])
def test_what_lightning_modules_have_beside_their_network(tmp_path: Path, name: str) -> None:
    state = {f"{name}.{key}": value for key, value in state_of(ECA18).items()}
    beside: State = {"criterion.weight": torch.ones(7), "val_loss.weight": torch.ones(7)}
    beside |= {"val_metrics.accuracy.tp": torch.zeros(7, dtype=torch.long)}
    for average in ("model_ema", "ema_model", "ema"):
        beside |= {f"{average}.module.{key}": value + 1 for key, value in state_of(ECA18).items()}
    torch.save({"state_dict": state | beside}, tmp_path / "m.ckpt")
    found = load(tmp_path / "m.ckpt")
    assert found.spec == ECA18
    assert torch.equal(found.network.head.weight, state[f"{name}.fc.weight"])


@pytest.mark.parametrize("beside", ["teacher.fc.weight", "normalize.mean", "head.weight"])
def test_what_may_be_of_the_network_is_not_passed_over(tmp_path: Path, beside: str) -> None:
    state = {f"model.{key}": value for key, value in state_of(ECA18).items()}
    torch.save({"state_dict": state | {beside: torch.ones(7)}}, tmp_path / "m.ckpt")
    with pytest.raises(BuildError, match=f"not a network known here, its weights are in .*{beside.partition('.')[0]}"):
        load(tmp_path / "m.ckpt")


def test_a_file_that_is_written_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights would be of one epoch and its SHA-256 of the next, which then would not be built."""
    path = save(tmp_path / "m.pth")

    def trained_on(state: State) -> tuple[State, str]:
        save(path, **{"fc.bias": torch.ones(7)})
        return canonical(state)

    monkeypatch.setattr("eca_build.checkpoint.canonical", trained_on)
    with pytest.raises(BuildError, match=r"m\.pth changed while it was read; give a copy"):
        load(path)


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    state = state_of(ECA18)
    save_file(state, tmp_path / "m.pth")
    torch.save(state, tmp_path / "m.safetensors")
    assert load(tmp_path / "m.pth").spec == load(tmp_path / "m.safetensors").spec == ECA18


def test_a_name_in_another_encoding(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\xfcr"))
    folder.mkdir()
    save_file(state_of(ECA18), tmp_path / "m.safetensors")
    assert load((tmp_path / "m.safetensors").rename(folder / os.fsdecode(b"\xfc.safetensors"))).spec == ECA18
    assert load(save(folder / "m.pth")).spec == ECA18


def test_a_name_in_another_encoding_is_shown_as_it_is(tmp_path: Path) -> None:
    file = os.fsdecode(os.fsencode(tmp_path) + b"/f\xfcr.pth")
    torch.save(state_of(with_formula("resnet14_cifar", "eca", 10)), file)
    command = [sys.executable, "-c", "from eca_build.cli import main; main()", "inspect", file]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}  # as with a locale other than C
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, os.fsencode(file) in done.stdout) == (0, True), done.stderr


def test_other_kinds_of_files(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "m.pt")
    with pytest.raises(BuildError, match=r"m\.pt is a TorchScript program; save its state_dict"):
        load(tmp_path / "m.pt")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(BuildError, match="is not a regular file"):
            load(path)
    with (tmp_path / "large.pth").open("wb") as file:
        file.truncate(300 << 30)  # all holes
    with pytest.raises(BuildError, match="damaged or not a checkpoint"):
        load(tmp_path / "large.pth")


def test_damaged_files(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.pth").read_bytes()
    for name, content, sentence in (
        ("cut.pth", whole[: len(whole) // 2], "damaged"),
        ("empty.pth", b"", "is empty"),
        ("text.pth", b"hello there", "is text"),
        ("note.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "`git lfs pull` fetches"),
        ("cut.safetensors", b"\xff" * 40, "damaged"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BuildError, match=sentence):
            load(tmp_path / name)
    for missing in ("missing.pth", "x" * 300):
        with pytest.raises(BuildError, match="cannot be read"):
            load(tmp_path / missing)


def test_wherever_a_file_of_the_older_kind_is_cut_off_it_is_a_sentence(tmp_path: Path) -> None:
    """Within the numbers and keys of its pickle PyTorch raises errors of its own; half of a name is an unknown one."""
    path = tmp_path / "m.pth"
    torch.save({"epoch": 100_000, "lr": 0.1, "m": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for end in range(1, len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(BuildError, match=r"is damaged or not a checkpoint; copy it again|wants to run code"):
            load(path)
    key = re.findall(rb"(?<=X.\0\0\0)\d{6,}", whole)[-1]  # of a storage, in the list of those that the file holds
    at = whole.rindex(key)
    path.write_bytes(whole[:at] + bytes(key[:-1]) + b"x" + whole[at + len(key) :])
    with pytest.raises(BuildError, match="is damaged or not a checkpoint; copy it again"):
        load(path)


def test_a_small_file_that_asks_for_much_memory_is_refused(tmp_path: Path) -> None:
    whole, packed = save(tmp_path / "whole.pth"), tmp_path / "packed.pth"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    assert load(packed).spec == load(whole).spec, "packed as far as weights can be"
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/none", bytes(20 * packed.stat().st_size))
    with pytest.raises(BuildError, match=r"packed\.pth would be \d+ bytes when it is unpacked"):
        load(packed)


def test_tensors_that_share_what_they_hold_are_counted_each(tmp_path: Path) -> None:
    """As many as a small file can name would be copied one by one."""
    one = torch.zeros(1 << 20, dtype=torch.float16)
    with pytest.raises(BuildError, match=r"more\.\d+ has more values than the file holds"):
        load(save(tmp_path / "m.pth", **{f"more.{index}": one[:] for index in range(300)}))


def test_of_a_large_file_of_another_network_nothing_is_copied(tmp_path: Path) -> None:
    """It may be a language model's; what is not looked at of it is not even read."""
    path, most = tmp_path / "m.safetensors", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = 3 << 30
    header = json.dumps({"lm_head.weight": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # all holes
    with pytest.raises(BuildError, match="is not a network known here, its weights are in weight"):
        load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < most + (size >> 11)


def test_what_was_saved_on_a_gpu_is_read_without_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(save(tmp_path / "cpu.pth")) as source, zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name).replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0"))
    with zipfile.ZipFile(tmp_path / "m.pth") as archive:
        assert b"cuda:0" in archive.read("cpu/data.pkl")
    assert load(tmp_path / "m.pth").spec == ECA18


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layer1.0.bn1.bias": torch.tensor([float("nan")] + [0.0] * 63)}, r"layer1\.0\.bn1\.bias.*not finite"),
        ({"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, r"layer1\.0\.conv1\.weight has shape"),
        ({"layer1.0.bn1.weight": torch.ones(64, 1)}, r"bn1\.weight has shape \[64, 1\], resnet18 needs \[64\]"),
        ({"layer1.0.bn1.weight": torch.full((64,), 1e300, dtype=torch.float64)}, r"layer1\.0\.bn1\.weight.*not finite"),
        (
            {"layer1.0.bn1.weight": torch.ones(64, dtype=torch.float8_e4m3fn)},
            r"bn1\.weight is not a plain .*float8_e4m3fn",
        ),
        ({"layer1.0.bn1.weight": torch.ones(64, dtype=torch.complex64)}, "not a plain tensor of floats .complex64"),
        ({"layer1.0.bn1.weight": torch.ones(64, dtype=torch.int32)}, "not a plain tensor of floats .int32"),
        (
            {"layer1.0.relative_position_index": torch.ones(4, dtype=torch.int64)},
            r"not a network known .*_index of int64",
        ),
        ({"layer1.0.bn1.weight": torch.ones(64).to_sparse()}, "not a plain tensor of floats .float32, sparse_coo"),
        (
            {"layer1.0.bn1.weight": torch.ones(64, device="meta")},
            "not a plain tensor of floats .float32, strided, on meta",
        ),
        (
            {"fc.weight": torch.nested.nested_tensor([torch.ones(3), torch.ones(4)], layout=torch.jagged)},
            "not a plain tensor of floats .float32, nested",
        ),
        ({"fc.weight": torch.zeros(1).expand(1 << 36, 512)}, r"fc\.weight has more values than the file holds"),
        ({"conv1.weight": torch.zeros(())}, r"conv1\.weight has 0 axes"),
        ({"fc.weight": torch.zeros(0, 512), "fc.bias": torch.zeros(0)}, "classifier with no classes"),
        ({"fc.weight": torch.zeros(1, 512), "fc.bias": torch.zeros(1)}, "classifier of one class.*class 1 is then yes"),
        ({"fc.4.weight": torch.zeros(7, 7)}, r"a classifier of several layers with weights, fc, fc\.4"),
        ({"layer1.0.bn1.running_var": torch.tensor([-1.0] + [1.0] * 63)}, "negative variances"),
        ({"layer9.surprise": torch.zeros(1)}, r"has also layer9\.surprise;"),
        ({f"more.{n}": torch.zeros(1) for n in range(5)}, r"has also more\.0, more\.1, more\.2 and 2 more;"),
        ({"layer1.0.attention.conv.weight": torch.zeros(1, 1, 4)}, "kernel sizes are odd"),
    ],
)
def test_wrong_weights_name_the_key(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    with pytest.raises(BuildError, match=sentence):
        load(save(tmp_path / "m.pth", **change))


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "_orig_mod.module.", "model.backbone.module."])
def test_wrappers_leave_no_prefix_in_whichever_order_they_were_put_on(prefix: str) -> None:
    state = {f"{prefix}{key}": torch.zeros(1) for key in ("conv.weight", "module.weight", "bn.num_batches_tracked")}
    assert list(strip(state)) == ["conv.weight", "module.weight"]


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_a_part_that_was_wrapped_by_itself_keeps_its_name(tmp_path: Path, wrapper: str) -> None:
    state = {re.sub(r"^(layer\d)\.", rf"\1.{wrapper}.", key): value for key, value in state_of(ECA18).items()}
    torch.save(state, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").spec == ECA18


def test_a_file_that_the_memory_does_not_hold_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(300 << 20, dtype=torch.uint8)}, path)
    limited = (
        "import resource, sys; from pathlib import Path; from eca_build.checkpoint import read_torch;"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2); read_torch(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", limited, str(path)], capture_output=True, text=True, check=False)
    assert f"{path} is larger than the memory here" in done.stderr.splitlines()[-1]
