"""A build is skipped where it would give what is there, and refused before it takes time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from eca_build import inductor, inputs, tensorrt_rtx
from eca_build.cli import main
from eca_build.compile import Built, compile_checkpoint
from eca_build.errors import BuildError
from eca_build.export import Served
from eca_build.inputs import Options, default_name, gather
from eca_build.targets import TargetName, Variant, Wish

DEMO = Path(__file__).parents[2] / "build" / "demo"
WEIGHTS = DEMO / "resnet14-eca.safetensors"
LABELS = DEMO / "labels.txt"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The demo network, published."""
    options = Options(WEIGHTS, tmp_path_factory.mktemp("built") / "models", name="m", labels=LABELS)
    return compile_checkpoint(options, lambda _: None)


@pytest.fixture
def options(built: Built, tmp_path: Path) -> Options:
    """The same build again, in a repository of the test's own."""
    shutil.copytree(built.folder.parents[1], tmp_path / "models")
    return Options(WEIGHTS, tmp_path / "models", name="m", labels=LABELS)


def test_the_same_again_is_not_built(options: Options) -> None:
    steps: list[str] = []
    again = compile_checkpoint(options, steps.append)
    assert (again.changed, again.contract.version) == (False, 1)
    assert steps == ["read checkpoint and images"]


