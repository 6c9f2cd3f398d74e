"""Prints what a Dockerfile lets pip install: requirements.py requirements [EXTRA...] | constraints.

`requirements` are pyproject.toml's dependencies and those of the extras, so that they make a layer of their own that
a change of our code leaves alone. `constraints` are the pins of constraints.txt without the packages that the base
image brings: NVIDIA's images have a torch and a TensorRT of their own, which must stay.
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(extras: list[str]) -> list[str]:
    """Requirement lines: the project's own and those of `extras`; KeyError for an extra that there is not."""
    import tomllib  # type: ignore[import-not-found]  # Python 3.11's, as the images' are

    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


def constraints() -> list[str]:
    """The lines of constraints.txt whose package is not installed here."""
    here = {canonical(found.metadata["Name"]) for found in distributions()}
    lines = Path("constraints.txt").read_text().splitlines()
    return [line for line in lines if canonical(line.partition("==")[0]) not in here]


if __name__ == "__main__":
    print("\n".join(constraints() if sys.argv[1] == "constraints" else requirements(sys.argv[2:])))
