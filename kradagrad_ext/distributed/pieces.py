"""Which rank owns what: parameters cut into pieces of whole blocks, pieces dealt out by cost.

Integers only, no tensors: ownership can be worked out for any model and any number of ranks from shapes
alone, and every rank works out the same.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kradagrad_ext.config import Config
from kradagrad_ext.plan import ParameterPlan, Shape, group_blocks, plan_parameter

PIECES_A_RANK = 16
"""Of equal cost, at least: what is left over when pieces are dealt out is at most one of them."""

ELEMENT_FLOPS = 64
"""What moments and the write of an element cost, in flops of a factor update: they move some 30 bytes, in
which time a GPU makes about so many."""

REFINE = 2
"""Of the updates that costs are compared by."""

CHUNK_BYTES = 64 << 20
"""Gradients and parameters that one rank takes in at once."""


@dataclass(frozen=True)
class Box:
    """Elements ``offset : offset + shape`` of a parameter, in its own dims."""

    offset: Shape
    shape: Shape

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def intersection(self, other: Box) -> Box | None:
        """What both hold, None if nothing."""
        offset = tuple(map(max, self.offset, other.offset))
        ends = (
            min(a + m, b + n)
            for a, m, b, n in zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        )
        shape = tuple(end - start for start, end in zip(offset, ends, strict=True))
        return Box(offset, shape) if all(size > 0 for size in shape) else None

    def within(self, other: Box) -> tuple[slice, ...]:
        """Where it lies in a tensor that holds `other`, which contains it."""
        return tuple(
            slice(start - base, start - base + size)
            for start, base, size in zip(self.offset, other.offset, self.shape, strict=True)
        )


@dataclass(frozen=True)
class Piece:
    """A box of whole blocks of one parameter, and its plan, as of a parameter of its own.

    Attributes:
        parameter: index among all.
    """

    parameter: int
    box: Box
    plan: ParameterPlan


def pieces_of(parameter: int, whole: ParameterPlan, most: float) -> Iterator[Piece]:
    """A parameter in pieces that cost at most `most`, or consist of one block (of one element)."""
    left = cost_of(whole) / most
    runs: list[list[tuple[int, int]]] = []
    for borders in _borders(whole):
        count = len(borders) - 1
        taken = max(1, count if left <= 1 else int(count / left))
        ends = [*borders[taken:-1:taken], *borders[-1:]] if count else []
        runs.append([(start, end - start) for start, end in zip(borders[:-1:taken], ends, strict=True)])
        left *= taken / max(count, 1)
    for choice in itertools.product(*runs):
        box = Box(tuple(start for start, _ in choice), tuple(size for _, size in choice))
        yield Piece(parameter, box, _plan_of_box(whole, box))


def _borders(plan: ParameterPlan) -> list[Sequence[int]]:
    """For every dim, where it may be cut: between blocks, or any elements where there are none.

    Of dims that are merged, none is cut.
    """
    if not plan.chunks:
        return [range(size + 1) for size in plan.shape]
    borders: list[Sequence[int]] = [(0, size) for size in plan.shape]
    for dims, chunks in zip(plan.merged_dims, plan.chunks, strict=True):
        if len(dims) == 1:
            borders[dims[0]] = (0, *itertools.accumulate(chunks))
    return borders


def _plan_of_box(whole: ParameterPlan, box: Box) -> ParameterPlan:
    """The blocks of `whole` that lie in the box, merged as they are there."""
    chunks = []
    for dims, own in zip(whole.merged_dims, whole.chunks, strict=bool(whole.chunks)):
        start = box.offset[dims[0]] if len(dims) == 1 else 0
        end = start + math.prod(box.shape[dim] for dim in dims)
        ends = itertools.accumulate(own)
        chunks.append(tuple(side for side, last in zip(own, ends, strict=True) if start < last <= end))
    parts = tuple(tuple(lengths.values()) for lengths in lengths_within(whole, box))
    return ParameterPlan(box.shape, whole.merged_dims, whole.factored, tuple(chunks), whole.batch_dims, parts)


def lengths_within(whole: ParameterPlan, box: Box) -> list[dict[int, int]]:
    """For every merged dim that matrices are counted along, the length in a box of each that it holds of."""
    found = []
    for dims, parts in zip(whole.merged_dims, whole.parts, strict=bool(whole.parts)):
        start = box.offset[dims[0]] if len(dims) == 1 else 0
        end = start + math.prod(box.shape[dim] for dim in dims)
        borders = itertools.pairwise((0, *itertools.accumulate(parts)))
        held = {i: min(last, end) - max(first, start) for i, (first, last) in enumerate(borders)}
        found.append({i: length for i, length in held.items() if length > 0})
    return found


def matrices_within(whole: ParameterPlan, box: Box) -> list[int]:
    """Which of a parameter's matrices a box holds of, in row-major order."""
    found = [0]
    for parts, held in zip(whole.parts, lengths_within(whole, box), strict=True):
        found = [before * len(parts) + i for before in found for i in held]
    return found


