"""The kernel of apply_updates_: the elements of all parameters in one launch::

    u = c3 update, or c0 d / (sqrt(c1 v) + c2) or c0 d if there is no update or c3 is not finite
    bits(q) = bits(p) + residual;   u = u + c8 q;   b = momentum b + u, u = b (NESTEROV: u + momentum b)
    q = (1 - lr c9) q - lr min(max(u, -c5), c5);   p = q in its storage dtype

If p is bfloat16, c6 > 0 and there are no residuals, q is rounded by chance. The tensors that the formula
needs are read and written once; parameters that are not active stay unchanged. elements.py describes how
programs map to elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .elements import (
    COEFFICIENTS,
    DIRECTION,
    MOMENTUM,
    PARAM,
    PARAMETER,
    RESIDUAL,
    SECOND_MOMENT,
    UPDATE,
    adaptive,
    chunk_of_span,
    pointers,
)
from .entry import find


@triton.jit(
    do_not_specialize=[
        "table",
        "count",
        "scratch",
        "active",
        "coefficients",
        "lr",
        "momentum",
    ]
)
def apply_updates(
    table,
    count,
    scratch,
    active,
    coefficients,
    lr,
    momentum,
    PARAM_TYPE: tl.constexpr,
    DIRECTION_TYPE: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_SECOND_MOMENT: tl.constexpr,
    NESTEROV: tl.constexpr,
    FLAT: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
):
    entry = find(table, count)
    parameter = tl.load(entry + PARAMETER)
    if tl.load(active + parameter) != 0:
        c = coefficients + COEFFICIENTS * parameter
        scale, largest, rate = tl.load(c + 3), tl.load(c + 5), tl.load(lr)
        usable = HAS_UPDATE and tl.abs(scale) < float("inf")
        for chunk in range(SPAN // CHUNK):
            at, exists = chunk_of_span(entry, chunk, FLAT, SPAN, CHUNK)
            u = tl.zeros((CHUNK,), tl.float32)
            made_of = tl.zeros((CHUNK,), tl.float32)
            if usable:
                made_of = tl.load(pointers(entry, UPDATE, at, tl.float32, FLAT), mask=exists, other=0.0)
                u = scale * made_of
            else:
                d = tl.load(pointers(entry, DIRECTION, at, DIRECTION_TYPE, FLAT), mask=exists, other=0.0)
                made_of = d.to(tl.float32)
                u = tl.load(c) * made_of
                if HAS_SECOND_MOMENT:
                    v = tl.load(pointers(entry, SECOND_MOMENT, at, tl.float32, FLAT), mask=exists, other=0.0)
                    u = adaptive(made_of, v, tl.load(c), tl.load(c + 1), tl.load(c + 2))
            param = pointers(entry, PARAM, at, PARAM_TYPE, FLAT)
            if HAS_RESIDUAL:
                upper = tl.load(pointers(entry, PARAM, at, tl.int16, FLAT), mask=exists, other=0)
                residual = pointers(entry, RESIDUAL, at, tl.int16, FLAT)
                lower = tl.load(residual, mask=exists, other=0).to(tl.int32)
                bits = (upper.to(tl.int32) << 16) + tl.where((upper & 0x7FFF) != 0, lower, 0)
                p = bits.to(tl.float32, bitcast=True)
            else:
                p = tl.load(param, mask=exists, other=0.0).to(tl.float32)
            old = p
            u += tl.load(c + 8) * p
            if HAS_MOMENTUM:
                buffer = pointers(entry, MOMENTUM, at, tl.float32, FLAT)
                b = momentum * tl.load(buffer, mask=exists, other=0.0) + u
                tl.store(buffer, b, mask=exists)
                u = u + momentum * b if NESTEROV else b
            u = tl.where(u < -largest, -largest, tl.where(u > largest, largest, u))  # NaN stays
            q = (1 - rate * tl.load(c + 9)) * p - rate * u
            if HAS_RESIDUAL:
                bits = q.to(tl.int32, bitcast=True)
                upper = bits + 0x8000 & -0x10000
                tl.store(residual, (bits - upper).to(tl.int16), mask=exists)
                q = upper.to(tl.float32, bitcast=True)
            elif param.dtype.element_ty == tl.bfloat16:
                q = rounded_by_chance(q, made_of, old, tl.load(c + 6))
            tl.store(param, q.to(PARAM_TYPE), mask=exists)


@triton.jit
def rounded_by_chance(values, made_of, old, count):
    """Return the values rounded by chance to bfloat16 (backends/base.py); unchanged if count is 0."""
    bits = values.to(tl.uint32, bitcast=True)
    mixed = made_of.to(tl.uint32, bitcast=True) ^ old.to(tl.uint32, bitcast=True) * 0x85EBCA77
    mixed = mixed ^ count.to(tl.uint32) * 0x9E3779B9
    mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B
    mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35
    mixed = mixed ^ mixed >> 16
    rounded = (bits + (mixed & 0xFFFF)) & 0xFFFF0000
    chosen = tl.where((bits & 0x7FFFFFFF) < 0x7F7F0000, rounded.to(tl.float32, bitcast=True), values)
    return tl.where(count > 0, chosen, values)
