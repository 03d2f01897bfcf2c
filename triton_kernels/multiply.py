"""C = A B for one tile of one block's C: the loop of every grouped product.

One program makes one tile of BM x BN. It takes BK of the depth at a time, in the stages of the launch. A is
matrix 0 of the entry, ``[rows, depth]``, B is matrix 1, ``[depth, cols]``. Only the tiles on and below the
diagonal of a symmetric C are made; those below it are stored together with their mirror images.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import COLS, DEPTH, ROWS, TILE_COLS, floats, inside, matrix, pointers, size
from .precision import dot


@triton.jit
def tile_corner(entry, tile, SYMMETRIC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Return the first row and column of a tile."""
    if SYMMETRIC:
        row = 0
        while (row + 1) * (row + 2) // 2 <= tile:
            row += 1
        return row * BM, (tile - row * (row + 1) // 2) * BN
    cols = tl.load(entry + TILE_COLS).to(tl.int32)
    return tile // cols * BM, tile % cols * BN


@triton.jit
def multiply(
    entry,
    block,
    scratch,
    i,
    j,
    A_TYPE: tl.constexpr,
    A_ORDER: tl.constexpr,
    B_TYPE: tl.constexpr,
    B_ORDER: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    BK: tl.constexpr,
    a_scale=None,
    b_scale=None,
):
    """Return the rows i and columns j of C, float32; a scale that is not None multiplies A or B.

    A and B are scaled as they are loaded: A B may overflow where the product of the scaled ones does not.
    """
    rows, cols, depth = size(entry, ROWS, VECTOR), size(entry, COLS, VECTOR), size(entry, DEPTH, VECTOR)
    a, a_rows, a_cols = matrix(entry, 0, block, scratch, A_TYPE, VECTOR)
    b, b_rows, b_cols = matrix(entry, 1, block, scratch, B_TYPE, VECTOR)
    c = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    for start in range(0, depth, BK):
        k = start + tl.arange(0, BK)
        x = tl.load(pointers(a, a_rows, a_cols, i, k, A_ORDER), mask=inside(i, k, rows, depth), other=0.0)
        y = tl.load(pointers(b, b_rows, b_cols, k, j, B_ORDER), mask=inside(k, j, depth, cols), other=0.0)
        if a_scale is not None:
            x = x * a_scale
        if b_scale is not None:
            y = y * b_scale
        c = dot(x, y, c, PRECISION)
    return c


@triton.jit
def store(entry, block, scratch, i, j, value, ORDER: tl.constexpr, VECTOR: tl.constexpr):
    """Write the elements (i, j) of matrix 3, ``[rows, cols]``."""
    rows, cols = size(entry, ROWS, VECTOR), size(entry, COLS, VECTOR)
    out, out_rows, out_cols = matrix(entry, 3, block, scratch, tl.float32, VECTOR)
    tl.store(pointers(out, out_rows, out_cols, i, j, ORDER), value, mask=inside(i, j, rows, cols))


@triton.jit
def load_square(entry, INDEX: tl.constexpr, block, scratch, i, j, VECTOR: tl.constexpr):
    """Return a tile of a square matrix."""
    rows = size(entry, ROWS, VECTOR)
    data, stride, _step = matrix(entry, INDEX, block, scratch, tl.float32, VECTOR)
    return tl.load(pointers(data, stride, 1, i, j, "row"), mask=inside(i, j, rows, rows), other=0.0)


@triton.jit
def store_symmetric(entry, block, scratch, i, j, value, VECTOR: tl.constexpr):
    """Write a tile on or below the diagonal of matrix 3, and the mirror image of one below the diagonal.

    A tile on the diagonal is symmetric up to rounding: to mirror a half takes the registers of another tile.
    """
    rows = size(entry, ROWS, VECTOR)
    out, stride, _step = matrix(entry, 3, block, scratch, tl.float32, VECTOR)
    tl.store(pointers(out, stride, 1, i, j, "row"), value, mask=inside(i, j, rows, rows))
    if tl.min(i) != tl.min(j):
        mirrored = pointers(out, stride, 1, j, i, "row")
        tl.store(mirrored, tl.trans(value), mask=inside(j, i, rows, rows))


@triton.jit
def squared_norm(value):
    """Return the sum of squares of a tile in float64, in which the square of a float32 is exact."""
    wide = value.to(tl.float64)
    return tl.sum(wide * wide)


@triton.jit
def store_partial(entry, block, tile, scratch, FIELD: tl.constexpr, COUNT: tl.constexpr, value):
    """Write a tile's share of a sum in float64; a later launch adds up the shares in a fixed order."""
    tl.store(floats(entry, scratch, FIELD, tl.float64) + block * tl.load(entry + COUNT) + tile, value)


@triton.jit
def total(entry, block, scratch, FIELD: tl.constexpr, COUNT: tl.constexpr):
    """Return the sum of a block's shares."""
    count = tl.load(entry + COUNT)
    shares = floats(entry, scratch, FIELD, tl.float64) + block * count
    lanes = tl.arange(0, 128)
    sums = tl.zeros((128,), tl.float64)
    for start in range(0, count, 128):
        sums += tl.load(shares + start + lanes, mask=start + lanes < count, other=0.0)
    return tl.sum(sums)