def test_the_same_again_needs_nothing_written(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that is mounted read-only was refused, and another build waited for, though nothing was to do."""

    def refuse(*_: object, **__: object) -> None:  # tests may run as root, who may write anywhere
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert not compile_checkpoint(options, lambda _: None).changed
    with pytest.raises(BuildError, match=r"the model repository .* cannot be written"):
        compile_checkpoint(replace(options, preprocessing={"resize": 40}), lambda _: None)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.onnx").unlink(),
        lambda folder: (folder / "model.onnx").write_bytes(b"another"),
        lambda folder: (folder / "golden.npy").write_bytes(b"another"),
    ],
    ids=["engine gone", "engine overwritten", "golden images overwritten"],
)
def test_what_was_damaged_is_built_again(options: Options, damage: Callable[[Path], object]) -> None:
    damage(options.repository / "m" / "1")
    again = compile_checkpoint(options, lambda _: None)
    assert (again.changed, again.contract.version) == (True, 2)
    assert not compile_checkpoint(options, lambda _: None).changed


@pytest.mark.parametrize("gone", [["config.pbtxt"], ["labels.txt"], ["config.pbtxt", "labels.txt"]])
def test_a_model_s_file_that_is_gone_is_written_again(options: Options, gone: list[str]) -> None:
    """Without it the model cannot be served, however sound its version is."""
    home = options.repository / "m"
    before = [(home / name).read_bytes() for name in gone]
    for name in gone:
        (home / name).unlink()
    asked = ["compile", str(WEIGHTS), "--name", "m", "--labels", str(LABELS), "--repository", str(options.repository)]
    done = CliRunner().invoke(main, asked)
    assert (done.exit_code, f"m/1: {' and '.join(gone)} written again, nothing else" in done.output) == (0, True), done
    assert [(home / name).read_bytes() for name in gone] == before
    assert "m/1: nothing changed since it was built" in CliRunner().invoke(main, asked).output


def test_a_model_served_with_other_tensors_than_were_built_is_told(options: Options) -> None:
    config = options.repository / "m" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 32", "max_batch_size: 4"))
    with pytest.raises(BuildError, match=r"the new version's config\.pbtxt differs from the one that m is served with"):
        compile_checkpoint(options, lambda _: None)


def test_another_network_s_file_of_the_same_name_is_not_the_next_version(options: Options, tmp_path: Path) -> None:
    """`model_best.pth.tar` is what every training writes: the running service would take the other network over."""
    (tmp_path / "m").mkdir()
    other = tmp_path / "m" / "model_best.safetensors"
    shutil.copy(DEMO / "resnet14-se.safetensors", other)
    unnamed = replace(options, checkpoint=other, name=None)
    sentence = r"m/1 is resnet14_cifar with attention eca, and .* as resnet14_cifar with attention se; give it a --name"
    with pytest.raises(BuildError, match=sentence):
        compile_checkpoint(unnamed, lambda _: None)
    assert compile_checkpoint(replace(unnamed, name="m"), lambda _: None).contract.version == 2


@pytest.mark.parametrize(
    ("change", "file"),
    [
        ({"wish": Wish(max_batch=4)}, "config.pbtxt"),
        ({"wish": Wish(expose_gates=True)}, "config.pbtxt"),
        ({"preprocessing": {"resize": 40, "crop": 40}}, "config.pbtxt"),
        ({"labels": None}, "labels.txt"),
    ],
)
def test_other_tensors_are_refused_before_anything_is_built(
    options: Options, change: dict[str, object], file: str
) -> None:
    steps: list[str] = []
    with pytest.raises(BuildError, match=f"the new version's {file} differs .* another --name"):
        compile_checkpoint(replace(options, **change), steps.append)  # type: ignore[arg-type]
    assert steps == ["read checkpoint and images", "wait for other builds"]


@pytest.mark.parametrize(("folder", "name"), [("models/m", "m"), ("models", "another")])
def test_a_folder_that_may_not_be_written_is_told_before_anything_is_built(
    options: Options, folder: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where root built before, in a container; what has not changed needs nothing written."""
    place, steps = options.repository.parent / folder, list[str]()
    # tests may run as root, who may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: path != place)
    compile_checkpoint(options, lambda _: None)
    with pytest.raises(BuildError, match=f"^{place} cannot be written by the account that builds"):
        compile_checkpoint(replace(options, name=name, preprocessing={"resize": 40}), steps.append)
    assert steps == ["read checkpoint and images", "wait for other builds"]


@pytest.mark.parametrize("name", ["a/b", "my net (1)", "../m", ".m", "m\n", "m" * 101])
def test_a_name_that_cannot_be_is_refused_first(tmp_path: Path, name: str) -> None:
    with pytest.raises(BuildError, match=r"cannot be called .*; give it a --name of"):
        compile_checkpoint(Options(tmp_path / "absent.pth", tmp_path / "models", name=name), lambda _: None)
    assert not (tmp_path / "models").exists()


def test_a_file_s_name_that_cannot_be_a_model_s(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"called 'my net \(1\)'; give it a --name"):
        gather(Options(tmp_path / "my net (1).safetensors", tmp_path))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("cats/mine.pth.tar", "mine"),
        ("cats/mine.bin", "mine"),
        ("cats/model_best.pth.tar", "cats"),
        ("cats/checkpoint.pth.tar", "cats"),
        ("cats/best.pt", "cats"),
        ("cats/last.ckpt", "cats"),
        ("/model_best.pth.tar", "model_best"),
        ("cats.v2/model.safetensors", "cats.v2"),
        ("cats/pytorch_model.bin", "cats"),
        ("cats/dogs/../model.pth", "cats"),
        ("snapshots/cats/model.pth", "cats"),
        ("models--timm--ecaresnet26t.ra2_in1k/snapshots/b50d3a9/model.safetensors", "ecaresnet26t.ra2_in1k"),
        ("models--gpt2/snapshots/b50d3a9/model.safetensors", "gpt2"),
    ],
)
def test_where_every_checkpoint_is_called_so_the_folder_names_the_model(tmp_path: Path, file: str, name: str) -> None:
    assert default_name(tmp_path / file) == name


def test_a_checkpoint_without_a_name_is_called_as_the_folder_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cats").mkdir()
    monkeypatch.chdir(tmp_path / "cats")
    assert default_name(Path("model.safetensors")) == "cats"


