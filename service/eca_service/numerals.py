"""Numbers that callers write as text."""

from __future__ import annotations

MOST_DIGITS = 9  # int() takes its time over thousands of them, and refuses more than 4300


def whole(text: str) -> int | None:
    """The whole number that the text is, 0 to 999,999,999; None where it is none."""
    return int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else None
