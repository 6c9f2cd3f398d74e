"""What was measured: rows by section, written after each, as JSON and as tables for MEASURED.md."""

from __future__ import annotations

import faulthandler
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

Row = dict[str, str | float | int]
SAME = ("chip", "torch", "triton", "kernels")  # of the environment: figures of different ones share no page
BEGIN, END = "<!-- measure.py begins -->", "<!-- measure.py ends -->"


class Report:
    """Rows by section, each with one set of columns, kept in `folder` as measured.json and measured.md.

    With a `page` the tables go between its marks too. Notes, and what was tried and did not end well, are of `section`,
    which whoever measures sets.
    """

    def __init__(
        self, folder: Path, environment: Row, page: Path | None = None, wanted: Collection[str] | None = None
    ) -> None:
        """With the sections that are `wanted`, those that an earlier run left in the folder are kept beside them.

        Raises ValueError or OSError where the page cannot take the tables.
        """
        self.file = folder / "measured.json"
        self.page = page
        self.environment = environment
        self.section = ""
        self.sections: dict[str, list[Row]] = {}
        self.notes_of: dict[str, list[str]] = {}
        self.failed_of: dict[str, list[str]] = {}
        if wanted is not None:
            self._keep_all_but(wanted)
        self.save()

    def _keep_all_but(self, wanted: Collection[str]) -> None:
        """Takes over what a run of the same kernels on the same machine found in other sections."""
        try:
            earlier = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return
        if any(earlier["environment"].get(key) != self.environment.get(key) for key in SAME):
            return
        for name in ("sections", "notes_of", "failed_of"):
            of = earlier.get(name, {})
            setattr(self, name, {section: found for section, found in of.items() if section not in wanted})
        if self.sections:
            self.environment["command"] = f"{earlier['environment']['command']}; {self.environment['command']}"

    @property
    def notes(self) -> list[str]:
        """All of them."""
        return [note for of in self.notes_of.values() for note in of]

    @property
    def failed(self) -> list[str]:
        """All that did not end well."""
        return [what for of in self.failed_of.values() for what in of]

    def rows(self, section: str) -> list[Row]:
        """Those of a section so far."""
        return self.sections.get(section, [])

    def add(self, section: str, row: Row) -> None:
        """Keeps a row, on disk too: a run that is cut off leaves what it had."""
        self.sections.setdefault(section, []).append(row)
        self.save()

    def note(self, text: str) -> None:
        """Keeps a sentence about what was not measured, or failed."""
        self.notes_of.setdefault(self.section, []).append(text)
        self.save()

    def fail(self, what: str) -> None:
        """Keeps that it did not end well."""
        self.failed_of.setdefault(self.section, []).append(what)
        self._write()

    @contextmanager
    def trying(self, what: str, most_s: float | None = None) -> Iterator[None]:
        """Around what may end the process, or never end: it is among `failed`, on disk too, until it has ended well.

        After `most_s` seconds the process ends: what stands still on a GPU would have all the time that is left.
        """
        self.fail(what)
        if most_s is not None:
            faulthandler.dump_traceback_later(most_s, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
        self.failed_of[self.section].remove(what)

    def save(self) -> None:
        """Writes all files anew."""
        self._write()
        _replace(self.file.with_suffix(".md"), self.markdown())
        if self.page:
            self.write_into(self.page)

    def _write(self) -> None:
        names = ("environment", "section", "sections", "notes_of", "failed_of")
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
