"""Which class is meant by a number or a name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from eca_service.errors import ServiceError


def class_index(labels: Sequence[str], wanted: str, model: str) -> int:
    """The class that is named by its index or its label, or by one of the names that a label lists.

    Raises bad_parameter where there is none or more than one; the nearest labels are offered.
    """
    if wanted.isdecimal() and int(wanted) < len(labels):
        return int(wanted)
    sought = wanted.strip().casefold()
    folded = [label.casefold() for label in labels]
    found = [index for index, label in enumerate(folded) if label == sought]
    if not found:
        found = [i for i, label in enumerate(folded) if sought in (name.strip() for name in label.split(","))]
    if len(found) == 1:
        return found[0]
    if found:
        raise ServiceError("bad_parameter", f"class {wanted!r} is the label of {found}; give one of these numbers")
    near = difflib.get_close_matches(sought, folded, 3)
    offered = ", ".join(repr(labels[folded.index(label)]) for label in near) or repr(labels[0])
    raise ServiceError(
        "bad_parameter",
        f"{model} has no class {wanted!r}; give a label such as {offered}, or 0 to {len(labels) - 1}",
    )
