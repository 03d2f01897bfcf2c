"""Entries of a launch's table (plan/views.py): how a program finds its entry, and matrices through it.

A table is int64 ``[count, WIDTH]``. Kernels are not specialised by its values. The compiler knows three
properties of a matrix: its dtype, its order, and if its runs are whole 16-byte vectors. They are constants,
and a launch is made for each combination of them (plan/launch.py). Addresses in scratch memory are offsets in
bytes from its start, so that a table remains valid wherever the allocator places that memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

FIRST_PROGRAM = tl.constexpr(0)
FIRST_BLOCK = tl.constexpr(1)  # the group's first block among all groups' blocks: its index in `scales`
START = tl.constexpr(2)  # the entry's first block, counted within its group
TILES = tl.constexpr(3)  # number of programs of one block
TILE_COLS = tl.constexpr(4)
ROWS = tl.constexpr(5)
COLS = tl.constexpr(6)
DEPTH = tl.constexpr(7)
# Offset in scratch memory of arrays by block of the group; -1: the work has no side's state.
STATE = tl.constexpr(8)  # its first array states which blocks take part (side_state.py)
# Offsets in scratch memory of shares of sums by block and tile, each with the number of shares of a block:
BOUND = tl.constexpr(9)  # |M|_F^2, for the bound t
BOUNDS = tl.constexpr(10)
PARTIAL = tl.constexpr(11)  # squared norm of the work's result
PARTIALS = tl.constexpr(12)
SQUARED_NORM = tl.constexpr(13)  # |G|_F^2
SQUARED_NORMS = tl.constexpr(14)
WHITENED = tl.constexpr(15)  # |F^T U|_F^2
WHITENEDS = tl.constexpr(16)
STATISTICS = tl.constexpr(17)  # address of the factors' statistics [N, 4]
RIGHT_STATISTICS = tl.constexpr(18)  # only where an entry has both sides; STATISTICS is the left one's
BLOCKS = tl.constexpr(19)  # number of the group's blocks
MATRICES = tl.constexpr(20)  # seven of them; most kernels use four
MATRIX_WIDTH = tl.constexpr(8)
WIDTH = tl.constexpr(76)

SIZE_MULTIPLE = tl.constexpr(8)
"""Divisor of rows, columns and depth if matrices are read in vectors; `size` passes it to the compiler."""


@triton.jit
def find(table, count):
    """Return the entry of this program."""
    program = tl.program_id(0).to(tl.int64)
    low = 0
    while count > 1:
        half = count // 2
        if tl.load(table + (low + half) * WIDTH + FIRST_PROGRAM) <= program:
            low += half
        count -= half
    return table + low * WIDTH


@triton.jit
def block_and_tile(entry):
    """Return the block, counted within the group, and the tile of this program."""
    local = tl.program_id(0).to(tl.int64) - tl.load(entry + FIRST_PROGRAM)
    tiles = tl.load(entry + TILES)
    return tl.load(entry + START) + local // tiles, (local % tiles).to(tl.int32)


@triton.jit
def floats(entry, scratch, FIELD: tl.constexpr, TYPE: tl.constexpr = tl.float32):
    """Return a pointer to an array in scratch memory, float32 or float64."""
    return (scratch + tl.load(entry + FIELD)).to(tl.pointer_type(TYPE))


@triton.jit
def takes_part(entry, block, scratch, scales):
    """Return True if the block is active and, for a factor's product, its factor is due for an update."""
    is_due = tl.load(scales + tl.load(entry + FIRST_BLOCK) + block) != 0
    if tl.load(entry + STATE) >= 0:
        is_due = is_due & (tl.load(floats(entry, scratch, STATE) + block) != 0)
    return is_due


@triton.jit
def matrix(entry, INDEX: tl.constexpr, block, scratch, TYPE: tl.constexpr, VECTOR: tl.constexpr):
    """Return a pointer to a block's matrix, and the strides of its rows and columns."""
    field = entry + MATRICES + INDEX * MATRIX_WIDTH
    index = block - tl.load(field + 2)
    inner = tl.load(field + 3)
    offset = index // inner * tl.load(field + 4) + index % inner * tl.load(field + 5)
    address = tl.load(field) + tl.load(field + 1) * scratch.to(tl.int64, bitcast=True)
    SIZE: tl.constexpr = 4 if TYPE == tl.float32 else 2  # noqa: SIM300
    data = (address + offset * SIZE).to(tl.pointer_type(TYPE))
    # A vector of 16 bytes contains 4 float32, or more elements of a smaller dtype.
    STRIDE: tl.constexpr = 16 // SIZE if VECTOR else 1
    BYTES: tl.constexpr = 16 if VECTOR else SIZE
    rows = tl.multiple_of(tl.load(field + 6), STRIDE)
    cols = tl.multiple_of(tl.load(field + 7), STRIDE)
    return tl.multiple_of(data, BYTES), rows, cols


@triton.jit
def pointers(data, row_stride, col_stride, i, j, ORDER: tl.constexpr):
    """Return pointers to the elements (i, j)."""
    if ORDER == "row":
        return data + i[:, None] * row_stride + j[None, :]
    if ORDER == "col":
        return data + i[:, None] + j[None, :] * col_stride
    return data + i[:, None] * row_stride + j[None, :] * col_stride


@triton.jit
def inside(i, j, rows, cols):
    return (i < rows)[:, None] & (j < cols)[None, :]


@triton.jit
def size(entry, FIELD: tl.constexpr, VECTOR: tl.constexpr):
    """Return the number of rows or columns, or the depth."""
    return tl.multiple_of(tl.load(entry + FIELD).to(tl.int32), SIZE_MULTIPLE if VECTOR else 1)