def test_images_sorted_by_label_later_are_another_build(tmp_path: Path) -> None:
    (tmp_path / "unsorted").mkdir()
    shutil.copy(DEMO / "images" / "cat-1.jpg", tmp_path / "unsorted" / "1.jpg")
    (tmp_path / "sorted" / "cat").mkdir(parents=True)
    shutil.copy(DEMO / "images" / "cat-1.jpg", tmp_path / "sorted" / "cat" / "1.jpg")
    asked = Options(WEIGHTS, tmp_path, labels=LABELS)
    unsorted, by_label = (gather(replace(asked, images=tmp_path / name)) for name in ("unsorted", "sorted"))
    assert (unsorted.sample == by_label.sample).all()
    assert unsorted.key != by_label.key


def test_a_folder_of_images_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DEMO / "images")
    for folder in (Path(), DEMO / "images", Path("../images/")):
        assert inputs.called(folder) == "images/"


def test_a_folder_of_images_in_another_encoding(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\xfcr"))
    shutil.copytree(DEMO / "images", folder)
    built = compile_checkpoint(Options(WEIGHTS, tmp_path / "models", images=folder), lambda _: None)
    assert built.contract.verification.source == "f\ufffdr/"


def test_a_repository_in_another_encoding_is_refused_at_once(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/rep\xfc"))
    steps: list[str] = []
    with pytest.raises(BuildError, match="has a name that is not in UTF-8; rename it or give another"):
        compile_checkpoint(Options(WEIGHTS, folder / "models"), steps.append)
    assert (steps, list(tmp_path.iterdir())) == ([], [])


def test_an_upgrade_that_changes_the_build_builds_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Options(WEIGHTS, Path("models"), labels=LABELS)
    before = gather(asked).key
    assert gather(asked).key == before
    monkeypatch.setattr(inputs, "code_sha256", lambda: "another")
    assert gather(asked).key != before


def test_what_compiled_engines_depend_on_is_in_the_key() -> None:
    def tools_of(target: TargetName) -> dict[str, str]:
        return inputs.tools_of([Variant(target, None, "fp32", "plain", 8)])

    plain = tools_of("onnx")
    assert set(plain) == {"python", "torch", "onnx", "onnxscript", "onnxruntime"}
    assert tools_of("inductor") == plain | inductor.tools()
    assert inductor.tools().keys() & {"instructions", "gpu"}
    assert tools_of("tensorrt-rtx") == plain | tensorrt_rtx.tools()
    assert "kernels" in tensorrt_rtx.tools()


FULL = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB"


@pytest.mark.parametrize(
    ("name", "said", "sentence"),
    [
        (
            "get_device_capability",
            "CUDA error: device busy\nmore",
            "GPU, which cannot be used: CUDA error: device busy$",
        ),
        ("memory", FULL, "too little free memory for batches of 4; lower --max-batch, or end what else"),
        ("memory", "CUDA error: unspecified\nmore", "could not build the package: CUDA error: unspecified$"),
    ],
)
def test_a_gpu_that_fails_is_a_sentence_and_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str, sentence: str
) -> None:
    """Where PyTorch says that there is one, and raises at the first use or with the weights."""

    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError(said) if said == FULL else RuntimeError(said)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    if name == "memory":
        monkeypatch.setattr(Served, "to", fails)
    else:
        monkeypatch.setattr(torch.cuda, name, fails)
    options = Options(WEIGHTS, tmp_path / "models", labels=LABELS, wish=Wish("inductor", max_batch=4))
    with pytest.raises(BuildError, match=sentence):
        compile_checkpoint(options, lambda _: None)
    assert not list(tmp_path.rglob("models/*"))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (f"Traceback\ntorch.OutOfMemoryError: {FULL}\n", "the GPU has too little free memory for batches of 4;"),
        ("Traceback\nRuntimeError: other\n", "RuntimeError: other"),
    ],
)
def test_a_compiler_s_process_that_lacks_memory_is_a_sentence(said: str, reason: str) -> None:
    assert inductor._reason(said, 1, 4).startswith(reason)


