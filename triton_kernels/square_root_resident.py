"""kron_step_ in the square-root form for small blocks: the whole step in one launch, one program a block.

For each side that has a factor F, with G as that side sees it (kradagrad_ext/backends/base.py)::

    U = s G P, with P the other side's root, if sides are coupled; else U = G, times the block's scale
    rms' and w' of the statistics;   F = start I before the first gradient
    B = sqrt(weight) F^T U;   M = B B^T + C^T C;   R from M (inverse_root.py);   F = F R

and V = P_l (D P_r) / rms with |V|_F^2, if there is an output. A program has whole matrices in registers,
padded to a power of two with zeros, which every formula keeps where they matter. A matrix that is needed
again is loaded again, from a cache, to save registers. Symmetric results are symmetric up to rounding, which
the iteration does not amplify.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import (
    COLS,
    FIRST_BLOCK,
    RIGHT_STATISTICS,
    ROWS,
    STATISTICS,
    block_and_tile,
    find,
    inside,
    matrix,
    pointers,
    size,
)
from .inverse_root import iterate, restored
from .multiply import squared_norm
from .precision import dot
from .side_state import (
    FALLBACKS,
    RMS,
    WEIGHT,
    WHITENED_SQUARE,
    is_finite,
    new_statistics,
    side_statistics,
)

GRAD = tl.constexpr(0)
LEFT = tl.constexpr(1)
RIGHT = tl.constexpr(2)
OUT = tl.constexpr(3)
DIRECTION = tl.constexpr(4)
LEFT_ROOT = tl.constexpr(5)
RIGHT_ROOT = tl.constexpr(6)


@triton.jit
def _product(a, b, PRECISION: tl.constexpr):
    """Return A B under a condition: a chain of products in one basic block would exceed the registers."""
    c = tl.zeros((a.shape[0], b.shape[1]), tl.float32)
    if tl.program_id(0) >= 0:
        c = dot(a, b, c, PRECISION)
    return c


@triton.jit
def _identity(D: tl.constexpr):
    i = tl.arange(0, D)
    return tl.where(i[:, None] == i[None, :], 1.0, 0.0)


@triton.jit
def _load(
    entry, INDEX: tl.constexpr, block, scratch, rows, cols,
    M: tl.constexpr, N: tl.constexpr, TYPE: tl.constexpr, ORDER: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Return a whole matrix, padded to M x N."""
    i, j = tl.arange(0, M), tl.arange(0, N)
    data, row_stride, col_stride = matrix(entry, INDEX, block, scratch, TYPE, VECTOR)
    at = pointers(data, row_stride, col_stride, i, j, ORDER)
    return tl.load(at, mask=inside(i, j, rows, cols), other=0.0)


@triton.jit
def _load_square(
    entry, INDEX: tl.constexpr, block, scratch, d, D: tl.constexpr, TYPE: tl.constexpr, VECTOR: tl.constexpr
):  # fmt: skip
    """Return a factor or a root, padded to D x D."""
    return _load(entry, INDEX, block, scratch, d, d, D, D, TYPE, "row", VECTOR)


@triton.jit
def _inverse_root(m, t, decay, REFINE: tl.constexpr, PRECISION: tl.constexpr):
    """Return Z of inverse_root.py."""
    one, y0 = _identity(m.shape[0]), m / t  # Y0 without its decay / t I
    least = decay / t
    floor = tl.sqrt_rn(least)
    if REFINE == 1:
        z = iterate(y0, y0, one, floor, least, 1.0, "only", 1)
    else:
        y = iterate(_product(y0, y0, PRECISION), y0, one, floor, least, 1.0, "first", 1)
        p = iterate(_product(y0, y, PRECISION), y, one, floor, least, 1.0, "second", 2)
        z = iterate(_product(y0, p, PRECISION), p, one, floor, least, 1.0, "third", 2)
        for number in tl.static_range(3, REFINE + 1):
            y = _product(y, p, PRECISION)
            c = _product(z, y, PRECISION)
            p = iterate(c, c, one, floor, least, 1.0, "polynomial", number)
            z = _product(p, z, PRECISION)
    return z


