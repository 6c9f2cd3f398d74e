"""What was measured: rows by section, written after each, as JSON and as tables for MEASURED.md."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Row = dict[str, str | float | int]
BEGIN, END = "<!-- measure.py begins -->", "<!-- measure.py ends -->"


class Report:
    """Rows by section, each with one set of columns, kept in `folder` as measured.json and measured.md.

    With a `page` the tables go between its marks too. `failed` is what was tried and did not end well.
    """

    def __init__(self, folder: Path, environment: Row, page: Path | None = None) -> None:
        """Raises ValueError or OSError where the page cannot take the tables."""
        self.file = folder / "measured.json"
        self.page = page
        self.environment = environment
        self.sections: dict[str, list[Row]] = {}
        self.notes: list[str] = []
        self.failed: list[str] = []
        self.save()

    def rows(self, section: str) -> list[Row]:
        """Those of a section so far."""
        return self.sections.get(section, [])

    def add(self, section: str, row: Row) -> None:
        """Keeps a row, on disk too: a run that is cut off leaves what it had."""
        self.sections.setdefault(section, []).append(row)
        self.save()

    def note(self, text: str) -> None:
        """Keeps a sentence about what was not measured, or failed."""
        self.notes.append(text)
        self.save()

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Around what may end the process, or never end: it is among `failed`, on disk too, until it has ended well."""
        self.failed.append(what)
        self._write()
        yield
        self.failed.remove(what)

    def save(self) -> None:
        """Writes all files anew."""
        self._write()
        _replace(self.file.with_suffix(".md"), self.markdown())
        if self.page:
            self.write_into(self.page)

    def _write(self) -> None:
        names = ("environment", "sections", "notes", "failed")
        _replace(self.file, json.dumps({name: getattr(self, name) for name in names}, indent=1) + "\n")

    def reload(self) -> None:
        """Takes over what another process has written."""
        self.__dict__.update(json.loads(self.file.read_text()))

    def markdown(self) -> str:
        """All of it, as MEASURED.md has it."""
        lines = [", ".join(f"{key} {value}" for key, value in self.environment.items()) + ".", ""]
        for section, rows in self.sections.items():
            columns = list(dict.fromkeys(key for row in rows for key in row))
            lines += [f"### {section}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
            lines += [f"| {' | '.join(_text(row.get(column, '')) for column in columns)} |" for row in rows]
            lines.append("")
        if self.notes:
            lines += ["### Not measured", "", *(f"- {note}" for note in self.notes), ""]
        return "\n".join(lines)

    def write_into(self, page: Path) -> None:
        """Puts the tables between the marks of a page, in place of those of an earlier run."""
        text = page.read_text()
        if BEGIN not in text or END not in text:
            raise ValueError(f"{page} lacks the lines {BEGIN} and {END}, between which the tables go")
        before, rest = text.split(BEGIN, 1)
        after = rest.split(END, 1)[1]
        _replace(page, f"{before}{BEGIN}\n{self.markdown()}\n{END}{after}")


def _replace(file: Path, text: str) -> None:
    """Writes a file anew, never half of it."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text)
    os.replace(part, file)


def _text(value: str | float) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
