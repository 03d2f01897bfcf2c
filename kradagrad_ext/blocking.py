"""From shapes to blockings: merged dims, block grids, shape groups, and their cost.

Integers only, no tensors: a model that does not fit on this machine can be cut, too.
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
class BlockGrid:
    """A box of a parameter's merged shape that a regular grid of equal blocks fills exactly.

    A dim of 600 in blocks of 256 gives two block grids: one of 2 blocks of 256, and one of a single block of
    88. Blocks have a side of 1 in batch dims.

    Attributes:
        offset: of the box in the merged shape.  counts: number of blocks along every merged dim.
        block_shape: sides of a block along every merged dim.
    """

    offset: Shape
    counts: Shape
    block_shape: Shape

    @property
    def blocks(self) -> int:
        """Number of blocks; they are numbered in row-major order."""
        return math.prod(self.counts)


@dataclass(frozen=True)
class Blocking:
    """How one parameter is cut into matrices and blocks.

    Attributes:
        shape: of the parameter.
        merged_dims: for every dim of the merged shape, the parameter's dims that it is the product of; dims
            of 1 belong to none. Blocks are cut from the view of the merged shape.
        factored: for every merged dim, true if it has a factor.
        chunks: for every merged dim, the sides of the blocks along it; empty for a parameter that takes the
            grafting method's update.
        batch_dims: number of leading merged dims that count matrices and are not modes.
        parts: for every merged dim, the lengths of the matrices along it: several along a dim that is split,
            ones along batch dims. Empty, like `chunks`, for a parameter without blocks: it is one matrix.
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
    def grids(self) -> tuple[BlockGrid, ...]:
        """The block grids; empty for a parameter that takes the grafting method's update."""
        choices = itertools.product(*map(_runs, self.chunks)) if self.chunks else ()
        return tuple(BlockGrid(*map(tuple, zip(*choice, strict=True))) for choice in choices)

    @property
    def matrices(self) -> int:
        """Number of matrices in the parameter; each matrix's update has a separate length."""
        return math.prod(map(len, self.parts))

    @functools.cached_property
    def divisions(self) -> tuple[tuple[int, Shape], ...]:
        """(dim, lengths) for each dim of the parameter along which it has several matrices."""
        divided = ((dims[0], lengths) for dims, lengths in zip(self.merged_dims, self.parts, strict=False))
        return tuple((dim, lengths) for dim, lengths in divided if len(lengths) > 1)

    def matrices_of(self, grid: BlockGrid) -> list[int]:
        """Return the index of the matrix of every block of a block grid."""
        along = []
        for offset, count, side, lengths in zip(
            grid.offset, grid.counts, grid.block_shape, self.parts, strict=True
        ):
            ends = list(itertools.accumulate(lengths))
            along.append([bisect.bisect_right(ends, offset + i * side) for i in range(count)])
        matrices = [0]
        for places, lengths in zip(along, self.parts, strict=True):
            matrices = [before * len(lengths) + place for before in matrices for place in places]
        return matrices


@dataclass(frozen=True)
class GroupMember:
    """The blocks ``start : start + grid.blocks`` of a shape group; they are one block grid of a parameter."""

    parameter: int
    grid_index: int
    grid: BlockGrid
    start: int


@dataclass(frozen=True)
class ShapeGroup:
    """All blocks of one shape: their state is stacked and one call processes them."""

    block_shape: Shape
    factored: tuple[bool, ...]
    members: tuple[GroupMember, ...]

    @property
    def blocks(self) -> int:
        return sum(member.grid.blocks for member in self.members)

    @property
    def factor_dims(self) -> Shape:
        """Side of every mode's factor; 0 for a mode without a factor."""
        return tuple(
            d if factored else 0 for d, factored in zip(self.block_shape, self.factored, strict=True)
        )

    @property
    def modes(self) -> list[int]:
        """The modes with a factor."""
        return [mode for mode, factored in enumerate(self.factored) if factored]

    @functools.cached_property
    def parameters(self) -> list[int]:
        """The parameter of every member."""
        return [member.parameter for member in self.members]

    @property
    def factor_elements(self) -> int:
        """Number of elements of all factors; the roots have as many."""
        return self.blocks * sum(d * d for d in self.factor_dims)

    def state_bytes(self, factor_size: int = 4, root_size: int = 4) -> int:
        """Return the bytes of all factors and roots, from the bytes of one element of each."""
        return self.factor_elements * (factor_size + root_size)

    def update_flops(self, refine: int) -> int:
        """Return the least flops of a factor update by products, undamped and uncoupled (docs/concepts.md).

        For every mode B takes 2 d^2 k, H d^2 k, the polynomial d^3 a product, F R 2 d^3.
        """
        elements = math.prod(self.block_shape)
        return self.blocks * sum(
            3 * d * elements + (2 + iteration_products(refine)) * d**3 for d in self.factor_dims
        )

    @property
    def product_flops(self) -> int:
        """Number of flops of the blocks' product with the roots of all modes: 2 d^2 k for every mode."""
        return self.blocks * sum(2 * d * math.prod(self.block_shape) for d in self.factor_dims)


