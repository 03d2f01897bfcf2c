"""a b for tiles of float32 on tensor cores, from terms that they multiply exactly.

``bf16x3``: a = ah + al in bfloat16, a b ~ ah bh + ah bl + al bh. ``tf32x3``: the same in tf32. ``fp32``:
fused multiply-adds. The smallest products are added first. A bfloat16 operand equals its first term, so the
products with its second one are left out.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b, sum, PRECISION: tl.constexpr):
    """Return sum + a b, for a ``[M, K]`` and b ``[K, N]``, each float32 or bfloat16."""
    if PRECISION == "bf16x3":
        return _dot_bf16x3(a, b, sum)
    INPUT: tl.constexpr = "tf32x3" if PRECISION == "tf32x3" else "ieee"
    return tl.dot(a.to(tl.float32), b.to(tl.float32), sum, input_precision=INPUT)


@triton.jit
def _rest(value, term):
    """Return the difference of a value and its first term."""
    return value - term.to(tl.float32)


@triton.jit
def _dot_bf16x3(a, b, sum):
    ah, bh = a.to(tl.bfloat16), b.to(tl.bfloat16)
    if a.dtype == tl.float32:
        sum = tl.dot(_rest(a, ah).to(tl.bfloat16), bh, sum)
    if b.dtype == tl.float32:
        sum = tl.dot(ah, _rest(b, bh).to(tl.bfloat16), sum)
    return tl.dot(ah, bh, sum)
