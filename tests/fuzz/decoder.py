"""Coverage-guided fuzzing of the decoder: `python -m tests.fuzz.decoder [-max_total_time=60] [CORPUS]`, by libFuzzer.

Needs the extra `fuzz`. A crash, a hang or an error that is not the caller's ends it, and leaves the input in a file.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "eca_service"]):
    from eca_service.contract import Preprocessing
    from eca_service.errors import ServiceError
    from eca_service.imaging import decode
    from PIL import Image

    from tests.fuzz.mutations import whole_images

    Image.init()  # it imports its formats when they are needed, too late to be instrumented

RECIPE = Preprocessing(resize=40, crop=32)
MOST_PIXELS = 1_000_000


def one(data: bytes) -> None:
    """Decodes, in both ways; raises what is no caller's error, and where the ways differ."""
    outcomes = []
    for fast in (False, True):
        try:
            outcomes.append(str(decode(data, RECIPE, MOST_PIXELS, fast).pixels.shape))
        except ServiceError as error:
            if error.kind.http >= 500:
                raise
            outcomes.append(error.code)
    if outcomes[0] != outcomes[1]:
        raise AssertionError(outcomes)


def main() -> None:
    """Fuzzes from the whole images of `mutations` on."""
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(whole_images()):
            (Path(folder) / str(number)).write_bytes(data)
        atheris.Setup([*sys.argv, folder, "-max_len=65536", "-timeout=10"], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