def iteration_products(refine: int) -> int:
    """Return how many products of symmetric matrices `refine` iteration steps take (docs/concepts.md).

    The first step takes none. In the second, Z = T still holds, and T^2 is a combination of T and Y T: if it
    is the last step, two products compute its Z. Otherwise each step takes three.
    """
    return 2 if refine == 2 else 3 * (refine - 1)


def merge_dims(shape: Shape, limit: int, keep_matrices: bool) -> tuple[Shape, ...]:
    """Merge neighbouring dims, left to right, while their product stays within `limit`; drop dims of 1.

    Args:
        shape: a parameter's shape.
        limit: the block size.
        keep_matrices: leave at least two merged dims to a tensor with two dims or more, so that a small
            matrix does not become a vector.

    Returns:
        The dims that make up every merged dim.
    """
    dims = [dim for dim, size in enumerate(shape) if size != 1]
    merged: list[Shape] = []
    for dim in dims:
        if merged and math.prod(shape[each] for each in (*merged[-1], dim)) <= limit:
            merged[-1] = (*merged[-1], dim)
        else:
            merged.append((dim,))
    if keep_matrices and len(merged) == 1 and len(dims) > 1:
        return (dims[0],), tuple(dims[1:])
    return tuple(merged)


def cut(length: int, block: int) -> Shape:
    """Return the sides of the blocks along a dim, the rest last."""
    whole, rest = divmod(length, block)
    return (block,) * whole + ((rest,) if rest else ())


def _runs(sides: Shape) -> list[tuple[int, int, int]]:
    """Return each run of equal sides as (offset, count, side)."""
    runs, offset = [], 0
    for side, equal in itertools.groupby(sides):
        count = len(list(equal))
        runs.append((offset, count, side))
        offset += count * side
    return runs


def blocking_of(shape: Sequence[int], config: Config) -> Blocking:
    """Return the blocking of one parameter, from its shape and its parameter group's options.

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
    factored = tuple(max(sizes) <= config.max_factor_dim for sizes in lengths)
    preconditioned = config.precondition and any(factored) and math.prod(shape) > 0
    flags = (*(False for _ in batch), *factored)
    if not preconditioned or (len(factored) == 1 and not config.precondition_1d):
        return Blocking(shape, merged, flags, (), len(batch))
    one_by_one = [(1,) * shape[dim] for (dim,) in batch]
    chunks = list(one_by_one)
    for sizes, has_factor in zip(lengths, factored, strict=True):
        cuts = (cut(length, config.block_size) if has_factor else (length,) for length in sizes)
        chunks.append(tuple(itertools.chain(*cuts)))
    return Blocking(shape, merged, flags, tuple(chunks), len(batch), (*one_by_one, *lengths))


def _parts(shape: Shape, config: Config) -> dict[int, Shape]:
    """Return {split dim: lengths of its parts} or {}; raise ValueError if options do not fit the shape."""
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
        raise ValueError(f"KrADagrad: `split` must add up to dim {dim} {got}, got {split!r}")
    return {dim: lengths}


def _merge(shape: Shape, first: int, parts: Mapping[int, Shape], config: Config) -> tuple[Shape, ...]:
    """Merge the dims from `first` on if the options ask for it; never merge the dim that is split."""
    if not config.merge_dims:
        return tuple((dim,) for dim in range(first, len(shape)) if shape[dim] != 1)
    merged: list[Shape] = []
    start = first
    for end in (*parts, len(shape)):
        between = merge_dims(shape[start:end], config.block_size, keep_matrices=not parts)
        merged += [tuple(start + dim for dim in dims) for dims in between]
        merged += [(end,)] if end in parts else []
        start = end + 1
    return tuple(merged)


def group_by_shape(blockings: Sequence[Blocking]) -> tuple[ShapeGroup, ...]:
    """Gather blocks into shape groups, parameters in order, blocks of a block grid in row-major order.

    Batch dims are part of the grid only: an expert's matrix is a block like any other.
    """
    members: dict[tuple[Shape, tuple[bool, ...]], list[GroupMember]] = {}
    for parameter, blocking in enumerate(blockings):
        for index, grid in enumerate(blocking.grids):
            key = (grid.block_shape[blocking.batch_dims :], blocking.factored[blocking.batch_dims :])
            group = members.setdefault(key, [])
            start = group[-1].start + group[-1].grid.blocks if group else 0
            group.append(GroupMember(parameter, index, grid, start))
    return tuple(ShapeGroup(shape, factored, tuple(group)) for (shape, factored), group in members.items())
