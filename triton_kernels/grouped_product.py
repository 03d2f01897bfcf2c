"""out = A B, or weight u A B, for every block of every group, and |out|_F^2.

The two-sided product W = left_root D, P = W right_root; Y C of the refinement; and the matrices whose norms
bound the largest eigenvalue of N: N - I = weight u A^T Y, X A A^T, their squares. u is the unit that Y is
held in (mean.py). See multiply.py for the mapping.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import PARTIAL, PARTIALS, find, own_block_and_tile, takes_part
from .mean import unit
from .multiply import multiply, store, store_partial, store_symmetric, tile_corner


@triton.jit(do_not_specialize=["table", "count", "scratch", "active", "weight", "damping"])
def grouped_product(
    table,
    count,
    scratch,
    active,
    weight,
    damping,
    A_TYPE: tl.constexpr,
    A_ORDER: tl.constexpr,
    B_TYPE: tl.constexpr,
    B_ORDER: tl.constexpr,
    OUT_ORDER: tl.constexpr,  # "none": only the norm is asked for
    WEIGHTED: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    entry = find(table, count)
    block, tile = own_block_and_tile(entry)
    if takes_part(entry, block, scratch, active):
        row, col = tile_corner(entry, tile, SYMMETRIC, BM, BN)
        i, j = row + tl.arange(0, BM), col + tl.arange(0, BN)
        c = multiply(entry, block, scratch, i, j, A_TYPE, A_ORDER, B_TYPE, B_ORDER, PRECISION, VECTOR, BK)
        if WEIGHTED:
            c *= weight * unit(entry, block, damping)
        if OUT_ORDER != "none":
            if SYMMETRIC:
                store_symmetric(entry, block, scratch, i, j, c, VECTOR)
            else:
                store(entry, block, scratch, i, j, c, OUT_ORDER, VECTOR)
        if NORM:
            norm = tl.sum(c * c)
            if SYMMETRIC:
                norm *= tl.where(row > col, 2, 1)
            store_partial(entry, block, tile, scratch, PARTIAL, PARTIALS, norm)
