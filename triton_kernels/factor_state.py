"""What is done once a block and side: the first gradient, the books, a trace that bounds a norm.

One program a block. See kradagrad_ext/backends/base.py for the formulas; only a factor's first gradient
takes time, later the programs of `start_factors` read two numbers and end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import (
    BLOCKS,
    BOUND,
    CHUNKS,
    COLS,
    ENERGIES,
    ENERGY,
    FAILED,
    FIRST_BLOCK,
    PARTIAL,
    PARTIALS,
    PENDING,
    ROWS,
    STATISTICS,
    D,
    find,
    floats,
    inside,
    matrix,
    own_block_and_tile,
    place,
    takes_part,
)
from .mean import statistics_of, tracked_mean
from .multiply import total


@triton.jit
def _energy(entry, block, scratch, TYPE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """|G|_F^2 of matrix 0."""
    rows, cols = tl.load(entry + ROWS), tl.load(entry + COLS)
    data, row_stride, col_stride = matrix(entry, 0, block, scratch, TYPE, False)
    sums = tl.zeros((BM, BN), tl.float32)
    for row in range(0, rows, BM):
        for col in range(0, cols, BN):
            i, j = row + tl.arange(0, BM), col + tl.arange(0, BN)
            places = place(data, row_stride, col_stride, i, j, "any")
            g = tl.load(places, mask=inside(i, j, rows, cols), other=0.0).to(tl.float32)
            sums += g * g
    return tl.sum(sums)


@triton.jit
def _fill_diagonal(entry, block, scratch, diagonal, BM: tl.constexpr, BN: tl.constexpr):
    """Matrix 3 = diagonal I."""
    d = tl.load(entry + D)
    data, stride, _step = matrix(entry, 3, block, scratch, tl.float32, False)
    for row in range(0, d, BM):
        for col in range(0, d, BN):
            i, j = row + tl.arange(0, BM), col + tl.arange(0, BN)
            value = tl.where(i[:, None] == j[None, :], diagonal, 0.0)
            tl.store(place(data, stride, 1, i, j, "row"), value, mask=inside(i, j, d, d))


@triton.jit
def _fill_energies(entry, block, scratch, energy, BN: tl.constexpr):
    """The whole energy as the first of its shares."""
    count = tl.load(entry + ENERGIES)
    shares = floats(entry, scratch, ENERGY) + block * count
    for first in range(0, count, BN):
        lanes = first + tl.arange(0, BN)
        tl.store(shares + lanes, tl.where(lanes == 0, energy, 0.0), mask=lanes < count)


@triton.jit(do_not_specialize=["table", "count", "scratch", "active", "decay", "damping"])
def start_factors(
    table,
    count,
    scratch,
    active,
    decay,
    damping,
    TYPE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """X = I / (damping s) at the first gradient; pending = 1 / decay, or 0 where a block takes no part.

    The energy |A|_F^2 is left here where no product sums it up: of blocks that take no part, and of
    unfoldings in several chunks, since X may change only if all of them are finite.
    """
    entry = find(table, count)
    block, _tile = own_block_and_tile(entry)
    pending = 0.0
    if tl.load(active + tl.load(entry + FIRST_BLOCK) + block) != 0:
        pending = 1 / decay
        statistics = statistics_of(entry, block, STATISTICS)
        mean, fallbacks = tl.load(statistics), tl.load(statistics + 1)
        first = (damping > 0) & (mean == 0)
        summed_here = tl.load(entry + ENERGY) >= 0
        sums = summed_here & (tl.load(entry + CHUNKS) > 1)
        energy = 0.0
        if first | sums:
            energy = _energy(entry, block, scratch, TYPE, BM, BN)
        if first:
            s = energy / tl.load(entry + D).to(tl.float32)
            start = 1 / tl.where(s > 0, damping * s, 1.0)
            if (s > 0) & (s < float("inf")) & (start < float("inf")):
                tl.store(statistics, s)
                _fill_diagonal(entry, block, scratch, start, BM, BN)
            else:
                pending = 0.0
                if s != 0:
                    tl.store(statistics + 1, fallbacks + 1)
        if sums | (summed_here & (pending == 0)):
            _fill_energies(entry, block, scratch, energy, BN)
    tl.store(floats(entry, scratch, FAILED) + block, 0.0)
    blocks = tl.load(entry + BLOCKS)
    for chunk in range(tl.load(entry + CHUNKS) + 1):
        tl.store(floats(entry, scratch, PENDING) + chunk * blocks + block, pending)


@triton.jit(do_not_specialize=["table", "count", "scratch", "active"])
def trace_of_square(table, count, scratch, active, BM: tl.constexpr):
    """tr(M M) of matrix 0, ``[d, d]``: the squared norm of a symmetric matrix with M's eigenvalues."""
    entry = find(table, count)
    block, _tile = own_block_and_tile(entry)
    if takes_part(entry, block, scratch, active):
        d = tl.load(entry + D)
        data, stride, _step = matrix(entry, 0, block, scratch, tl.float32, False)
        sums = tl.zeros((BM, BM), tl.float32)
        for row in range(0, d, BM):
            for col in range(0, d, BM):
                i, j = row + tl.arange(0, BM), col + tl.arange(0, BM)
                above = tl.load(place(data, stride, 1, i, j, "row"), mask=inside(i, j, d, d), other=0.0)
                below = tl.load(place(data, stride, 1, j, i, "row"), mask=inside(j, i, d, d), other=0.0)
                sums += above * tl.trans(below)
        tl.store(floats(entry, scratch, BOUND) + block, tl.maximum(tl.sum(sums), 0.0))


@triton.jit(do_not_specialize=["table", "count", "scratch", "active", "decay", "damping"])
def finish_factors(table, count, scratch, active, decay, damping):
    """The running mean of tr(S) / d, and the count of updates that fell back, of one side."""
    entry = find(table, count)
    block, _tile = own_block_and_tile(entry)
    if takes_part(entry, block, scratch, active):
        statistics = statistics_of(entry, block, STATISTICS)
        mean, fallbacks = tl.load(statistics), tl.load(statistics + 1)
        failed = tl.load(floats(entry, scratch, FAILED) + block)
        finite = True
        if damping > 0:
            mean = tracked_mean(entry, block, scratch, decay)
            finite = tl.abs(mean) < float("inf")
        tl.debug_barrier()  # every thread has read what one of them writes
        if finite:
            tl.store(statistics, mean)
        if (failed != 0) | (finite == 0):
            tl.store(statistics + 1, fallbacks + 1)


@triton.jit(do_not_specialize=["table", "count", "scratch", "active", "norms"])
def finish_norms(table, count, scratch, active, norms, TYPE: tl.constexpr):
    """norms = |P|_F^2 from its shares of this type, 0 for an inactive block."""
    entry = find(table, count)
    block, _tile = own_block_and_tile(entry)
    index = tl.load(entry + FIRST_BLOCK) + block
    norm = 0.0
    if tl.load(active + index) != 0:
        norm = total(entry, block, scratch, PARTIAL, PARTIALS, TYPE).to(tl.float32)
    tl.store(norms + index, norm)
