"""Which class is meant by a number or a name, and how many classes are wanted."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from eca_service.contract import Contract
from eca_service.errors import ServiceError
from eca_service.numerals import whole

TOP_K = 5


def top_k_of(given: object, contract: Contract) -> int:
    """How many classes are wanted: where the request does not say 5, or all of fewer.

    Raises bad_parameter for what is no whole number, or not 1 to the number of classes.
    """
    if given is None:
        return min(TOP_K, contract.classes)
    if isinstance(given, str):
        given = given if (number := whole(given)) is None else number
    if not isinstance(given, int) or isinstance(given, bool):
        raise ServiceError("bad_parameter", f"top_k is {str(given)[:20]!r}, not a whole number")
    if not 1 <= given <= contract.classes:
        raise ServiceError("bad_parameter", f"top_k is {given}, {contract.name} has {contract.classes} classes")
    return given


def class_index(labels: Sequence[str], wanted: str, model: str) -> int:
    """The class that is named by its index or its label, or by one of the names that a label lists.

    Raises bad_parameter where there is none or more than one; the nearest labels are offered.
    """
    number = whole(wanted)
    if number is not None and number < len(labels):
        return number
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
