"""Ownership: parameters are cut into pieces of whole blocks, which are assigned to ranks by cost.

Integers only, no tensors: ownership can be computed for any model and any number of ranks from shapes alone,
and every rank computes the same.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kradagrad_ext.blocking import Blocking, Shape, blocking_of, group_by_shape
from kradagrad_ext.config import Config

PIECES_A_RANK = 16
"""Least number of pieces per rank, of equal cost: the imbalance between ranks is one piece at most."""

ELEMENT_FLOPS = 64
"""Cost of moments and the write of an element, in flops of a factor update: they move about 30 bytes, which
takes a GPU about as long as this many flops."""

REFINE = 2
"""`refine` of the factor updates whose costs are compared."""

CHUNK_BYTES = 64 << 20
"""Bytes of gradients and parameters that one rank receives in one chunk."""


@dataclass(frozen=True)
class Box:
    """The elements ``offset : offset + shape`` of a parameter, in its unmerged dims."""

    offset: Shape
    shape: Shape

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def intersection(self, other: Box) -> Box | None:
        """Return the box of the elements of both, None if there are none."""
        offset = tuple(map(max, self.offset, other.offset))
        ends = (
            min(a + m, b + n)
            for a, m, b, n in zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        )
        shape = tuple(end - start for start, end in zip(offset, ends, strict=True))
        return Box(offset, shape) if all(size > 0 for size in shape) else None

    def within(self, other: Box) -> tuple[slice, ...]:
        """Return the slices of this box in a tensor that holds the box `other`, which contains it."""
        return tuple(
            slice(start - base, start - base + size)
            for start, base, size in zip(self.offset, other.offset, self.shape, strict=True)
        )


@dataclass(frozen=True)
class Piece:
    """A box of whole blocks of one parameter.

    Attributes:
        parameter: index of the parameter among all.
        blocking: that of the box, as if it were a parameter.
    """

    parameter: int
    box: Box
    blocking: Blocking


def pieces_of(parameter: int, whole: Blocking, most: float) -> Iterator[Piece]:
    """Cut a parameter into pieces that cost at most `most`, or consist of one block (or of one element)."""
    left = cost_of(whole) / most
    runs: list[list[tuple[int, int]]] = []
    for borders in _borders(whole):
        count = len(borders) - 1
        step = max(1, count if left <= 1 else int(count / left))
        ends = [*borders[step:-1:step], *borders[-1:]] if count else []
        runs.append([(start, end - start) for start, end in zip(borders[:-1:step], ends, strict=True)])
        left *= step / max(count, 1)
    for choice in itertools.product(*runs):
        box = Box(tuple(start for start, _ in choice), tuple(size for _, size in choice))
        yield Piece(parameter, box, _blocking_of_box(whole, box))


def _borders(blocking: Blocking) -> list[Sequence[int]]:
    """Return for every dim where it may be cut: between blocks, or between any elements without blocks.

    Merged dims are not cut.
    """
    if not blocking.chunks:
        return [range(size + 1) for size in blocking.shape]
    borders: list[Sequence[int]] = [(0, size) for size in blocking.shape]
    for dims, chunks in zip(blocking.merged_dims, blocking.chunks, strict=True):
        if len(dims) == 1:
            borders[dims[0]] = (0, *itertools.accumulate(chunks))
    return borders


def _blocking_of_box(whole: Blocking, box: Box) -> Blocking:
    """Return the blocking of the box: the blocks of `whole` in it, with the same merged dims."""
    chunks = []
    for dims, sides in zip(whole.merged_dims, whole.chunks, strict=bool(whole.chunks)):
        start = box.offset[dims[0]] if len(dims) == 1 else 0
        end = start + math.prod(box.shape[dim] for dim in dims)
        ends = itertools.accumulate(sides)
        chunks.append(tuple(side for side, last in zip(sides, ends, strict=True) if start < last <= end))
    parts = tuple(tuple(lengths.values()) for lengths in lengths_within(whole, box))
    return Blocking(box.shape, whole.merged_dims, whole.factored, tuple(chunks), whole.batch_dims, parts)


def lengths_within(whole: Blocking, box: Box) -> list[dict[int, int]]:
    """Return for every merged dim the lengths in a box of its matrices, by index, those outside left out."""
    lengths = []
    for dims, parts in zip(whole.merged_dims, whole.parts, strict=bool(whole.parts)):
        start = box.offset[dims[0]] if len(dims) == 1 else 0
        end = start + math.prod(box.shape[dim] for dim in dims)
        borders = itertools.pairwise((0, *itertools.accumulate(parts)))
        overlaps = {i: min(last, end) - max(first, start) for i, (first, last) in enumerate(borders)}
        lengths.append({i: length for i, length in overlaps.items() if length > 0})
    return lengths


def matrices_within(whole: Blocking, box: Box) -> list[int]:
    """Return the indices of a parameter's matrices that have elements in a box, in row-major order."""
    matrices = [0]
    for parts, lengths in zip(whole.parts, lengths_within(whole, box), strict=True):
        matrices = [before * len(parts) + i for before in matrices for i in lengths]
    return matrices


