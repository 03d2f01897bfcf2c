"""The kernel of update_moments_: the elements of all parameters in one launch::

    g = c3 (grad + c7 p);   m = beta1 c4 m + (1 - beta1) g
    d = m, beta1 m + (1 - beta1) g (NESTEROV), or g;   v = beta2 c4^2 v + weight2 g^2
    norm = |graft|^2 of the span,  graft = c0 d / (sqrt(c1 v) + c2), or c0 d

Every tensor is read and written once. elements.py describes how programs map to elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .elements import (
    COEFFICIENTS,
    DIRECTION,
    FIRST_SPAN,
    GRAD,
    MOMENTUM,
    PARAM,
    PARAMETER,
    SECOND_MOMENT,
    adaptive,
    chunk_of_span,
    pointers,
)
from .entry import FIRST_PROGRAM, find


@triton.jit(
    do_not_specialize=[
        "table",
        "count",
        "scratch",
        "active",
        "coefficients",
        "norms",
        "beta1",
        "rest1",
        "beta2",
        "weight2",
    ]
)
def update_moments(
    table,
    count,
    scratch,
    active,
    coefficients,
    norms,
    beta1,
    rest1,
    beta2,
    weight2,
    PARAM_TYPE: tl.constexpr,
    GRAD_TYPE: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    HAS_SECOND_MOMENT: tl.constexpr,
    HAS_DIRECTION: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    NESTEROV: tl.constexpr,
    FLAT: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
):
    entry = find(table, count)
    parameter = tl.load(entry + PARAMETER)
    norm = norms + tl.load(entry + FIRST_SPAN) + tl.program_id(0) - tl.load(entry + FIRST_PROGRAM)
    if tl.load(active + parameter) != 0:
        c = coefficients + COEFFICIENTS * parameter
        shift, decay = tl.load(c + 4), tl.load(c + 7)
        sums = tl.zeros((CHUNK,), tl.float32)
        for chunk in range(SPAN // CHUNK):
            at, exists = chunk_of_span(entry, chunk, FLAT, SPAN, CHUNK)
            g = tl.load(pointers(entry, GRAD, at, GRAD_TYPE, FLAT), mask=exists, other=0.0).to(tl.float32)
            if decay != 0:
                p = tl.load(pointers(entry, PARAM, at, PARAM_TYPE, FLAT), mask=exists, other=0.0)
                g += decay * p.to(tl.float32)
            g *= tl.load(c + 3)
            d = g
            if HAS_MOMENTUM:
                momentum = pointers(entry, MOMENTUM, at, tl.float32, FLAT)
                d = beta1 * shift * tl.load(momentum, mask=exists, other=0.0) + rest1 * g
                tl.store(momentum, d, mask=exists)
                if NESTEROV:
                    d = beta1 * d + rest1 * g
            if HAS_DIRECTION:
                tl.store(pointers(entry, DIRECTION, at, tl.float32, FLAT), d, mask=exists)
            graft = tl.load(c) * d
            if HAS_SECOND_MOMENT:
                second = pointers(entry, SECOND_MOMENT, at, tl.float32, FLAT)
                v = beta2 * shift * shift * tl.load(second, mask=exists, other=0.0) + weight2 * g * g
                tl.store(second, v, mask=exists)
                graft = adaptive(d, v, tl.load(c), tl.load(c + 1), tl.load(c + 2))
            sums += tl.where(exists, graft * graft, 0.0)
        if HAS_NORMS:
            tl.store(norm, tl.sum(sums))
    elif HAS_NORMS:
        tl.store(norm, 0.0)
