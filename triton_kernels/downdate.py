"""X <- X - (weight u^2 / t) Z Y^T for every block, with Z = Y C, or Z = Y without refinement.

X in memory is still to be multiplied by what is pending; u is the unit that Y is held in (mean.py). Only the
lower triangle of X is read; it is written with its mirror image, so that the factor is symmetric to the bit.
Where t or the new mean is not finite, X stays, the failure is noted, and what was pending stays pending. See
multiply.py for the mapping; X is matrix 3.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .bound import bound
from .entry import FAILED, NEXT_PENDING, PENDING, find, floats, own_block_and_tile, takes_part
from .mean import tracked_mean, unit
from .multiply import load_lower, multiply, store_symmetric, tile_corner


@triton.jit(do_not_specialize=["table", "count", "scratch", "active", "decay", "weight", "damping"])
def downdate(
    table,
    count,
    scratch,
    active,
    decay,
    weight,
    damping,
    SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    entry = find(table, count)
    block, tile = own_block_and_tile(entry)
    if takes_part(entry, block, scratch, active):
        t = bound(entry, block, scratch, SCALE)
        finite = tl.abs(t) < float("inf")
        if damping > 0:
            finite = finite & (tl.abs(tracked_mean(entry, block, scratch, decay)) < float("inf"))
        pending = tl.load(floats(entry, scratch, PENDING) + block)
        if tile == 0:
            tl.store(floats(entry, scratch, NEXT_PENDING) + block, tl.where(finite, 1.0, pending))
            if not finite:
                tl.store(floats(entry, scratch, FAILED) + block, 1.0)
        if finite:
            row, col = tile_corner(entry, tile, True, BM, BM)
            i, j = row + tl.arange(0, BM), col + tl.arange(0, BM)
            c = multiply(
                entry, block, scratch, i, j, tl.float32, "row", tl.float32, "col", PRECISION, VECTOR, BK
            )
            held = load_lower(entry, 3, block, scratch, i, j, VECTOR)
            u = unit(entry, block, damping)
            store_symmetric(entry, block, scratch, i, j, pending * held - weight / t * u * u * c, VECTOR)
