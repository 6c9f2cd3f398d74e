"""Coverage-guided fuzzing of the inference protocol's parsers: `python -m tests.fuzz.parsers [-max_total_time=60]`.

Needs the extra `fuzz`. An error that is not the caller's ends it, and leaves the input in a file.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["eca_service"]):
    from eca_service.errors import ServiceError

    from tests.fuzz.inference_requests import parse_binary, parse_http, whole_requests


def one(data: bytes) -> None:
    """The first byte says which parser, the next two a number that it is told; the body follows."""
    which, number, body = data[:1], int.from_bytes(data[1:3], "little"), data[3:]
    try:
        if which == b"b":
            parse_binary(body, number)
        else:
            parse_http(body, str(number) if which == b"h" else None)
    except ServiceError as error:
        if error.kind.http >= 500:
            raise


def main() -> None:
    """Fuzzes from whole requests on."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (body, length) in enumerate(whole_requests()):
            head = b"j\0\0" if length is None else b"h" + int(length).to_bytes(2, "little")
            (Path(folder) / str(number)).write_bytes(head + body)
        (Path(folder) / "tensor").write_bytes(b"b\1\0" + (4).to_bytes(4, "little") + b"abcd")
        atheris.Setup([*sys.argv, folder, "-timeout=10"], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