@triton.jit
def _gram(
    f, b, start, damping_scale, start_damping, d, DAMPED: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Return M = B B^T + C^T C with C = damping_scale F; C^T C = start_damping I for a new F."""
    m = _product(b, tl.trans(b), PRECISION)
    if DAMPED:
        if start > 0:
            i = tl.arange(0, m.shape[0])
            m += tl.where((i[:, None] == i[None, :]) & inside(i, i, d, d), start_damping, 0.0)
        else:
            c = f * damping_scale
            m += _product(tl.trans(c), c, PRECISION)
    return m


@triton.jit
def _updated(
    entry, SIDE: tl.constexpr, block, scratch, u, rms, start, whitening, whitened, d, k,
    decay, weight, damping, prior, damped_updates,
    TYPE: tl.constexpr, DAMPED: tl.constexpr, REFINE: tl.constexpr, PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """Return F R in the factor's dtype, and `whitened` |B|_F^2; F = start I unless start is 0."""
    D: tl.constexpr = u.shape[0]
    if start > 0:
        b = start * u.to(tl.float32)
    else:
        f = _load_square(entry, SIDE, block, scratch, d, D, TYPE, VECTOR)
        b = _product(tl.trans(f), u, PRECISION)
    b *= whitening
    whitened_square = (squared_norm(b) * whitened).to(tl.float32)
    f = _load_square(entry, SIDE, block, scratch, d, D, TYPE, VECTOR)
    damping_scale = tl.sqrt_rn(damped_updates * weight * damping * k.to(tl.float32)) * rms
    m = _gram(f, b, start, damping_scale, damped_updates * weight * damping / prior, d, DAMPED, PRECISION)
    t = decay + tl.sqrt(squared_norm(m)).to(tl.float32)
    z = _inverse_root(m, t, decay, REFINE, PRECISION)
    if start > 0:
        new = start * z
    else:
        f = _load_square(entry, SIDE, block, scratch, d, D, TYPE, VECTOR)
        new = _product(f, z, PRECISION)
    i = tl.arange(0, D)
    new = tl.where(inside(i, i, d, d), new * restored(t, decay, REFINE), 0.0)
    return new.to(TYPE), whitened_square


@triton.jit
def _update_side(
    entry, SIDE: tl.constexpr, STATISTICS_FIELD: tl.constexpr, block, scratch, u, norm_squared, scale, d, k,
    decay, weight, damping, prior, damped_updates,
    TYPE: tl.constexpr, COUPLED: tl.constexpr, DAMPED: tl.constexpr, REFINE: tl.constexpr,
    PRECISION: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Write one side's factor and statistics, or count a result that is not finite; return its rms."""
    statistics = side_statistics(entry, block, STATISTICS_FIELD)
    rms, old_weight = tl.load(statistics + RMS), tl.load(statistics + WEIGHT)
    fallbacks = tl.load(statistics + FALLBACKS)
    tl.debug_barrier()  # every thread has read what one of them writes
    squared, stretch = norm_squared, tl.full((), 1, tl.float64)
    if COUPLED:
        stretch = squared_norm(u) / norm_squared
        squared *= tl.where(stretch > 0, 1, 0)
    squared *= scale.to(tl.float64) * scale
    new_rms, new_weight = new_statistics(rms, old_weight, squared, (d * k).to(tl.float64), decay, weight)
    if squared != 0:
        finite = is_finite(new_rms)
        if finite:
            start = 1 / (new_rms * tl.sqrt_rn(prior * k.to(tl.float32)))
            start = tl.where(old_weight == 0, start, 0.0)
            whitening = (scale * tl.sqrt_rn(weight) / tl.sqrt(stretch)).to(tl.float32)
            whitened = old_weight / (weight * d.to(tl.float32)) * stretch
            new, whitened_square = _updated(
                entry, SIDE, block, scratch, u, new_rms, start, whitening, whitened, d, k,
                decay, weight, damping, prior, damped_updates, TYPE, DAMPED, REFINE, PRECISION, VECTOR,
            )  # fmt: skip
            finite = is_finite(squared_norm(new))
            if finite:
                i = tl.arange(0, u.shape[0])
                data, stride, _step = matrix(entry, SIDE, block, scratch, TYPE, VECTOR)
                tl.store(pointers(data, stride, 1, i, i, "row"), new, mask=inside(i, i, d, d))
                rms = new_rms
                tl.store(statistics + RMS, new_rms)
                tl.store(statistics + WEIGHT, new_weight)
                tl.store(statistics + WHITENED_SQUARE, whitened_square)
        if finite == 0:
            tl.store(statistics + FALLBACKS, fallbacks + 1)
    return rms


@triton.jit(
    do_not_specialize=[
        "table", "count", "scratch", "scales", "norms",
        "decay", "weight", "damping", "prior", "damped_updates",
    ]
)  # fmt: skip
def square_root_resident(
    table,
    count,
    scratch,
    scales,
    norms,
    decay,
    weight,
    damping,
    prior,
    damped_updates,
    GRAD_TYPE: tl.constexpr,
    GRAD_ORDER: tl.constexpr,
    DIRECTION_TYPE: tl.constexpr,
    DIRECTION_ORDER: tl.constexpr,
    LEFT_TYPE: tl.constexpr,
    RIGHT_TYPE: tl.constexpr,
    LEFT_ROOT_TYPE: tl.constexpr,
    RIGHT_ROOT_TYPE: tl.constexpr,
    OUT_ORDER: tl.constexpr,
    UPDATE: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    HAS_OUT: tl.constexpr,
    COUPLED: tl.constexpr,
    DAMPED: tl.constexpr,
    REFINE: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    entry = find(table, count)
    block, _tile = block_and_tile(entry)
    index = tl.load(entry + FIRST_BLOCK) + block
    rows, cols = size(entry, ROWS, VECTOR), size(entry, COLS, VECTOR)
    norm = tl.full((), 0, tl.float64)
    scale = tl.load(scales + index)
    if scale != 0:
        rms = tl.load(side_statistics(entry, block, STATISTICS) + RMS)
        if UPDATE:
            u = _load(entry, GRAD, block, scratch, rows, cols, M, N, GRAD_TYPE, GRAD_ORDER, VECTOR)
            norm_squared = squared_norm(u)
            if COUPLED:
                root = _load_square(entry, RIGHT_ROOT, block, scratch, cols, N, RIGHT_ROOT_TYPE, VECTOR)
                u = _product(u, root, PRECISION)
            rms = _update_side(
                entry, LEFT, STATISTICS, block, scratch, u, norm_squared, scale, rows, cols,
                decay, weight, damping, prior, damped_updates,
                LEFT_TYPE, COUPLED, DAMPED, REFINE, PRECISION, VECTOR,
            )  # fmt: skip
        if HAS_RIGHT:
            u = _load(entry, GRAD, block, scratch, rows, cols, M, N, GRAD_TYPE, GRAD_ORDER, VECTOR)
            if COUPLED:
                root = _load_square(entry, LEFT_ROOT, block, scratch, rows, M, LEFT_ROOT_TYPE, VECTOR)
                u = _product(root, u, PRECISION)
            _update_side(
                entry, RIGHT, RIGHT_STATISTICS, block, scratch, tl.trans(u), norm_squared, scale, cols, rows,
                decay, weight, damping, prior, damped_updates,
                RIGHT_TYPE, COUPLED, DAMPED, REFINE, PRECISION, VECTOR,
            )  # fmt: skip
        if HAS_OUT:
            v = _load(
                entry, DIRECTION, block, scratch, rows, cols, M, N, DIRECTION_TYPE, DIRECTION_ORDER, VECTOR
            )
            root = _load_square(entry, RIGHT_ROOT, block, scratch, cols, N, RIGHT_ROOT_TYPE, VECTOR)
            v = _product(v, root, PRECISION)
            root = _load_square(entry, LEFT_ROOT, block, scratch, rows, M, LEFT_ROOT_TYPE, VECTOR)
            v = _product(root, v, PRECISION)
            v = tl.where(rms > 0, v / tl.where(rms > 0, rms, 1.0), 0.0)
            i, j = tl.arange(0, M), tl.arange(0, N)
            data, row_stride, col_stride = matrix(entry, OUT, block, scratch, tl.float32, VECTOR)
            at = pointers(data, row_stride, col_stride, i, j, OUT_ORDER)
            tl.store(at, v, mask=inside(i, j, rows, cols))
            norm = squared_norm(v)
    if HAS_OUT:
        tl.store(norms + index, norm.to(tl.float32))
