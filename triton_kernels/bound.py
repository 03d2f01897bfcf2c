"""t, an upper bound of the largest eigenvalue of N = I + A^T X A, from what earlier launches left of it.

::

    trace_dim   d (1 + tr(A^T X A))        product     1 + |X A A^T|_F
    trace       1 + tr(A^T X A)            frobenius   1 + |A^T X A|_F
                                           schatten4   1 + |(A^T X A)^2|_F^(1/2)
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import BOUND, BOUNDS, D
from .multiply import total


@triton.jit
def bound_of(sum, d, SCALE: tl.constexpr):
    """t from the trace or the squared norm."""
    if SCALE == "trace_dim":
        return d * (1 + sum)
    if SCALE == "trace":
        return 1 + sum
    if SCALE == "schatten4":
        return 1 + tl.sqrt_rn(tl.sqrt_rn(sum))
    return 1 + tl.sqrt_rn(sum)


@triton.jit
def bound(entry, block, scratch, SCALE: tl.constexpr):
    """t of a block's side."""
    return bound_of(total(entry, block, scratch, BOUND, BOUNDS), tl.load(entry + D).to(tl.float32), SCALE)
