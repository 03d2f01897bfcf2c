"""Extension of Griffe: docstrings of this package as Google's style with Markdown, for MkDocs.

The docstrings differ from Google's style in four ways, which are converted here:

- ``::`` introduces indented text, which becomes a fenced block;
- a table may have rules of equals signs;
- options are grouped by titles, such as ``Blocks:``;
- one entry may describe several names, ``a, b: ...``, or several entries stand in a line, ``a: ...  b: ...``.

Names of pages, such as docs/concepts.md, become links to them.
"""

from __future__ import annotations

import re

import griffe

PAGE = re.compile(r"\bdocs/([\w-]+)\.md")
SECTIONS = {"Args", "Attributes", "Raises", "Returns", "Yields"}
ENTRY = re.compile(r" {4}(?P<names>\*{0,2}\w+(?:, \w+)*): (?P<text>.*)")


class Docstrings(griffe.Extension):
    """Rewrite every docstring before Griffe parses it."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            text = converted(obj.docstring.value, obj.is_class and _is_typed_dict(obj))
            obj.docstring.value = PAGE.sub(r"[\1](\1.md)", text)


def _is_typed_dict(obj: griffe.Object) -> bool:
    return any(str(base) == "TypedDict" for base in getattr(obj, "bases", []))


def converted(docstring: str, has_attributes: bool = False) -> str:
    """Return a docstring in Google's style.

    Args:
        has_attributes: true if titles group attributes, false if they group arguments.
    """
    lines = tables_in_markdown(fenced(docstring.splitlines()))
    titled = "Attributes" if has_attributes else "Args"
    result: list[str] = []
    section = ""
    for item in items(lines):
        title = re.fullmatch(r"([A-Z][\w ]*):", item[0])
        if title is not None:
            section = title[1] if title[1] in SECTIONS else titled
            result.append(item[0] if title[1] in SECTIONS else f"{titled}: {title[1]}")
            continue
        if item[0] and not item[0].startswith(" "):
            section = ""
        result += entries(item) if section in ("Args", "Attributes") else item
    return "\n".join(result)


def items(lines: list[str]) -> list[list[str]]:
    """Return lines with the lines that continue them: those indented by more than an entry."""
    found: list[list[str]] = []
    for line in lines:
        if found and line.startswith(" " * 5) and found[-1][0].startswith("    "):
            found[-1].append(line)
        else:
            found.append([line])
    return found


def entries(item: list[str]) -> list[str]:
    """Return the lines of one entry for each name that an item describes."""
    found: list[str] = []
    parts = re.split(r"(?<=\S)  (?=\w+(?:, \w+)*: )", item[0])
    for part in parts:
        match = ENTRY.fullmatch(part if part.startswith(" ") else f"    {part}")
        if match is None:
            return item
        continuation = item[1:] if part is parts[-1] else []
        for name in match["names"].split(", "):
            found += [f"    {name}: {match['text']}", *continuation]
    return found


def fenced(lines: list[str]) -> list[str]:
    """Replace text that ``::`` introduces by fenced blocks."""
    result: list[str] = []
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        if not line.rstrip().endswith("::"):
            result.append(line)
            continue
        margin = len(line) - len(line.lstrip())
        block: list[str] = []
        while position < len(lines) and (
            not lines[position].strip() or len(lines[position]) - len(lines[position].lstrip()) > margin
        ):
            block.append(lines[position])
            position += 1
        introduction = line.rstrip()[:-1].rstrip()
        result += [introduction, ""] if introduction.strip(" :") else []
        result += [" " * margin + "```text", *_trimmed(block, margin), " " * margin + "```", ""]
    return result


def _trimmed(block: list[str], margin: int) -> list[str]:
    """Return a block without empty lines at its ends, indented by `margin`."""
    while block and not block[0].strip():
        block.pop(0)
    while block and not block[-1].strip():
        block.pop()
    indent = min((len(line) - len(line.lstrip()) for line in block if line.strip()), default=0)
    return [" " * margin + line[indent:] if line.strip() else "" for line in block]


def tables_in_markdown(lines: list[str]) -> list[str]:
    """Replace tables with rules of equals signs by Markdown tables."""
    result: list[str] = []
    position = 0
    while position < len(lines):
        if not re.fullmatch(r"=+( +=+)+", lines[position].strip()):
            result.append(lines[position])
            position += 1
            continue
        columns = [match.span() for match in re.finditer(r"=+", lines[position])]
        rows, rules = [], 1
        while rules < 3:
            position += 1
            if set(lines[position].replace(" ", "")) == {"="}:
                rules += 1
            else:
                cells = [lines[position][start:].split("  ")[0].strip() for start, _ in columns]
                rows.append("| " + " | ".join(cells) + " |")
        result += [rows[0], "|" + "---|" * len(columns), *rows[1:]]
        position += 1
    return result
