"""A version's files are those that the build wrote, or are named."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest
from eca_service.contract import ContractError, read
from eca_service.integrity import damage, for_callers

from tests.unit.test_contract import CONTRACT


def test_a_file_that_is_not_the_build_s_is_named(tmp_path: Path) -> None:
    engine, golden = tmp_path / "model.onnx", tmp_path / "golden.npy"
    engine.write_bytes(bytes(3 << 20))
    golden.write_bytes(b"images")
    contract = CONTRACT.model_copy(
        update={
            "engine_sha256": hashlib.sha256(engine.read_bytes()).hexdigest(),
            "golden": CONTRACT.golden.model_copy(update={"sha256": hashlib.sha256(b"images").hexdigest()}),
        }
    )
    assert damage(contract, tmp_path) is None
    golden.write_bytes(b"others")
    assert f"{golden} is not the file that the build wrote" in (damage(contract, tmp_path) or "")
    golden.write_bytes(b"images")
    with engine.open("r+b") as file:  # as long as before
        file.seek(2 << 20)
        file.write(b"\1")
    command = "eca-build compile CHECKPOINT --name m --target onnx --precision fp32 --attention eca"
    assert f"{engine} is not the file that the build wrote; build it again: `{command}" in (
        damage(contract, tmp_path) or ""
    )
    engine.unlink()
    assert f"{engine} cannot be read (No such file or directory)" in (damage(contract, tmp_path) or "")


def test_a_file_that_may_not_be_read_is_no_reason_to_build_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"engine")

    def refuse(*_: object) -> None:
        """Tests may run as root, who may read any."""
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    told = damage(CONTRACT, tmp_path)
    assert told == f"{tmp_path / 'model.onnx'} may not be read by the account that the service runs as"
    with pytest.raises(ContractError, match=r"contract\.json cannot be read: Permission denied$"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("/srv/our models/m/1/model.onnx cannot be read", "m/1/model.onnx cannot be read"),
        ("'/srv/our models/m/config.pbtxt' is gone", "'m/config.pbtxt' is gone"),
        ('Unable to read the model: "/models/repository/m/1/model.onnx"', 'Unable to read the model: "m/1/model.onnx"'),
        ("src/cpp/core.cpp:84: 3/4 of m/1 are golden", "src/cpp/core.cpp:84: 3/4 of m/1 are golden"),
    ],
)
def test_callers_are_not_told_where_the_repository_lies(told: str, shown: str) -> None:
    """Here it is in one place, on Triton's machine perhaps in another."""
    assert for_callers(told, Path("/srv/our models/m/1")) == shown
