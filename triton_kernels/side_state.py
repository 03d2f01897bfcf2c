"""The statistics of a block's side in the square-root form, and the end of its update.

The formulas are in kradagrad_ext/backends/base.py. A program of `square_gradients` processes a tile of G, one
of `finish_sides` a tile of F; `track_statistics` runs one program for each block and side.

Between the launches of an update a side has arrays ``[blocks]`` of float32 in scratch memory, stored
consecutively from STATE on (entry.py). Sums of squares are float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import (
    BLOCKS,
    COLS,
    FIRST_BLOCK,
    PARTIAL,
    PARTIALS,
    ROWS,
    SQUARED_NORM,
    SQUARED_NORMS,
    STATE,
    STATISTICS,
    WHITENED,
    WHITENEDS,
    block_and_tile,
    find,
    floats,
    inside,
    matrix,
    pointers,
    size,
    takes_part,
)
from .multiply import squared_norm, store_partial, tile_corner, total

# The arrays of a side's state:
TAKEN = tl.constexpr(0)  # 1 if the block takes part, else 0
NEW_RMS = tl.constexpr(1)
NEW_WEIGHT = tl.constexpr(2)
START = tl.constexpr(3)  # F = start I before the first gradient; later 0, and F is the factor
WHITENING = tl.constexpr(4)  # sqrt(weight) s with the block's scale: B = whitening F^T U
STRETCH = tl.constexpr(5)  # |U|_F^2 / |G|_F^2, which the s of coupled updates divides out
ARRAYS = tl.constexpr(6)

# Columns of a factor's statistics, as in base.py:
RMS = tl.constexpr(0)
WEIGHT = tl.constexpr(1)
WHITENED_SQUARE = tl.constexpr(2)
FALLBACKS = tl.constexpr(3)
COLUMNS = tl.constexpr(4)


@triton.jit
def state(entry, block, scratch, ARRAY: tl.constexpr):
    """Return a pointer to a block's element of an array of the state."""
    return floats(entry, scratch, STATE) + ARRAY * tl.load(entry + BLOCKS) + block


@triton.jit
def side_statistics(entry, block, FIELD: tl.constexpr = STATISTICS):
    """Return a pointer to the statistics of a block's side."""
    return tl.load(entry + FIELD).to(tl.pointer_type(tl.float32)) + COLUMNS * block


@triton.jit
def is_finite(number):
    return tl.abs(number) < float("inf")