def test_the_locale_does_not_matter(tmp_path: Path) -> None:
    labels = LABELS.read_text().replace("bird", "V\u00f6gel")
    (tmp_path / "labels.txt").write_text(labels, "utf-8")
    asked = ["compile", str(WEIGHTS), "--name", "m", "--labels", "labels.txt", "--repository", "models"]
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", "from eca_build.cli import main; main()", *asked]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models" / "m" / "labels.txt").read_text("utf-8") == labels


def test_an_output_that_is_full_is_a_sentence() -> None:
    command = [sys.executable, "-c", "from eca_build.cli import main; main()", "archs"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    told = "eca-build: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, told)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")]
)
def test_too_little_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    """As under `ulimit -v`, or for more images than it holds."""

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("eca_build.compile.compile_checkpoint", fails)
    done = CliRunner().invoke(main, ["compile", str(WEIGHTS), "--repository", str(tmp_path / "models")])
    assert (done.exit_code, "the memory does not suffice; give fewer --most-images" in done.output) == (2, True)


def test_on_a_terminal_the_last_sentence_has_a_line_of_its_own(options: Options) -> None:
    """The progress bar before it has no end of line."""
    asked = ["compile", str(WEIGHTS), "--name", "m", "--labels", str(LABELS), "--repository", str(options.repository)]
    command = [sys.executable, "-c", "from eca_build.cli import main; main()", *asked]
    terminal, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    with subprocess.Popen(command, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        with open(terminal, "rb") as screen, contextlib.suppress(OSError):  # EIO when nobody writes any more
            seen = b""
            while part := os.read(screen.fileno(), 4096):
                seen += part
    assert process.returncode == 0, seen
    before, last = seen.decode().rstrip("\r\n").rsplit("\r", 1)
    assert f"{WEIGHTS.name}:   0%" in before
    assert last == f"{options.repository / 'm' / '1'}: nothing changed since it was built"


def test_checkpoints_of_one_name_are_not_versions_of_one_model(tmp_path: Path) -> None:
    files = [tmp_path / "first" / "mine.pth", tmp_path / "second" / "mine.safetensors"]
    done = CliRunner().invoke(main, ["compile", *map(str, files), "--repository", str(tmp_path / "models")])
    assert (done.exit_code, "would get the same model name" in done.output) == (2, True), done.output


def test_the_best_and_the_last_of_one_training_are_two_models(tmp_path: Path) -> None:
    """Both lie in its folder, whose every file Compose builds."""
    run = tmp_path / "run"
    run.mkdir()
    files = [run / name for name in ("model_best.safetensors", "checkpoint.safetensors", "mine.safetensors")]
    for file in files:
        shutil.copy(WEIGHTS, file)
    done = CliRunner().invoke(main, ["compile", *map(str, files), "--repository", str(tmp_path / "models")])
    assert done.exit_code == 0, done.output
    built = {folder.name for folder in (tmp_path / "models").iterdir()}
    assert built == {"run-model_best", "run-checkpoint", "mine"}


def test_of_several_checkpoints_the_one_that_fails_is_named(tmp_path: Path) -> None:
    """The sentence was of the labels alone, whichever checkpoint they do not fit."""
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    for count in (2, 1):
        files = [tmp_path / f"{index}.safetensors" for index in range(count)]
        for file in files:
            shutil.copy(WEIGHTS, file)
        asked = ["compile", *map(str, files), "--labels", str(tmp_path / "two.txt")]
        done = CliRunner().invoke(main, [*asked, "--repository", str(tmp_path / "models")])
        named = f"eca-build: {files[0]}: " if count > 1 else "eca-build: "
        assert done.exit_code == 2
        assert f"{named}{tmp_path / 'two.txt'} has 2 labels" in done.output, done.output