def divisions_within(whole: Blocking, box: Box) -> list[tuple[int, Shape]]:
    """Return the `Blocking.divisions` of a box."""
    pairs = zip(whole.merged_dims, lengths_within(whole, box), strict=bool(whole.parts))
    return [(dims[0], tuple(lengths.values())) for dims, lengths in pairs if len(lengths) > 1]


def cost_of(blocking: Blocking) -> int:
    """Return the flops of a step: factor updates and products (docs/concepts.md), moments and the write."""
    on_blocks = (group.update_flops(REFINE) + group.product_flops for group in group_by_shape([blocking]))
    return ELEMENT_FLOPS * math.prod(blocking.shape) + sum(on_blocks)


def bytes_of(blocking: Blocking) -> int:
    """Return the bytes of the state in float32: two moments, factors and roots."""
    return 8 * math.prod(blocking.shape) + sum(group.state_bytes() for group in group_by_shape([blocking]))


def assign_pieces(shapes: Sequence[Shape], configs: Sequence[Config], ranks: int) -> list[list[Piece]]:
    """Return the pieces of every rank: the costliest piece first, each to the rank with the least so far.

    Pieces without blocks come last and balance bytes instead: they cost little and need much memory.

    Args:
        shapes, configs: those of all parameters.
    """
    blockings = [blocking_of(shape, config) for shape, config in zip(shapes, configs, strict=True)]
    blocked, plain = (
        [
            piece
            for parameter, blocking in enumerate(blockings)
            if bool(blocking.grids) == has_blocks
            for piece in pieces_of(parameter, blocking, _max_piece_cost(blockings, ranks, has_blocks))
        ]
        for has_blocks in (True, False)
    )
    assigned: list[list[Piece]] = [[] for _ in range(ranks)]
    for pieces, measure in ((blocked, cost_of), (plain, bytes_of)):
        loads = [
            (sum(measure(piece.blocking) for piece in share), rank) for rank, share in enumerate(assigned)
        ]
        heapq.heapify(loads)
        for piece in sorted(pieces, key=lambda piece: -measure(piece.blocking)):
            load, rank = heapq.heappop(loads)
            assigned[rank].append(piece)
            heapq.heappush(loads, (load + measure(piece.blocking), rank))
    return assigned


def _max_piece_cost(blockings: Sequence[Blocking], ranks: int, has_blocks: bool) -> float:
    """Return the largest cost of a piece: a share of a rank's cost, or of that of its bytes as elements."""
    if ranks == 1:
        return math.inf
    in_bytes = sum(map(bytes_of, blockings)) * ELEMENT_FLOPS // 8
    return max(sum(map(cost_of, blockings)) if has_blocks else in_bytes, 1) / (ranks * PIECES_A_RANK)


def split_by_bytes(pieces: Sequence[Piece], sizes: Sequence[int], most: int) -> Iterator[list[Piece]]:
    """Yield one rank's pieces, chunk by chunk.

    Args:
        sizes: bytes of an element of every parameter.
        most: largest number of bytes of a chunk's gradients and parameters, except of a single piece.
    """
    chunk: list[Piece] = []
    used = 0
    for piece in pieces:
        size = 2 * piece.box.numel * sizes[piece.parameter]
        if chunk and used + size > most:
            yield chunk
            chunk, used = [], 0
        chunk.append(piece)
        used += size
    if chunk:
        yield chunk
