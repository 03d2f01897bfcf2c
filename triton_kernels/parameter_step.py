"""parameter_step, for the elements of all parameters in one launch::

    u = c3 update, or c0 d / (sqrt(c1 v) + c2) or c0 d where there is no update or c3 is not finite
    u = u + l2 p;   b = momentum b + u, u = b (NESTEROV: u + momentum b);   p = (1 - lr decay) p - lr u

The tensors that the formula needs are read and written once; a span of a parameter that is not active is
left alone. See elements.py for the mapping.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .elements import (
    DIRECTION,
    MOMENTUM,
    PARAM,
    PARAMETER,
    SECOND_MOMENT,
    UPDATE,
    adaptive,
    chunk_of_span,
    places,
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
        "decay",
        "l2",
    ]
)
def parameter_step(
    table,
    count,
    scratch,
    active,
    coefficients,
    lr,
    momentum,
    decay,
    l2,
    PARAM_TYPE: tl.constexpr,
    DIRECTION_TYPE: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    HAS_SECOND_MOMENT: tl.constexpr,
    NESTEROV: tl.constexpr,
    FLAT: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
):
    entry = find(table, count)
    parameter = tl.load(entry + PARAMETER)
    if tl.load(active + parameter) != 0:
        c = coefficients + 4 * parameter
        scale, rate = tl.load(c + 3), tl.load(lr)
        usable = HAS_UPDATE and tl.abs(scale) < float("inf")
        for chunk in range(SPAN // CHUNK):
            at, exists = chunk_of_span(entry, chunk, FLAT, SPAN, CHUNK)
            u = tl.zeros((CHUNK,), tl.float32)
            if usable:
                u = scale * tl.load(places(entry, UPDATE, at, tl.float32, FLAT), mask=exists, other=0.0)
            else:
                d = tl.load(places(entry, DIRECTION, at, DIRECTION_TYPE, FLAT), mask=exists, other=0.0)
                u = tl.load(c) * d.to(tl.float32)
                if HAS_SECOND_MOMENT:
                    v = tl.load(places(entry, SECOND_MOMENT, at, tl.float32, FLAT), mask=exists, other=0.0)
                    u = adaptive(d.to(tl.float32), v, tl.load(c), tl.load(c + 1), tl.load(c + 2))
            param = places(entry, PARAM, at, PARAM_TYPE, FLAT)
            p = tl.load(param, mask=exists, other=0.0).to(tl.float32)
            u += l2 * p
            if HAS_MOMENTUM:
                buffer = places(entry, MOMENTUM, at, tl.float32, FLAT)
                b = momentum * tl.load(buffer, mask=exists, other=0.0) + u
                tl.store(buffer, b, mask=exists)
                u = u + momentum * b if NESTEROV else b
            tl.store(param, ((1 - rate * decay) * p - rate * u).to(PARAM_TYPE), mask=exists)
