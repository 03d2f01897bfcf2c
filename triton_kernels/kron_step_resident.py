"""kron_step for small blocks: the whole step in one launch, one program a block.

For each side that has a factor X, with A = G or G^T::

    X = I / (damping s) at the first gradient, s = |G|_F^2 / d;   X = X / decay
    Y = X A / u;   B = weight u A^T Y;   t bounds the largest eigenvalue of I + B (bound.py), u: mean.py
    C = I, or `REFINE` iterates towards t (I + B)^-1 (refinement.py)
    X = X - weight u^2 / t (Y C) Y^T

and P = left_root D right_root with |P|_F^2, if there is an output. Matrices are held whole, padded to M x N
by zeros, which every formula keeps where they matter. Of symmetric results the lower triangle is used twice.
Longer sides than 32 spill: there tiles and a loop over the depth are needed (grouped_product.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .bound import bound_of
from .entry import (
    COLS,
    FIRST_BLOCK,
    RIGHT_STATISTICS,
    ROWS,
    STATISTICS,
    find,
    inside,
    matrix,
    own_block_and_tile,
    place,
    size,
)
from .mean import statistics_of, unit_of
from .precision import dot

GRAD = tl.constexpr(0)
LEFT = tl.constexpr(1)
RIGHT = tl.constexpr(2)
OUT = tl.constexpr(3)
DIRECTION = tl.constexpr(4)
LEFT_ROOT = tl.constexpr(5)
RIGHT_ROOT = tl.constexpr(6)


@triton.jit
def _product(a, b, PRECISION: tl.constexpr):
    return dot(a, b, tl.zeros((a.shape[0], b.shape[1]), tl.float32), PRECISION)


@triton.jit
def _symmetric(lower):
    """A matrix whose upper triangle mirrors the lower one."""
    i, j = tl.arange(0, lower.shape[0]), tl.arange(0, lower.shape[1])
    return tl.where(i[:, None] >= j[None, :], lower, tl.trans(lower))


@triton.jit
def _identity(D: tl.constexpr):
    i = tl.arange(0, D)
    return tl.where(i[:, None] == i[None, :], 1.0, 0.0)


@triton.jit
def _load(
    entry,
    INDEX: tl.constexpr,
    block,
    scratch,
    i,
    j,
    TYPE: tl.constexpr,
    ORDER: tl.constexpr,
    VECTOR: tl.constexpr,
    rows,
    cols,
):
    data, row_stride, col_stride = matrix(entry, INDEX, block, scratch, TYPE, VECTOR)
    return tl.load(place(data, row_stride, col_stride, i, j, ORDER), mask=inside(i, j, rows, cols), other=0.0)


@triton.jit
def _bound(a, y, b, weight, d, SCALE: tl.constexpr, PRECISION: tl.constexpr):
    """t, from the trace or the squared norm that the scale asks for."""
    if SCALE == "trace" or SCALE == "trace_dim":
        sum = weight * tl.sum(a.to(tl.float32) * y)
    elif SCALE == "product":
        q = weight * _product(y, tl.trans(a), PRECISION)
        sum = tl.sum(q * q)
    elif SCALE == "schatten4":
        q = _product(b, b, PRECISION)
        sum = tl.sum(q * q)
    else:
        sum = tl.sum(b * b)
    return bound_of(sum, d, SCALE)


@triton.jit
def _refined(b, t, REFINE: tl.constexpr, PRECISION: tl.constexpr):
    """C from B: V = 5 I - 8 W + 4 W^2, C <- C V, W <- W V from W = (I + B) / t and C = I."""
    one = _identity(b.shape[0])
    s = 1 / t
    v = 4 * s * s * _product(b, b, PRECISION) + 8 * s * (s - 1) * b + (5 - 8 * s + 4 * s * s) * one
    v = _symmetric(v)
    c, w = v, v
    if REFINE > 1:
        w = _symmetric(s * _product(b, v, PRECISION) + s * v)
    for number in tl.static_range(2, REFINE + 1):
        v = _symmetric(4 * _product(w, w, PRECISION) - 8 * w + 5 * one)
        c = _symmetric(_product(c, v, PRECISION))
        if number < REFINE:
            w = _symmetric(_product(w, v, PRECISION))
    return c


@triton.jit
def _downdated(x, a, u, weight, d, SCALE: tl.constexpr, REFINE: tl.constexpr, PRECISION: tl.constexpr):
    """The factor after the update with A, and t."""
    y = _product(x, a, PRECISION) / u
    b = tl.zeros((a.shape[1], a.shape[1]), tl.float32)
    if REFINE > 0 or (SCALE == "frobenius" or SCALE == "schatten4"):
        b = _symmetric(weight * u * _product(tl.trans(a), y, PRECISION))
    t = _bound(a, y, b, weight * u, d, SCALE, PRECISION)
    z = y
    if REFINE > 0:
        z = _product(y, _refined(b, t, REFINE, PRECISION), PRECISION)
    return _symmetric(x - weight / t * u * u * _product(z, tl.trans(y), PRECISION)), t


@triton.jit
def _update_factor(
    entry,
    SIDE: tl.constexpr,
    STATISTICS_FIELD: tl.constexpr,
    block,
    scratch,
    a,
    d,
    decay,
    weight,
    damping,
    SCALE: tl.constexpr,
    REFINE: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One side's factor and statistics; X and its mean stay where the new ones are not finite."""
    statistics = statistics_of(entry, block, STATISTICS_FIELD)
    mean, fallbacks = tl.load(statistics), tl.load(statistics + 1)
    values = a.to(tl.float32)
    s = tl.sum(values * values) / d.to(tl.float32)
    first = (damping > 0) & (mean == 0)
    if (s != 0) | (first == 0):
        i = tl.arange(0, a.shape[0])
        x = _load(entry, SIDE, block, scratch, i, i, tl.float32, "row", VECTOR, d, d)
        start = 1 / tl.where(first, damping * s, 1.0)
        x = tl.where(first, _identity(a.shape[0]) * start, x) / decay
        u = unit_of(damping * tl.where(first, s, mean))
        new, t = _downdated(x, a, u, weight, d.to(tl.float32), SCALE, REFINE, PRECISION)
        new_mean = tl.where(first, s, decay * mean + (1 - decay) * s)
        tl.debug_barrier()  # every thread has read what one of them writes
        usable = (damping == 0) | ((tl.abs(new_mean) < float("inf")) & (tl.abs(start) < float("inf")))
        if usable & (damping > 0):
            tl.store(statistics, new_mean)
        if usable & (tl.abs(t) < float("inf")):
            data, stride, _step = matrix(entry, SIDE, block, scratch, tl.float32, VECTOR)
            tl.store(place(data, stride, 1, i, i, "row"), new, mask=inside(i, i, d, d))
        else:
            tl.store(statistics + 1, fallbacks + 1)


