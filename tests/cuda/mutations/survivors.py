"""Edits of PTX that nothing notices because nothing is wrong, each with its argument.

An entry names lines of the source by their text, which must stand once in the file: several lines of text
mean the last of them. `place` is where the instruction was written, `caller` where that was inlined.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from cuda import toolchain

from .ptx_edits import Edit, Place

Anchor = tuple[str, str]
"""A source file's name and text that stands in it once."""


SYNC = ("drop barrier",)


@dataclass(frozen=True)
class Survivor:
    """Edits of some kinds at one place of a kernel, of which at most `share` survive."""

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
    assert source.count(text) == 1, f"stands {source.count(text)} times in {file}, not once:\n{text}"
    end = source.index(text) + len(text.rstrip("\n"))
    return file, source.count("\n", 0, end) + 1


RESIDENT = [
    Survivor(
        "resident_update",
        SYNC,
        ("reduce.cuh", "value = warp_sum(value);\n  __syncthreads();"),
        None,
        "It keeps a sum's scratch from an earlier sum's; other barriers lie between most sums.",
    ),
    Survivor(
        "resident_update",
        SYNC,
        ("largest.cuh", "  __syncthreads();\n  if (threadIdx.x % 32 == 0)"),
        None,
        "It keeps a maximum's scratch from an earlier one's, and the kernel makes one.",
    ),
    Survivor(
        "resident_update",
        ("drop mma",),
        ("ptx.cuh", 'asm volatile(\n      "mma.sync.aligned.m16n8k16'),
        None,
        "Tiles beyond the matrix repeat its last ones, unstored; a low term of a few k is too small.",
        share=0.25,
    ),
    Survivor(
        "resident_update",
        ("drop store",),
        ("tile.cuh", "tile[tile_offset(row, col)] = c[e / 4][e % 4];"),
        None,
        "Rows beyond the matrix are multiplied by zeros: what lies there need only be finite.",
        share=0.3,
    ),
    Survivor(
        "resident_update",
        ("drop store",),
        ("tile.cuh", "if (col < row) tile[tile_offset(col, row)] = c[e / 4][e % 4];"),
        None,
        "The same.",
        share=0.3,
    ),
    Survivor(
        "resident_update",
        ("drop store",),
        ("tile.cuh", "*reinterpret_cast<float2*>(to) = {c[half][2 * i], c[half][2 * i + 1]};"),
        None,
        "The same.",
        share=0.3,
    ),
]

OTHERS = [
    Survivor(
        "square_root_product",
        SYNC,
        ("square_root_product.cuh", "exact);\n    }\n    __syncthreads();"),
        None,
        "The buffers are written once more by an epilogue's sum alone, which begins with a barrier itself.",
    ),
    Survivor(
        "square_root_product",
        SYNC,
        ("reduce.cuh", "value = warp_sum(value);\n  __syncthreads();"),
        None,
        "An epilogue makes one sum, and before it the pipeline's barrier lies.",
    ),
    Survivor(
        "accumulate",
        SYNC,
        ("reduce.cuh", "value = warp_sum(value);\n  __syncthreads();"),
        None,
        "It keeps a sum's scratch from an earlier sum's, and the kernel makes one.",
    ),
]

SURVIVORS = [*RESIDENT, *OTHERS]


def unexplained(kernel: str, results: list[tuple[Edit, set[str]]]) -> list[str]:
    """Survivors that no entry covers, and entries that cover more than their share of survivors."""
    found = []
    left = {edit for edit, layers in results if not layers}
    for survivor in SURVIVORS:
        covered = {edit for edit, _ in results if survivor.covers(kernel, edit)}
        if len(left & covered) > max(1, survivor.share * len(covered)):
            found.append(f"{len(left & covered)} of {len(covered)} survive at {survivor.place}")
        left -= covered
    return [*found, *map(str, left)]
