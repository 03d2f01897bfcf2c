"""From shapes to a plan: merged dims, blocks, groups of equal shape, and what they cost.

Integers only, no tensors: a plan can be made for a model that does not fit on this machine.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .config import Config

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Region:
    """A box of a parameter's merged shape that a regular grid of equal blocks fills exactly.

    A dim of 600 in blocks of 256 gives two regions: one of 2 blocks of 256, and one block of 88. Blocks have
    a side of 1 in batch dims.
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
        merged_dims: which of its dims make up every dim of the merged shape, the view that blocks are cut
            from; dims of 1 belong to none.
        factored: for every merged dim, whether it has a factor.
        chunks: for every merged dim, the sides of the blocks along it; none for a parameter that takes the
            grafting method alone.
        batch_dims: how many of the merged dims, from the first, count matrices and are no modes.
        parts: for every merged dim, the lengths of the matrices along it: several where the dim is split, and
            ones along batch dims; none, as `chunks`, for a parameter that is one matrix in any case.
    """

    shape: Shape
    merged_dims: tuple[Shape, ...]
    factored: tuple[bool, ...]
    chunks: tuple[Shape, ...]
    batch_dims: int = 0
    parts: tuple[Shape, ...] = ()

    @property
    def merged_shape(self) -> Shape:
        return tuple(math.prod(self.shape[dim] for dim in dims) for dims in self.merged_dims)

    @functools.cached_property
    def regions(self) -> tuple[Region, ...]:
        """Empty for a parameter that takes the grafting method alone."""
        choices = itertools.product(*map(_runs, self.chunks)) if self.chunks else ()
        return tuple(Region(*map(tuple, zip(*choice, strict=True))) for choice in choices)

    @property
    def matrices(self) -> int:
        """How many the parameter holds: an update's length is each matrix's own."""
        return math.prod(map(len, self.parts))

    @functools.cached_property
    def divisions(self) -> tuple[tuple[int, Shape], ...]:
        """The parameter's dims along which it holds several matrices, and their lengths there."""
        divided = ((dims[0], own) for dims, own in zip(self.merged_dims, self.parts, strict=False))
        return tuple((dim, own) for dim, own in divided if len(own) > 1)

    def matrices_of(self, region: Region) -> list[int]:
        """For every block of a region, the matrix that it is part of."""
        along = []
        for offset, count, side, own in zip(
            region.offset, region.grid, region.block_shape, self.parts, strict=True
        ):
            ends = list(itertools.accumulate(own))
            along.append([bisect.bisect_right(ends, offset + i * side) for i in range(count)])
        found = [0]
        for places, own in zip(along, self.parts, strict=True):
            found = [before * len(own) + place for before in found for place in places]
        return found


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
    def modes(self) -> list[int]:
        """Those with a factor."""
        return [mode for mode, factored in enumerate(self.factored) if factored]

    @functools.cached_property
    def parameters(self) -> list[int]:
        """Of every member."""
        return [member.parameter for member in self.members]

    @property
    def factor_elements(self) -> int:
        """Elements of all factors of the group; the roots have as many."""
        return self.blocks * sum(d * d for d in self.factor_dims)

    def state_bytes(self, factor_size: int = 4, root_size: int = 4) -> int:
        """Bytes of the group's factors and roots, from the bytes of an element of each."""
        return self.factor_elements * (factor_size + root_size)

    def update_flops(self, refine: int) -> int:
        """Least flops of a factor update by products, undamped and uncoupled (docs/concepts.md).

        For every mode B takes 2 d^2 k, H d^2 k, the polynomial d^3 a product, F R 2 d^3.
        """
        elements = math.prod(self.block_shape)
        return self.blocks * sum(
            3 * d * elements + (2 + iteration_products(refine)) * d**3 for d in self.factor_dims
        )

    @property
    def product_flops(self) -> int:
        """Flops of the blocks' product with the roots of all modes: 2 d^2 k for every mode."""
        return self.blocks * sum(2 * d * math.prod(self.block_shape) for d in self.factor_dims)


def iteration_products(refine: int) -> int:
    """Products of symmetric matrices that so many steps of the iteration take (docs/concepts.md).

    The first step takes none. In the second Z = T still, and T^2 is a combination of T and Y T: where it is
    the last, two products make its Z. Otherwise each step takes three.
    """
    return 2 if refine == 2 else 3 * (refine - 1)


def merge_dims(shape: Shape, limit: int, keep_matrices: bool) -> tuple[Shape, ...]:
    """Group neighbouring dims, left to right, while their product stays within `limit`; drop dims of 1.

    Args:
        shape: a parameter's shape.
        limit: the block size.
        keep_matrices: leave at least two groups to a tensor that has two dims, so that a small matrix is not
            turned into a vector.

    Returns:
        The dims of every group.
    """
    dims = [dim for dim, size in enumerate(shape) if size != 1]
    merged: list[Shape] = []
    for dim in dims:
        if merged and math.prod(shape[own] for own in (*merged[-1], dim)) <= limit:
            merged[-1] = (*merged[-1], dim)
        else:
            merged.append((dim,))
    if keep_matrices and len(merged) == 1 and len(dims) > 1:
        return (dims[0],), tuple(dims[1:])
    return tuple(merged)


