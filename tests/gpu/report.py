"""What was measured: rows by section, written as JSON after each, and as tables for MEASURED.md."""

from __future__ import annotations

import json
import os
from pathlib import Path

Row = dict[str, str | float | int]
BEGIN, END = "<!-- measure.py begins -->", "<!-- measure.py ends -->"


class Report:
    """Rows by section, kept in `file`; each section has one set of columns."""

    def __init__(self, file: Path, environment: Row) -> None:
        self.file = file
        self.environment = environment
        self.sections: dict[str, list[Row]] = {}
        self.notes: list[str] = []

    def add(self, section: str, row: Row) -> None:
        """Keeps a row, on disk too: a run that is cut off leaves what it had."""
        self.sections.setdefault(section, []).append(row)
        self.save()

    def note(self, text: str) -> None:
        """Keeps a sentence about what was not measured, or failed."""
        self.notes.append(text)
        self.save()

    def save(self) -> None:
        """Writes the file anew, never half of it."""
        part = self.file.with_suffix(".part")
        content = {"environment": self.environment, "sections": self.sections, "notes": self.notes}
        part.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(part, self.file)

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
        page.write_text(f"{before}{BEGIN}\n{self.markdown()}\n{END}{after}")


def _text(value: str | float) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