def divisions_within(whole: ParameterPlan, box: Box) -> list[tuple[int, Shape]]:
    """As `ParameterPlan.divisions`, of what a box holds."""
    pairs = zip(whole.merged_dims, lengths_within(whole, box), strict=bool(whole.parts))
    return [(dims[0], tuple(held.values())) for dims, held in pairs if len(held) > 1]


def cost_of(plan: ParameterPlan) -> int:
    """Flops of a step: factor updates and products (docs/concepts.md), moments and the write."""
    on_blocks = (group.update_flops(REFINE) + group.product_flops for group in group_blocks([plan]))
    return ELEMENT_FLOPS * math.prod(plan.shape) + sum(on_blocks)


def bytes_of(plan: ParameterPlan) -> int:
    """Of the state in float32: two moments, factors and roots."""
    return 8 * math.prod(plan.shape) + sum(group.state_bytes() for group in group_blocks([plan]))


def deal(shapes: Sequence[Shape], configs: Sequence[Config], ranks: int) -> list[list[Piece]]:
    """For every rank its pieces: the costliest first, each to the rank that has the least so far.

    Pieces without blocks come last, and even out bytes instead: they cost little and hold much memory.

    Args:
        shapes, configs: of all parameters.
    """
    plans = [plan_parameter(shape, config) for shape, config in zip(shapes, configs, strict=True)]
    blocked, plain = (
        [
            piece
            for parameter, plan in enumerate(plans)
            if bool(plan.regions) == has_blocks
            for piece in pieces_of(parameter, plan, _most(plans, ranks, has_blocks))
        ]
        for has_blocks in (True, False)
    )
    dealt: list[list[Piece]] = [[] for _ in range(ranks)]
    for pieces, measure in ((blocked, cost_of), (plain, bytes_of)):
        loads = [(sum(measure(piece.plan) for piece in own), rank) for rank, own in enumerate(dealt)]
        heapq.heapify(loads)
        for piece in sorted(pieces, key=lambda piece: -measure(piece.plan)):
            load, rank = heapq.heappop(loads)
            dealt[rank].append(piece)
            heapq.heappush(loads, (load + measure(piece.plan), rank))
    return dealt


def _most(plans: Sequence[ParameterPlan], ranks: int, has_blocks: bool) -> float:
    """What a piece may cost: a share of a rank's cost, or of what its bytes would cost as mere elements."""
    if ranks == 1:
        return math.inf
    in_bytes = sum(map(bytes_of, plans)) * ELEMENT_FLOPS // 8
    return max(sum(map(cost_of, plans)) if has_blocks else in_bytes, 1) / (ranks * PIECES_A_RANK)


def in_chunks(pieces: Sequence[Piece], sizes: Sequence[int], most: int) -> Iterator[list[Piece]]:
    """One rank's pieces, chunk by chunk.

    Args:
        sizes: bytes of an element of every parameter.
        most: bytes of a chunk's gradients and parameters, but for one of a single piece.
    """
    own: list[Piece] = []
    used = 0
    for piece in pieces:
        size = 2 * piece.box.numel * sizes[piece.parameter]
        if own and used + size > most:
            yield own
            own, used = [], 0
        own.append(piece)
        used += size
    if own:
        yield own