def cut(length: int, block: int) -> Shape:
    """Sides of the blocks along a dim, the rest last."""
    whole, rest = divmod(length, block)
    return (block,) * whole + ((rest,) if rest else ())


def _runs(sides: Shape) -> list[tuple[int, int, int]]:
    """Equal sides in a row as (offset, number, side)."""
    runs, offset = [], 0
    for side, equal in itertools.groupby(sides):
        count = len(list(equal))
        runs.append((offset, count, side))
        offset += count * side
    return runs


def plan_parameter(shape: Sequence[int], config: Config) -> ParameterPlan:
    """The plan of one parameter, from its shape and its group's options.

    Raises:
        ValueError: `batch_dims`, `split` or `split_dim` do not fit the shape.
    """
    shape = tuple(shape)
    parts = _parts(shape, config)
    first = config.batch_dims
    batch = tuple((dim,) for dim in range(first) if shape[dim] != 1)
    merged = (*batch, *_merge(shape, first, parts, config))
    lengths = tuple(
        parts.get(dims[0], (math.prod(shape[dim] for dim in dims),)) for dims in merged[len(batch) :]
    )
    factored = tuple(max(own) <= config.max_factor_dim for own in lengths)
    preconditioned = config.precondition and any(factored) and math.prod(shape) > 0
    flags = (*(False for _ in batch), *factored)
    if not preconditioned or (len(factored) == 1 and not config.precondition_1d):
        return ParameterPlan(shape, merged, flags, (), len(batch))
    one_by_one = [(1,) * shape[dim] for (dim,) in batch]
    chunks = list(one_by_one)
    for own, has_factor in zip(lengths, factored, strict=True):
        cuts = (cut(length, config.block_size) if has_factor else (length,) for length in own)
        chunks.append(tuple(itertools.chain(*cuts)))
    return ParameterPlan(shape, merged, flags, tuple(chunks), len(batch), (*one_by_one, *lengths))


def _parts(shape: Shape, config: Config) -> dict[int, Shape]:
    """Lengths of the parts of the dim that is split, if any is; checks that the options fit the shape."""
    got = f"of a {list(shape)} parameter"
    if config.batch_dims > len(shape):
        raise ValueError(f"KrADagrad: `batch_dims` must be dims {got}, got {config.batch_dims}")
    if config.split == 1:
        return {}
    dim = config.split_dim + (len(shape) if config.split_dim < 0 else 0)
    if not config.batch_dims <= dim < len(shape):
        raise ValueError(
            f"KrADagrad: `split_dim` must be a dim {got} after its {config.batch_dims} batch dims, "
            f"got {config.split_dim}"
        )
    size, split = shape[dim], config.split
    lengths = (size // split,) * split if isinstance(split, int) else tuple(split)
    if sum(lengths) != size or 0 in lengths:
        raise ValueError(f"KrADagrad: `split` must make up dim {dim} {got} in whole, got {split!r}")
    return {dim: lengths}


def _merge(shape: Shape, first: int, parts: Mapping[int, Shape], config: Config) -> tuple[Shape, ...]:
    """The dims from `first` on, merged where that is wanted; one that is split is merged with none."""
    if not config.merge_dims:
        return tuple((dim,) for dim in range(first, len(shape)) if shape[dim] != 1)
    merged: list[Shape] = []
    start = first
    for end in (*parts, len(shape)):
        own = merge_dims(shape[start:end], config.block_size, keep_matrices=not parts)
        merged += [tuple(start + dim for dim in dims) for dims in own]
        merged += [(end,)] if end in parts else []
        start = end + 1
    return tuple(merged)


def group_blocks(plans: Sequence[ParameterPlan]) -> tuple[Group, ...]:
    """Gather the blocks of equal shape, parameters in order, blocks of a region in row-major order.

    Batch dims are part of the grid alone: an expert's matrix is a block like any other.
    """
    members: dict[tuple[Shape, tuple[bool, ...]], list[Member]] = {}
    for parameter, plan in enumerate(plans):
        for index, region in enumerate(plan.regions):
            key = (region.block_shape[plan.batch_dims :], plan.factored[plan.batch_dims :])
            batch = members.setdefault(key, [])
            start = batch[-1].start + batch[-1].region.blocks if batch else 0
            batch.append(Member(parameter, index, region, start))
    return tuple(Group(shape, factored, tuple(batch)) for (shape, factored), batch in members.items())
