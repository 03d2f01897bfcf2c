"""An iterate of the approximate inverse of N = I + B, B = A^T X A, for every block.

From W = s N and C = I, with s = 1 / t, where every eigenvalue of W lies in (0, 1]::

    V = 5 I - 8 W + 4 W^2;   C <- C V;   W <- W V

so that s C grows towards N^-1. Every product is of symmetric matrices that commute, hence symmetric. STEP::

    "start"       V from B:   4 s^2 B B + 8 s (s - 1) B + (5 - 8 s + 4 s^2) I      (and C = V)
    "first"       W from V:   s B V + s V
    "polynomial"  V from W:   4 W W - 8 W + 5 I
    "product"     C V, or W V

Matrix 2 of an entry is what is added to the product. See multiply.py for the mapping.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .bound import bound
from .entry import find, own_block_and_tile, takes_part
from .multiply import load_lower, multiply, store_symmetric, tile_corner


@triton.jit(do_not_specialize=["table", "count", "scratch", "active"])
def refinement(
    table,
    count,
    scratch,
    active,
    STEP: tl.constexpr,
    SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    entry = find(table, count)
    block, tile = own_block_and_tile(entry)
    if takes_part(entry, block, scratch, active):
        row, col = tile_corner(entry, tile, True, BM, BM)
        i, j = row + tl.arange(0, BM), col + tl.arange(0, BM)
        c = multiply(entry, block, scratch, i, j, tl.float32, "row", tl.float32, "row", PRECISION, VECTOR, BK)
        if STEP != "product":
            held = load_lower(entry, 2, block, scratch, i, j, VECTOR)
            one = tl.where(i[:, None] == j[None, :], 1.0, 0.0)
            if STEP == "polynomial":
                c = 4 * c - 8 * held + 5 * one
            else:
                s = 1 / bound(entry, block, scratch, SCALE)
                if STEP == "first":
                    c = s * c + s * held
                else:
                    c = 4 * s * s * c + 8 * s * (s - 1) * held + (5 - 8 * s + 4 * s * s) * one
        store_symmetric(entry, block, scratch, i, j, c, VECTOR)