@triton.jit(do_not_specialize=["table", "count", "scratch", "active", "norms", "decay", "weight", "damping"])
def kron_step_resident(
    table,
    count,
    scratch,
    active,
    norms,
    decay,
    weight,
    damping,
    GRAD_TYPE: tl.constexpr,
    GRAD_ORDER: tl.constexpr,
    DIRECTION_TYPE: tl.constexpr,
    DIRECTION_ORDER: tl.constexpr,
    LEFT_ROOT_TYPE: tl.constexpr,
    RIGHT_ROOT_TYPE: tl.constexpr,
    OUT_ORDER: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    HAS_OUT: tl.constexpr,
    SCALE: tl.constexpr,
    REFINE: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    entry = find(table, count)
    block, _tile = own_block_and_tile(entry)
    index = tl.load(entry + FIRST_BLOCK) + block
    rows, cols = size(entry, ROWS, VECTOR), size(entry, COLS, VECTOR)
    i, j = tl.arange(0, M), tl.arange(0, N)
    norm = 0.0
    if tl.load(active + index) != 0:
        if HAS_LEFT or HAS_RIGHT:
            g = _load(entry, GRAD, block, scratch, i, j, GRAD_TYPE, GRAD_ORDER, VECTOR, rows, cols)
        if HAS_LEFT:
            _update_factor(
                entry,
                LEFT,
                STATISTICS,
                block,
                scratch,
                g,
                rows,
                decay,
                weight,
                damping,
                SCALE,
                REFINE,
                PRECISION,
                VECTOR,
            )
        if HAS_RIGHT:
            _update_factor(
                entry,
                RIGHT,
                RIGHT_STATISTICS,
                block,
                scratch,
                tl.trans(g),
                cols,
                decay,
                weight,
                damping,
                SCALE,
                REFINE,
                PRECISION,
                VECTOR,
            )
        if HAS_OUT:
            d = _load(
                entry, DIRECTION, block, scratch, i, j, DIRECTION_TYPE, DIRECTION_ORDER, VECTOR, rows, cols
            )
            left = _load(entry, LEFT_ROOT, block, scratch, i, i, LEFT_ROOT_TYPE, "row", VECTOR, rows, rows)
            right = _load(entry, RIGHT_ROOT, block, scratch, j, j, RIGHT_ROOT_TYPE, "row", VECTOR, cols, cols)
            p = _product(_product(left, d, PRECISION), right, PRECISION)
            data, row_stride, col_stride = matrix(entry, OUT, block, scratch, tl.float32, VECTOR)
            tl.store(place(data, row_stride, col_stride, i, j, OUT_ORDER), p, mask=inside(i, j, rows, cols))
            norm = tl.sum(p * p)
    if HAS_OUT:
        tl.store(norms + index, norm)
