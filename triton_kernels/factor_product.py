"""Y = X A / u for every block, with the shares of weight u <A, Y> = tr(A^T X A) and of |A|_F^2.

X is the factor times what is pending: 1 / decay before the first columns of A, 1 after; weight, which A =
sqrt(weight) U contains, is left out of Y and put into the trace; u is the side's unit (mean.py). See
multiply.py for the mapping; A is read once more for the traces, tile by tile, from the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import (
    BOUND,
    BOUNDS,
    COLS,
    ENERGIES,
    ENERGY,
    PENDING,
    ROWS,
    find,
    floats,
    inside,
    matrix,
    own_block_and_tile,
    place,
    size,
    takes_part,
)
from .mean import unit
from .multiply import multiply, store, store_partial, tile_corner


@triton.jit(do_not_specialize=["table", "count", "scratch", "active", "weight", "damping"])
def factor_product(
    table,
    count,
    scratch,
    active,
    weight,
    damping,
    B_TYPE: tl.constexpr,
    B_ORDER: tl.constexpr,
    TRACE: tl.constexpr,
    SQUARES: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    entry = find(table, count)
    block, tile = own_block_and_tile(entry)
    if takes_part(entry, block, scratch, active):
        row, col = tile_corner(entry, tile, False, BM, BN)
        i, j = row + tl.arange(0, BM), col + tl.arange(0, BN)
        y = multiply(entry, block, scratch, i, j, tl.float32, "row", B_TYPE, B_ORDER, PRECISION, VECTOR, BK)
        u = unit(entry, block, damping)
        y *= tl.load(floats(entry, scratch, PENDING) + block) / u
        store(entry, block, scratch, i, j, y, "row", VECTOR)
        if TRACE or SQUARES:
            rows, cols = size(entry, ROWS, VECTOR), size(entry, COLS, VECTOR)
            data, stride, step = matrix(entry, 1, block, scratch, B_TYPE, VECTOR)
            places = place(data, stride, step, i, j, B_ORDER)
            a = tl.load(places, mask=inside(i, j, rows, cols), other=0.0).to(tl.float32)
            if TRACE:
                store_partial(entry, block, tile, scratch, BOUND, BOUNDS, weight * u * tl.sum(a * y))
            if SQUARES:
                store_partial(entry, block, tile, scratch, ENERGY, ENERGIES, tl.sum(a * a))
