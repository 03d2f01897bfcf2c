"""M = H - decay I = B B^T + C^T C for every block, and |M|_F^2.

C = rms' sqrt(damped_updates weight damping k) F, with k the columns of B; without damping the term is left
out. F is scaled as it is loaded, because F^T F may overflow. A new F is start I; then C^T C is
damped_updates weight damping / prior I. B is matrix 0 of the entry, its transpose is matrix 1 and F is
matrix 2; multiply.py describes how programs map to tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import (
    BOUND,
    BOUNDS,
    DEPTH,
    ROWS,
    block_and_tile,
    find,
    inside,
    matrix,
    pointers,
    size,
    takes_part,
)
from .multiply import multiply, squared_norm, store_partial, store_symmetric, tile_corner
from .precision import dot
from .side_state import NEW_RMS, START, state


@triton.jit
def _add_gram_of_factor(
    entry,
    block,
    scratch,
    i,
    j,
    sum,
    scale,
    F_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    BK: tl.constexpr,
):
    """Return sum + C^T C with C = scale F."""
    d = size(entry, ROWS, VECTOR)
    f, stride, _step = matrix(entry, 2, block, scratch, F_TYPE, VECTOR)
    for start in range(0, d, BK):
        k = start + tl.arange(0, BK)
        x = tl.load(pointers(f, 1, stride, i, k, "col"), mask=inside(i, k, d, d), other=0.0)
        y = tl.load(pointers(f, stride, 1, k, j, "row"), mask=inside(k, j, d, d), other=0.0)
        sum = dot(x * scale, y * scale, sum, PRECISION)
    return sum


@triton.jit(
    do_not_specialize=["table", "count", "scratch", "scales", "weight", "damping", "prior", "damped_updates"]
)
def gram(
    table,
    count,
    scratch,
    scales,
    weight,
    damping,
    prior,
    damped_updates,
    F_TYPE: tl.constexpr,
    DAMPED: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    entry = find(table, count)
    block, tile = block_and_tile(entry)
    if takes_part(entry, block, scratch, scales):
        row, col = tile_corner(entry, tile, True, BM, BM)
        i, j = row + tl.arange(0, BM), col + tl.arange(0, BM)
        m = multiply(entry, block, scratch, i, j, tl.float32, "row", tl.float32, "col", PRECISION, VECTOR, BK)
        if DAMPED:
            if tl.load(state(entry, block, scratch, START)) > 0:
                d = size(entry, ROWS, VECTOR)
                term = damped_updates * weight * damping / prior
                m += tl.where((i[:, None] == j[None, :]) & inside(i, j, d, d), term, 0.0)
            else:
                columns = tl.load(entry + DEPTH).to(tl.float32)
                scale = tl.sqrt_rn(damped_updates * weight * damping * columns)
                scale *= tl.load(state(entry, block, scratch, NEW_RMS))
                m = _add_gram_of_factor(entry, block, scratch, i, j, m, scale, F_TYPE, PRECISION, VECTOR, BK)
        store_symmetric(entry, block, scratch, i, j, m, VECTOR)
        norm = squared_norm(m) * tl.where(row > col, 2, 1)
        store_partial(entry, block, tile, scratch, BOUND, BOUNDS, norm)
