"""Edits of PTX that no check notices because the results stay right, each with its argument.

An entry names a line of the source by its text, which must occur once in the file: a text of several lines
names the last of them. `place` is the line that wrote the instruction, `caller` the one that inlined `place`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from cuda import toolchain

from .ptx_edits import Edit, Place

Anchor = tuple[str, str]
"""A source file's name and a text that occurs in it once."""

SYNC = ("drop barrier",)

MMA_BF16 = """m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));"""


@dataclass(frozen=True)
class Survivor:
    """Edits of some kinds at one place of a kernel; at most the share `share` of them survives."""

    kernel: str
    kinds: tuple[str, ...]
    place: Anchor
    caller: Anchor | None
    why: str
    share: float = 1

    def covers(self, kernel: str, edit: Edit) -> bool:
        places = [(self.place, edit.place), (self.caller, edit.caller)]
        same = all(anchor is None or line_of(anchor) == place for anchor, place in places)
        return kernel.startswith(self.kernel) and edit.kind in self.kinds and same


@functools.cache
def line_of(anchor: Anchor) -> Place:
    file, text = anchor
    source = (toolchain.KERNELS / file).read_text()
    assert source.count(text) == 1, f"occurs {source.count(text)} times in {file}, not once:\n{text}"
    end = source.index(text) + len(text.rstrip("\n"))
    return file, source.count("\n", 0, end) + 1


LAST_SUM = ("reduce.cuh", "value = warp_sum(value);\n  __syncthreads();")
MULTIPLY = ("precision.cuh", "mma_bf16(c, a.term[i], {b.term[j][2 * half], b.term[j][2 * half + 1]});")

RESIDENT = [
    Survivor(
        "resident_update",
        SYNC,
        LAST_SUM,
        None,
        "It separates a sum's scratch from an earlier sum's; other barriers do for all sums except M's.",
        share=0.8,
    ),
    Survivor(
        "resident_update",
        SYNC,
        ("largest.cuh", "value, distance));\n  }\n  __syncthreads();"),
        None,
        "It separates a maximum's scratch from the last turn's, and turns have other barriers.",
    ),
    Survivor(
        "resident_update",
        ("drop mma",),
        ("ptx.cuh", MMA_BF16),
        MULTIPLY,
        "A low term's product of one tile in the iteration is within the tolerance: later steps correct it.",
        share=0.1,
    ),
    Survivor(
        "resident_root",
        SYNC,
        LAST_SUM,
        None,
        "It separates a sum's scratch from an earlier sum's; before the scale and the size of X others do.",
        share=0.7,
    ),
    Survivor(
        "resident_root",
        SYNC,
        ("resident_root.cu", "root.template write<Format>(first());\n    __syncthreads();"),
        None,
        "The sum of X's size comes before P is read, and has barriers.",
    ),
    Survivor(
        "resident_root",
        ("drop mma",),
        ("ptx.cuh", MMA_BF16),
        MULTIPLY,
        "A low term's product of half a tile is within the tolerance: 2^-9 of a small part of G or of P.",
        share=0.4,
    ),
]

OTHERS = [
    Survivor(
        "update_moments",
        SYNC,
        LAST_SUM,
        None,
        "It separates a sum's scratch from an earlier sum's, and the kernel has only one sum.",
    ),
]

SURVIVORS = [*RESIDENT, *OTHERS]


def unexplained(kernel: str, results: list[tuple[Edit, set[str]]]) -> list[str]:
    """Return survivors that no entry covers, and entries with more survivors than their share."""
    problems = []
    left = {edit for edit, layers in results if not layers}
    for survivor in SURVIVORS:
        covered = {edit for edit, _ in results if survivor.covers(kernel, edit)}
        if len(left & covered) > max(1, survivor.share * len(covered)):
            problems.append(f"{len(left & covered)} of {len(covered)} survive at {survivor.place}")
        left -= covered
    return [*problems, *map(str, left)]