@triton.jit(do_not_specialize=["table", "count", "scratch", "scales"])
def square_gradients(
    table,
    count,
    scratch,
    scales,
    A_TYPE: tl.constexpr,
    A_ORDER: tl.constexpr,
    VECTOR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Write the tiles' shares of |G|_F^2, with G matrix 0."""
    entry = find(table, count)
    block, tile = block_and_tile(entry)
    if takes_part(entry, block, scratch, scales):
        row, col = tile_corner(entry, tile, False, BM, BN)
        i, j = row + tl.arange(0, BM), col + tl.arange(0, BN)
        rows, cols = size(entry, ROWS, VECTOR), size(entry, COLS, VECTOR)
        data, row_stride, col_stride = matrix(entry, 0, block, scratch, A_TYPE, VECTOR)
        at = pointers(data, row_stride, col_stride, i, j, A_ORDER)
        g = tl.load(at, mask=inside(i, j, rows, cols), other=0.0)
        store_partial(entry, block, tile, scratch, PARTIAL, PARTIALS, squared_norm(g))


@triton.jit
def new_statistics(rms, weight_before, squared, elements, decay, weight):
    """Return rms' and w' after a gradient of this squared norm; the mean is computed in float64."""
    old_rms = rms.to(tl.float64)
    old_weight = decay * weight_before.to(tl.float64)
    new_weight = old_weight + weight
    mean = (old_weight * old_rms * old_rms + weight * (squared / elements)) / new_weight
    return tl.sqrt(mean).to(tl.float32), new_weight.to(tl.float32)


@triton.jit(do_not_specialize=["table", "count", "scratch", "scales", "decay", "weight", "prior"])
def track_statistics(table, count, scratch, scales, decay, weight, prior, COUPLED: tl.constexpr):
    """Write the state of a side ``[ROWS, COLS]`` after its gradient; count blocks with non-finite rms."""
    entry = find(table, count)
    block, _tile = block_and_tile(entry)
    taken = 0.0
    scale = tl.load(scales + tl.load(entry + FIRST_BLOCK) + block)
    if scale != 0:
        squared = total(entry, block, scratch, SQUARED_NORM, SQUARED_NORMS)
        stretch = tl.full((), 1, tl.float64)
        if COUPLED:
            stretch = total(entry, block, scratch, PARTIAL, PARTIALS) / squared
            squared *= tl.where(stretch > 0, 1, 0)
        squared *= scale.to(tl.float64) * scale
        rows, cols = tl.load(entry + ROWS), tl.load(entry + COLS)
        statistics = side_statistics(entry, block)
        elements = (rows * cols).to(tl.float64)
        old_rms, old_weight = tl.load(statistics + RMS), tl.load(statistics + WEIGHT)
        rms, new_weight = new_statistics(old_rms, old_weight, squared, elements, decay, weight)
        is_new = old_weight == 0
        fallbacks = tl.load(statistics + FALLBACKS)
        tl.debug_barrier()  # every thread has read what one of them writes
        if (squared != 0) & is_finite(rms):
            taken = 1.0
            start = 1 / (rms * tl.sqrt_rn(prior * cols.to(tl.float32)))
            whitening = scale * tl.sqrt_rn(weight) / tl.sqrt(stretch)
            tl.store(state(entry, block, scratch, NEW_RMS), rms)
            tl.store(state(entry, block, scratch, NEW_WEIGHT), new_weight)
            tl.store(state(entry, block, scratch, START), tl.where(is_new, start, 0.0))
            tl.store(state(entry, block, scratch, WHITENING), whitening.to(tl.float32))
            tl.store(state(entry, block, scratch, STRETCH), stretch.to(tl.float32))
        elif squared != 0:
            tl.store(statistics + FALLBACKS, fallbacks + 1)
    tl.store(state(entry, block, scratch, TAKEN), taken)


@triton.jit(do_not_specialize=["table", "count", "scratch", "scales", "norms"])
def finish_norms(table, count, scratch, scales, norms):
    """Write norms = |V|_F^2 from its shares, 0 for an inactive block."""
    entry = find(table, count)
    block, _tile = block_and_tile(entry)
    index = tl.load(entry + FIRST_BLOCK) + block
    norm = 0.0
    if tl.load(scales + index) != 0:
        norm = total(entry, block, scratch, PARTIAL, PARTIALS).to(tl.float32)
    tl.store(norms + index, norm)


@triton.jit
def _write_factor(entry, block, scratch, tile, TYPE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Write a tile of the factor, matrix 3, from the new factor, matrix 0."""
    d = tl.load(entry + ROWS)
    row, col = tile_corner(entry, tile, False, BM, BN)
    i, j = row + tl.arange(0, BM), col + tl.arange(0, BN)
    new, new_stride, _new_step = matrix(entry, 0, block, scratch, tl.float32, False)
    factor, stride, _step = matrix(entry, 3, block, scratch, TYPE, False)
    f = tl.load(pointers(new, new_stride, 1, i, j, "row"), mask=inside(i, j, d, d), other=0.0)
    tl.store(pointers(factor, stride, 1, i, j, "row"), f.to(TYPE), mask=inside(i, j, d, d))


@triton.jit(do_not_specialize=["table", "count", "scratch", "scales", "weight"])
def finish_sides(
    table,
    count,
    scratch,
    scales,
    weight,
    TYPE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Write factor and statistics of the blocks whose new factor is finite; count the other blocks."""
    entry = find(table, count)
    block, tile = block_and_tile(entry)
    if takes_part(entry, block, scratch, scales):
        finite = is_finite(total(entry, block, scratch, PARTIAL, PARTIALS))
        if finite:
            _write_factor(entry, block, scratch, tile, TYPE, BM, BN)
        if tile == 0:
            statistics = side_statistics(entry, block)
            old_weight, fallbacks = tl.load(statistics + WEIGHT), tl.load(statistics + FALLBACKS)
            tl.debug_barrier()  # every thread has read what one of them writes
            if finite:
                whitened = total(entry, block, scratch, WHITENED, WHITENEDS)
                whitened *= old_weight / (weight * tl.load(entry + ROWS).to(tl.float32))
                whitened *= tl.load(state(entry, block, scratch, STRETCH))
                tl.store(statistics + RMS, tl.load(state(entry, block, scratch, NEW_RMS)))
                tl.store(statistics + WEIGHT, tl.load(state(entry, block, scratch, NEW_WEIGHT)))
                tl.store(statistics + WHITENED_SQUARE, whitened.to(tl.float32))
            else:
                tl.store(statistics + FALLBACKS, fallbacks + 1)
