"""Access to the elements of all parameters, of any strides, for `update_moments` and `apply_updates`.

A program processes a span of SPAN elements of one parameter, counted in the order of the parameter's memory.
It takes CHUNK elements at a time, because the addresses of more would not fit the registers.
FLAT: every tensor of the parameter is contiguous in that order, starts at a multiple of 16 bytes and has a
multiple of 8 elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import FIRST_PROGRAM, SIZE_MULTIPLE

PARAMETER = tl.constexpr(1)  # number of the parameter
NUMEL = tl.constexpr(2)
FIRST_SPAN = tl.constexpr(3)  # number of its first span, among all parameters' spans
SIZES = tl.constexpr(4)
DIMS = tl.constexpr(5)
TENSORS = tl.constexpr(9)
TENSOR_WIDTH = tl.constexpr(6)  # address, strides

PARAM = tl.constexpr(0)
GRAD = tl.constexpr(1)
MOMENTUM = tl.constexpr(2)
SECOND_MOMENT = tl.constexpr(3)
DIRECTION = tl.constexpr(4)
UPDATE = tl.constexpr(5)
RESIDUAL = tl.constexpr(6)

COEFFICIENTS = tl.constexpr(10)  # number of a parameter's coefficients


@triton.jit
def chunk_of_span(entry, chunk, FLAT: tl.constexpr, SPAN: tl.constexpr, CHUNK: tl.constexpr):
    """Return the indices of a chunk of this program's span, and a mask of those that exist."""
    start = (tl.program_id(0).to(tl.int64) - tl.load(entry + FIRST_PROGRAM)) * SPAN + chunk * CHUNK
    index = start + tl.arange(0, CHUNK)
    return index, index < tl.multiple_of(tl.load(entry + NUMEL), SIZE_MULTIPLE if FLAT else 1)


@triton.jit
def pointers(entry, TENSOR: tl.constexpr, index, TYPE: tl.constexpr, FLAT: tl.constexpr):
    """Return pointers to elements of a tensor."""
    field = entry + TENSORS + TENSOR * TENSOR_WIDTH
    data = tl.load(field).to(tl.pointer_type(TYPE))
    if FLAT:
        return tl.multiple_of(data, 16) + index
    offset = tl.zeros_like(index)
    for reverse in tl.static_range(DIMS):
        size = tl.load(entry + SIZES + DIMS - 1 - reverse)
        offset += index % size * tl.load(field + DIMS - reverse)
        index = index // size
    return data + offset


@triton.jit
def adaptive(d, v, c0, c1, c2):
    """Return c0 d / (sqrt(c1 v) + c2), 0 where the denominator is 0."""
    denominator = tl.sqrt_rn(c1 * v) + c2  # the approximate root treats subnormals as 0
    return tl.where(denominator > 0, c0 * d / tl.where(denominator > 0, denominator, 1.0), 0.0)
