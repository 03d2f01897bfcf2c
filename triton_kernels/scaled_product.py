"""out = c A B for every block of every group, and |out|_F^2, in the square-root form.

SCALE determines c::

    SCALE        c                                        A B
    "one"        1                                        D P_r;  G P_r and G^T P_l^T for coupled updates
    "whitening"  sqrt(weight) s                           F^T U
    "root"       the scale with q(decay)^2 decay = 1      F Z      (inverse_root.py)
    "rms"        1 / rms, 0 without a gradient so far     P_l (D P_r)

If A is a factor without a gradient so far, start I replaces it, and only B is read. Norms are summed in
float64. They do not overflow, so that a norm is finite exactly if every element is finite. The norm of F R is
taken after its conversion to the factor's dtype. multiply.py describes how programs map to tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import (
    COLS,
    PARTIAL,
    PARTIALS,
    ROWS,
    block_and_tile,
    find,
    inside,
    matrix,
    pointers,
    size,
    takes_part,
)
from .inverse_root import root_scale
from .multiply import multiply, squared_norm, store, store_partial, tile_corner
from .side_state import RMS, START, WHITENING, side_statistics, state


@triton.jit
def _load_b(entry, block, scratch, i, j, TYPE: tl.constexpr, ORDER: tl.constexpr, VECTOR: tl.constexpr):
    """Return the rows i and columns j of B, which has as many rows as A."""
    rows, cols = size(entry, ROWS, VECTOR), size(entry, COLS, VECTOR)
    data, row_stride, col_stride = matrix(entry, 1, block, scratch, TYPE, VECTOR)
    at = pointers(data, row_stride, col_stride, i, j, ORDER)
    return tl.load(at, mask=inside(i, j, rows, cols), other=0.0).to(tl.float32)


@triton.jit
def _scale(entry, block, scratch, decay, SCALE: tl.constexpr, REFINE: tl.constexpr):
    """Return c, or 1 / c for "rms"; made before the product, whose tile takes the registers it needs."""
    if SCALE == "whitening":
        return tl.load(state(entry, block, scratch, WHITENING))
    elif SCALE == "root":
        return root_scale(entry, block, scratch, decay, REFINE)
    elif SCALE == "rms":
        return tl.load(side_statistics(entry, block) + RMS)
    else:
        return 1.0


@triton.jit
def _scaled(value, scale, SCALE: tl.constexpr):
    """Return c times a tile."""
    if SCALE == "one":
        return value
    elif SCALE == "rms":
        return tl.where(scale > 0, value / tl.where(scale > 0, scale, 1.0), 0.0)
    else:
        return value * scale


@triton.jit(do_not_specialize=["table", "count", "scratch", "scales", "decay"])
def scaled_product(
    table,
    count,
    scratch,
    scales,
    decay,
    A_TYPE: tl.constexpr,
    A_ORDER: tl.constexpr,
    B_TYPE: tl.constexpr,
    B_ORDER: tl.constexpr,
    OUT_ORDER: tl.constexpr,
    SCALE: tl.constexpr,
    REFINE: tl.constexpr,
    OF_FACTOR: tl.constexpr,  # A is a factor, or its transpose
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    entry = find(table, count)
    block, tile = block_and_tile(entry)
    if takes_part(entry, block, scratch, scales):
        row, col = tile_corner(entry, tile, False, BM, BN)
        i, j = row + tl.arange(0, BM), col + tl.arange(0, BN)
        scale = _scale(entry, block, scratch, decay, SCALE, REFINE)
        start = 0.0
        if OF_FACTOR:
            start = tl.load(state(entry, block, scratch, START))
        if start > 0:
            c = start * _load_b(entry, block, scratch, i, j, B_TYPE, B_ORDER, VECTOR)
        else:
            c = multiply(entry, block, scratch, i, j, A_TYPE, A_ORDER, B_TYPE, B_ORDER, PRECISION, VECTOR, BK)
        c = _scaled(c, scale, SCALE)
        store(entry, block, scratch, i, j, c, OUT_ORDER, VECTOR)
        if NORM:
            if SCALE == "root":
                c = c.to(A_TYPE).to(tl.float32)  # as the factor stores it
            store_partial(entry, block, tile, scratch, PARTIAL, PARTIALS, squared_norm(c))
