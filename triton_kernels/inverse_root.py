"""An iterate of the polynomial R = q(H) near H^(-1/2), H = M + decay I, for every block.

Coupled Newton-Schulz with minimax scaling on Y0 = H / t, t = decay + |M|_F, whose eigenvalues are all in
(0, 1]; Y converges to Y0^(1/2), Z to Y0^(-1/2), and f is the value that the steps so far have given to
sqrt(decay / t) (backends/square_root.py)::

    T = a I - b Z Y;   Y <- Y T;   Z <- T Z;      a = 1.5 s,  b = 0.5 s^3,  s^2 = 3 / (1 + f + f^2)
    f <- min(1, f (a - b f^2))
    R = Z / (sqrt(decay) times the product of all a - b f^2)

Y0 is never stored: M is scaled by 1 / t as it is loaded, and the products with decay / t I are added later.
Every product is of symmetric matrices that commute, and is therefore symmetric. STEP::

    "only"        Z1 = a1 I - b1 Y0                        no product; the only step with one refinement
    "first"       Y1 = a1 Y0 - b1 Y0 Y0
    "second"      T2 = a2 I - b2 (a1 Y1 - b1 Y0 Y1)        Z1 Y1, without Z1
    "third"       Z2 = a1 T2 - b1 Y0 T2                    T2 Z1, without Z1
    "polynomial"  T = a I - b Z Y, with the coefficients of step NUMBER
    "product"     Y T, or T Z

Matrix 2 of an entry is added to the product. multiply.py describes how programs map to tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import BOUND, BOUNDS, block_and_tile, find, takes_part
from .multiply import load_square, multiply, store_symmetric, tile_corner, total


@triton.jit
def _bound(entry, block, scratch, decay):
    """Return t of a block, which no eigenvalue of H exceeds."""
    return decay + tl.sqrt(total(entry, block, scratch, BOUND, BOUNDS)).to(tl.float32)


@triton.jit
def _coefficients(floor):
    """Return a and b of a step, and the ratio of the next f, not yet limited to 1, to this one."""
    s = tl.sqrt_rn(3 / (1 + floor + floor * floor))
    a, b = 1.5 * s, 0.5 * s * s * s
    return a, b, a - b * floor * floor


@triton.jit
def floor_after(floor, STEPS: tl.constexpr):
    """Return f after some steps, and the product of all their a - b f^2."""
    at_decay = 1.0
    for _ in tl.static_range(STEPS):
        _a, _b, shrunk = _coefficients(floor)
        at_decay *= shrunk
        floor = tl.minimum(floor * shrunk, 1.0)
    return floor, at_decay


@triton.jit
def restored(t, decay, REFINE: tl.constexpr):
    """Return R / Z, the scale that gives R = decay^(-1/2) at the eigenvalue decay of H."""
    _floor, at_decay = floor_after(tl.sqrt_rn(decay / t), REFINE)
    return 1 / (tl.sqrt_rn(decay) * at_decay)


@triton.jit
def root_scale(entry, block, scratch, decay, REFINE: tl.constexpr):
    """Return R / Z of a block."""
    return restored(_bound(entry, block, scratch, decay), decay, REFINE)


@triton.jit
def _product(
    entry,
    block,
    scratch,
    i,
    j,
    over_t,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
    VECTOR: tl.constexpr,
    BK: tl.constexpr,
):
    """Return A B, with M / t in place of M."""
    if STEP == "first":
        a_scale, b_scale = over_t, over_t
    elif STEP == "second" or STEP == "third":
        a_scale, b_scale = over_t, None
    else:
        a_scale, b_scale = None, None
    return multiply(
        entry,
        block,
        scratch,
        i,
        j,
        tl.float32,
        "row",
        tl.float32,
        "row",
        PRECISION,
        VECTOR,
        BK,
        a_scale,
        b_scale,
    )


@triton.jit
def iterate(c, held, one, floor, least, over_t, STEP: tl.constexpr, NUMBER: tl.constexpr):
    """Return a step's result from the product c and matrix 2, `held`; `least` is decay / t."""
    a, b, _shrunk = _coefficients(floor)
    if STEP == "only":
        return (a - b * least) * one - b * over_t * held
    elif STEP == "first":
        return (a - 2 * b * least) * over_t * held - b * c + least * (a - b * least) * one
    elif STEP == "third":
        return (a - b * least) * held - b * c
    else:
        later, _at_decay = floor_after(floor, NUMBER - 1)
        a_now, b_now, _shrunk_now = _coefficients(later)
        power = (a - b * least) * held - b * c if STEP == "second" else c
        return a_now * one - b_now * power


@triton.jit(do_not_specialize=["table", "count", "scratch", "scales", "decay"])
def inverse_root(
    table,
    count,
    scratch,
    scales,
    decay,
    STEP: tl.constexpr,
    NUMBER: tl.constexpr,
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
        over_t = 1 / _bound(entry, block, scratch, decay)
        c = tl.zeros((BM, BM), tl.float32)
        if STEP != "only":
            c = _product(entry, block, scratch, i, j, over_t, STEP, PRECISION, VECTOR, BK)
        if STEP != "product":
            held = c if STEP == "polynomial" else load_square(entry, 2, block, scratch, i, j, VECTOR)
            one = tl.where(i[:, None] == j[None, :], 1.0, 0.0)
            least = decay * over_t
            c = iterate(c, held, one, tl.sqrt_rn(least), least, over_t, STEP, NUMBER)
        store_symmetric(entry, block, scratch, i, j, c, VECTOR)
