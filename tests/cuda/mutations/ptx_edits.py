"""Single edits of compiled PTX: dropped or changed instructions, each with its place in the source."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SWAPPED = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne", "ne": "eq"}

LOCATION = re.compile(r"\s*\.loc\s+(\d+) (\d+) \d+(?:.*inlined_at (\d+) (\d+))?")
FILE = re.compile(r'\s*\.file\s+(\d+) "([^"]*)"')

Place = tuple[str, int]
"""A source file's name and a line."""


@dataclass(frozen=True)
class Edit:
    """A change of one line of PTX."""

    kind: str
    line: int  # from 0
    old: str
    new: str
    place: Place | None
    caller: Place | None  # where `place` was inlined

    def apply(self, lines: list[str], new: str | None = None) -> str:
        """Return the module with the edit, or with the line `new` in its place."""
        line = self.new if new is None else new
        return "\n".join([*lines[: self.line], line, *lines[self.line + 1 :]])

    @property
    def instruction(self) -> str:
        """Old line without the numbers of registers and labels."""
        text = re.sub(r"%([a-z]+)\d+", r"%\1", self.old)
        return " ".join(re.sub(r"\$L__BB\w+", "$L", text).split())

    def __str__(self) -> str:
        places = " < ".join(f"{file}:{line}" for file, line in filter(None, (self.place, self.caller)))
        return f"{self.kind} at {places or 'no source line'}: {self.instruction}"


def drop(pattern: str) -> Callable[[str], str | None]:
    return lambda line: "" if re.match(rf"\s*(@!?%p\d+\s+)?{pattern}", line) else None


def change(pattern: str, by: str | Callable[[re.Match], str]) -> Callable[[str], str | None]:
    def edit(line: str) -> str | None:
        new, count = re.subn(pattern, by, line, count=1)
        return new if count and new != line else None

    return edit


KINDS: dict[str, Callable[[str], str | None]] = {
    "drop barrier": drop(r"bar\.sync"),
    "drop wait": drop(r"cp\.async\.wait_group"),
    "wait for one group less": change(r"(cp\.async\.wait_group\s+)(\d+)", lambda m: f"{m[1]}{int(m[2]) + 1}"),
    "drop commit": drop(r"cp\.async\.commit_group"),
    "drop mma": drop(r"mma\.sync"),
    "drop ldmatrix": drop(r"ldmatrix\.sync"),
    "drop movmatrix": drop(r"movmatrix\.sync"),
    "drop store": drop(r"st\.(?!param)"),
    "drop copy": drop(r"cp\.async\.c[ag]"),
    "copy whole size": change(r"(cp\.async\.c[ag].*\], (\d+), )%r\d+;", r"\1\2;"),
    "other comparison": change(
        r"(setp\.)(lt|le|gt|ge|eq|ne)(\.[subf]\d+)", lambda m: m[1] + SWAPPED[m[2]] + m[3]
    ),
    "drop branch": lambda line: "" if re.match(r"\s*@!?%p\d+\s+bra", line) else None,
    "address + 16": change(
        r"((?:ld|st)\.(?!param).*\[%r[d]?\d+)(?:\+(\d+))?\]", lambda m: f"{m[1]}+{int(m[2] or 0) + 16}]"
    ),
    "matrix + 128": change(
        r"(ldmatrix\.sync.*\[%r\d+)(?:\+(\d+))?\]", lambda m: f"{m[1]}+{int(m[2] or 0) + 128}]"
    ),
    "drop xor": change(r"xor\.b32(\s+%r\d+, %r\d+), [^;]+;", r"mov.b32\1;"),
    "own lane": change(r"(shfl\.sync\.bfly\.b32.*), %r\d+, (%r\d+), (%r\d+);", r"\1, 0, \2, \3;"),
}

STRICT = (
    "drop barrier",
    "drop wait",
    "wait for one group less",
    "drop commit",
    "drop mma",
    "drop ldmatrix",
    "drop movmatrix",
    "drop store",
    "drop copy",
)
"""Kinds of edits of which every survivor needs an argument."""


def edits(text: str) -> Iterator[Edit]:
    """Yield every edit of a module with one kernel."""
    lines = text.split("\n")
    files = {m[1]: Path(m[2]).name for m in map(FILE.match, lines) if m}
    place = caller = None
    inside = False
    for number, line in enumerate(lines):
        inside = (inside and not line.startswith("}")) or line.startswith("{")
        location = LOCATION.match(line)
        if location:
            place = (files[location[1]], int(location[2]))
            caller = (files[location[3]], int(location[4])) if location[3] else None
        elif inside and line.startswith("\t"):
            for kind, edit in KINDS.items():
                new = edit(line)
                if new is not None:
                    yield Edit(kind, number, line, new, place, caller)


def sample(text: str, of_kind: dict[str, int], seed: str) -> list[Edit]:
    """Return up to `of_kind` edits of each kind; the same ones for the same text."""
    chosen = []
    by_kind: dict[str, list[Edit]] = {kind: [] for kind in KINDS}
    for edit in edits(text):
        by_kind[edit.kind].append(edit)
    for kind, candidates in by_kind.items():
        count = min(of_kind[kind], len(candidates))
        chosen += random.Random(f"{seed} {kind}").sample(candidates, count)
    return chosen
