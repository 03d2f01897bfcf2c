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
from kradagrad_ext.plan import ParameterPlan, Region, Shape, cut, group_blocks, plan_parameter

PIECES_A_RANK = 16
"""Of equal cost, at least: what is left over when pieces are dealt out is at most one of them."""

ELEMENT_FLOPS = 64
"""What moments and the write of an element cost, in flops of a factor update: they move some 30 bytes, in
which time a GPU makes about so many."""


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


def pieces_of(parameter: int, whole: ParameterPlan, config: Config, most: float) -> Iterator[Piece]:
    """A parameter in pieces that cost at most `most`, or consist of one block (of one element)."""
    shape, units = whole.shape, _units(whole, config)
    counts = [-(-size // unit) for size, unit in zip(shape, units, strict=True)]
    left = cost_of(whole) / most
    runs: list[list[tuple[int, int]]] = []
    for size, unit, count in zip(shape, units, counts, strict=True):
        taken = max(1, count if left <= 1 else int(count / left))
        step = taken * unit
        runs.append([(start, min(step, size - start)) for start in range(0, size, step)])
        left *= taken / max(count, 1)
    for choice in itertools.product(*runs):
        box = Box(tuple(start for start, _ in choice), tuple(size for _, size in choice))
        plan = _plan_of_box(whole, box, config)
        yield Piece(parameter, box, plan)


def dims_of_merged(plan: ParameterPlan) -> list[list[int]]:
    """For every merged dim, the parameter's dims that make it up; dims of 1 belong to none."""
    dims = iter([dim for dim, size in enumerate(plan.shape) if size != 1])
    found = []
    for merged in plan.merged_shape:
        own = [next(dims)]
        while math.prod(plan.shape[dim] for dim in own) < merged:
            own.append(next(dims))
        found.append(own)
    return found


def _units(plan: ParameterPlan, config: Config) -> list[int]:
    """For every dim, the multiples at which it may be cut: blocks, or any element where there are none."""
    if not plan.regions:
        return [1] * len(plan.shape)
    units = [max(size, 1) for size in plan.shape]
    for own, factored in zip(dims_of_merged(plan), plan.factored, strict=True):
        if len(own) == 1 and factored:
            units[own[0]] = config.block_size
    return units


def _plan_of_box(whole: ParameterPlan, box: Box, config: Config) -> ParameterPlan:
    """The blocks of `whole` that lie in the box, merged as they are there."""
    if math.prod(whole.shape) == 0:
        return ParameterPlan(box.shape, whole.merged_shape, whole.factored, ())
    merged = tuple(math.prod(box.shape[dim] for dim in own) for own in dims_of_merged(whole))
    regions = [
        Region(*map(tuple, zip(*choice, strict=True)))
        for choice in itertools.product(
            *(
                cut(size, config.block_size) if factored else [(0, 1, size)]
                for size, factored in zip(merged, whole.factored, strict=True)
            )
        )
        if whole.regions
    ]
    return ParameterPlan(box.shape, merged, whole.factored, tuple(regions))


def cost_of(plan: ParameterPlan) -> int:
    """Flops of a step: factor updates and products (docs/concepts.md), moments and the write."""
    return ELEMENT_FLOPS * math.prod(plan.shape) + sum(group.step_flops for group in group_blocks([plan]))


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
            for parameter, (plan, config) in enumerate(zip(plans, configs, strict=True))
            if bool(plan.regions) == has_blocks
            for piece in pieces_of(parameter, plan, config, _most(plans, ranks, has_blocks))
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
