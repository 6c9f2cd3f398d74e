"""PTX as a program: the instructions of an entry, its labels and its parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Statement:
    """One instruction; `guard` is the register that it depends on, and what that must be."""

    kinds: tuple[str, ...]  # its name, split at the dots
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None


@dataclass
class Program:
    """An entry's instructions, where its labels are among them, and the names of its parameters."""

    name: str = ""
    statements: list[Statement] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    parameters: list[tuple[str, int]] = field(default_factory=list)  # and their bytes
    threads: int = 0


def parsed(ptx: str) -> Program:
    """The one entry of `ptx`."""
    ptx = re.sub(r"//[^\n]*", "", ptx)
    head, body = ptx[ptx.index(".entry") :].split("{", 1)
    program = Program(head.split("(")[0].split()[-1])
    for bits, name in re.findall(r"\.param \.u(\d+)[^\n]*?(\w+_param_\d+)", head):
        program.parameters.append((name, int(bits) // 8))
    required = re.search(r"\.reqntid (\d+)", head)
    assert required, "the entry says how many threads it is for"
    program.threads = int(required[1])
    for part in re.split(r";|(?<=:)\s*\n", body[: body.rindex("}")]):
        text = part.strip()
        if text.endswith(":"):
            program.labels[text[:-1]] = len(program.statements)
        elif text and not text.startswith(".reg"):
            program.statements.append(_statement(text))
    return program


def _statement(text: str) -> Statement:
    found = re.match(r"(?:@(!?)(%\w+)\s+)?(\S+)\s*(.*)", text, re.DOTALL)
    assert found, text
    unless, guard, name, rest = found.groups()
    operands = tuple(re.sub(r"\s", "", one) for one in re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s{}\[\]]+", rest))
    return Statement(tuple(name.split(".")), operands, (guard, not unless) if guard else None)


def vector(operand: str) -> list[str]:
    """The registers of `{a,b}`, or the one."""
    return operand.strip("{}").split(",")
