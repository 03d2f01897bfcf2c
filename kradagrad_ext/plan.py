"""From shapes to a plan: merged dims, blocks, groups of equal shape, and what they cost.

Integers only, no tensors: a plan can be made for a model that does not fit on this machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .config import Config

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Region:
    """A box of a parameter's merged shape that a regular grid of equal blocks fills exactly.

    A dim of 600 in blocks of 256 gives two regions: one of 2 blocks of 256, and one block of 88.
    """

    offset: Shape
    grid: Shape
    block_shape: Shape

    @property
    def blocks(self) -> int:
        """Number of blocks, in row-major order of the grid."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class ParameterPlan:
    """How one parameter is preconditioned.

    Attributes:
        shape: the parameter's own.
        merged_shape: after merging neighbouring dims; the view the blocks are cut from.
        factored: for every merged dim, whether it has a factor.
        regions: empty for a parameter that takes the grafting method alone.
    """

    shape: Shape
    merged_shape: Shape
    factored: tuple[bool, ...]
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class Member:
    """The blocks ``start : start + region.blocks`` of a group, and the parameter they come from."""

    parameter: int
    region_index: int
    region: Region
    start: int


@dataclass(frozen=True)
class Group:
    """All blocks of equal shape: they live in one batch and are processed by one call."""

    block_shape: Shape
    factored: tuple[bool, ...]
    members: tuple[Member, ...]

    @property
    def blocks(self) -> int:
        return sum(member.region.blocks for member in self.members)

    @property
    def factor_dims(self) -> Shape:
        """Side of every mode's factor; 0 for a mode without one."""
        return tuple(
            d if factored else 0 for d, factored in zip(self.block_shape, self.factored, strict=True)
        )

    @property
    def factor_elements(self) -> int:
        """Elements of all factors of the group; the roots have as many."""
        return self.blocks * sum(d * d for d in self.factor_dims)

    def state_bytes(self, factor_size: int = 4, root_size: int = 4) -> int:
        """Bytes of the group's factors and roots, from the bytes of an element of each."""
        return self.factor_elements * (factor_size + root_size)

    @property
    def step_flops(self) -> int:
        """Least flops of one fused factor update and product: 5 d^2 k for every mode (docs/concepts.md)."""
        elements = math.prod(self.block_shape)
        return self.blocks * sum(5 * d * elements for d in self.factor_dims)


def merge_dims(shape: Shape, limit: int, keep_matrices: bool) -> Shape:
    """Multiply neighbouring dims, left to right, while the product stays within `limit`; drop dims of 1.

    Args:
        shape: a parameter's shape.
        limit: the block size.
        keep_matrices: leave at least two dims to a tensor that has them, so that a small matrix is not
            turned into a vector. The published code does turn it.
    """
    dims = [d for d in shape if d != 1]
    merged: list[int] = []
    for d in dims:
        if merged and merged[-1] * d <= limit:
            merged[-1] *= d
        else:
            merged.append(d)
    if keep_matrices and len(merged) == 1 and len(dims) > 1:
        return dims[0], math.prod(dims[1:])
    return tuple(merged)


def cut(length: int, block: int) -> list[tuple[int, int, int]]:
    """Cut a dim into runs of equal chunks, as (offset, number of chunks, chunk length); the rest is last."""
    whole, rest = divmod(length, block)
    runs = [(0, whole, block)] if whole else []
    return runs + ([(whole * block, 1, rest)] if rest else [])


def plan_parameter(shape: Sequence[int], config: Config) -> ParameterPlan:
    """The plan of one parameter, from its shape and its group's options."""
    shape = tuple(shape)
    if config.merge_dims:
        merged = merge_dims(shape, config.block_size, keep_matrices=not config.published)
    else:
        merged = tuple(d for d in shape if d != 1)
    factored = tuple(d <= config.max_factor_dim for d in merged)
    preconditioned = config.precondition and any(factored) and math.prod(shape) > 0
    if not preconditioned or (len(merged) == 1 and not config.precondition_1d):
        return ParameterPlan(shape, merged, factored, ())
    runs = [
        cut(d, config.block_size) if has_factor else [(0, 1, d)]
        for d, has_factor in zip(merged, factored, strict=True)
    ]
    regions = []
    for choice in itertools.product(*runs):
        offset, grid, block_shape = zip(*choice, strict=True)
        regions.append(Region(offset, grid, block_shape))
    return ParameterPlan(shape, merged, factored, tuple(regions))


def group_blocks(plans: Sequence[ParameterPlan]) -> tuple[Group, ...]:
    """Gather the blocks of equal shape, parameters in order, blocks of a region in row-major order."""
    members: dict[tuple[Shape, tuple[bool, ...]], list[Member]] = {}
    for parameter, plan in enumerate(plans):
        for index, region in enumerate(plan.regions):
            batch = members.setdefault((region.block_shape, plan.factored), [])
            start = batch[-1].start + batch[-1].region.blocks if batch else 0
            batch.append(Member(parameter, index, region, start))
    return tuple(Group(shape, factored, tuple(batch)) for (shape, factored), batch in members.items())
