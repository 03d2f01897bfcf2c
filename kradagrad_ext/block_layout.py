"""Layouts of blocks in parameters' memory, and views of blocks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .blocking import BlockGrid, Blocking, Shape


@dataclass(frozen=True)
class BlockLayout:
    """How the blocks of one block grid are placed in a contiguous parameter.

    Attributes:
        merged_shape: of the parameter.
        cuts: (dim, offset, length) for each dim in which the grid's box is shorter than the parameter.
        split: shape of the box as ``grid[0], side[0], grid[1], side[1], ...``, without sides of batch dims.
        order: the permutation of these dims that puts those of the grid first.
        size, stride, offset: of the resulting view.
    """

    merged_shape: Shape
    cuts: tuple[Shape, ...]
    split: Shape
    order: Shape
    size: Shape
    stride: Shape
    offset: int

    @classmethod
    def of(cls, blocking: Blocking, grid: BlockGrid) -> BlockLayout | None:
        """Return the layout of one block grid; None for a single block that is the whole parameter."""
        merged, sides, batch = blocking.merged_shape, grid.block_shape, blocking.batch_dims
        if sides == blocking.shape:
            return None
        ends = [(o, g * d) for o, g, d in zip(grid.offset, grid.counts, sides, strict=True)]
        cuts = [(dim, *end) for dim, end in enumerate(ends) if end[1] != merged[dim]]
        pairs = zip(grid.counts[batch:], sides[batch:], strict=True)
        split = (*grid.counts[:batch], *itertools.chain(*pairs))
        modes = range(batch, len(split), 2)
        order = (*range(batch), *modes, *(dim + 1 for dim in modes))
        steps = [math.prod(merged[dim + 1 :]) for dim in range(len(merged))]
        stride = (*(step * d for step, d in zip(steps, sides, strict=True)), *steps[batch:])
        offset = sum(step * o for step, o in zip(steps, grid.offset, strict=True))
        return cls(merged, tuple(cuts), split, order, (*grid.counts, *sides[batch:]), stride, offset)

    def view(self, tensor: Tensor) -> Tensor:
        """Return the blocks ``[*grid, *block_shape]`` of a tensor of the parameter's shape.

        They are a view of the tensor if it is contiguous, else of a contiguous copy.
        """
        whole = tensor.contiguous()
        return whole.as_strided(self.size, self.stride, whole.storage_offset() + self.offset)

    def view_in_graph(self, tensor: Tensor) -> Tensor:
        """Return the same as `view`, by operations that torch.compile can write through."""
        whole = tensor.contiguous().view(self.merged_shape)
        for dim, offset, length in self.cuts:
            whole = whole.narrow(dim, offset, length)
        return whole.view(self.split).permute(self.order)


def divided(tensor: Tensor, divisions: Sequence[tuple[int, Shape]]) -> list[Tensor]:
    """Return views of a tensor's parts, in row-major order; `divisions` are (dim, lengths of its parts)."""
    parts = [tensor]
    for dim, lengths in divisions:
        parts = [part for whole in parts for part in whole.split_with_sizes(lengths, dim)]
    return parts


@dataclass(frozen=True)
class Blocked:
    """One tensor per parameter of a param batch, and views of their blocks, a list for each shape group."""

    tensors: list[Tensor]
    views: list[list[Tensor]]


@dataclass(frozen=True)
class Workspace:
    """Buffers for the directions and updates of a param batch's step.

    Attributes:
        written: buffers for directions that are not state tensors, one per parameter; empty if the directions
            are the momenta.
        directions: the tensors that are preconditioned.
        updates: the preconditioned directions; an empty tensor for a parameter without blocks. They overwrite
            the directions in `written`.
        fallbacks: tensors that replace updates that are not sound; None if the directions do.
    """

    written: list[Tensor]
    directions: Blocked
    updates: Blocked
    fallbacks: list[Tensor] | None
