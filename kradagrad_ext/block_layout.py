"""Where the blocks of parameters lie, and views of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .plan import ParameterPlan, Region, Shape


@dataclass(frozen=True)
class BlockLayout:
    """How the blocks of one region lie in a contiguous parameter.

    Attributes:
        merged_shape: of the parameter.
        cuts: (dim, offset, length) where the region is shorter than the parameter.
        split: the region as ``grid[0], side[0], grid[1], side[1], ...``, sides of batch dims left out.
        order: of these dims, those of the grid first.
        size, stride, offset: of the same view.
    """

    merged_shape: Shape
    cuts: tuple[Shape, ...]
    split: Shape
    order: Shape
    size: Shape
    stride: Shape
    offset: int

    @classmethod
    def of(cls, plan: ParameterPlan, region: Region) -> BlockLayout | None:
        """The layout of one of the plan's regions; None for one block that is the whole parameter."""
        merged, sides, batch = plan.merged_shape, region.block_shape, plan.batch_dims
        if sides == plan.shape:
            return None
        ends = [(o, g * d) for o, g, d in zip(region.offset, region.grid, sides, strict=True)]
        cuts = [(dim, *end) for dim, end in enumerate(ends) if end[1] != merged[dim]]
        pairs = zip(region.grid[batch:], sides[batch:], strict=True)
        split = (*region.grid[:batch], *itertools.chain(*pairs))
        modes = range(batch, len(split), 2)
        order = (*range(batch), *modes, *(dim + 1 for dim in modes))
        steps = [math.prod(merged[dim + 1 :]) for dim in range(len(merged))]
        stride = (*(step * d for step, d in zip(steps, sides, strict=True)), *steps[batch:])
        offset = sum(step * o for step, o in zip(steps, region.offset, strict=True))
        return cls(merged, tuple(cuts), split, order, (*region.grid, *sides[batch:]), stride, offset)

    def view(self, tensor: Tensor) -> Tensor:
        """The blocks ``[*grid, *block_shape]`` of a tensor of the parameter's shape, of a copy if need be."""
        whole = tensor.contiguous()
        return whole.as_strided(self.size, self.stride, whole.storage_offset() + self.offset)

    def view_in_graph(self, tensor: Tensor) -> Tensor:
        """As `view`, by operations that torch.compile can write through."""
        whole = tensor.contiguous().view(self.merged_shape)
        for dim, offset, length in self.cuts:
            whole = whole.narrow(dim, offset, length)
        return whole.view(self.split).permute(self.order)


def divided(tensor: Tensor, divisions: Sequence[tuple[int, Shape]]) -> list[Tensor]:
    """Views of a tensor's parts, cut along some dims into some lengths, in row-major order."""
    parts = [tensor]
    for dim, lengths in divisions:
        parts = [part for whole in parts for part in whole.split_with_sizes(lengths, dim)]
    return parts


@dataclass(frozen=True)
class Blocked:
    """One tensor for each parameter of a bucket, and views of the blocks in them, a list for each group."""

    tensors: list[Tensor]
    views: list[list[Tensor]]


@dataclass(frozen=True)
class Workspace:
    """What a bucket's step makes of the gradients.

    Attributes:
        written: directions that no state keeps, a tensor for each parameter, or none.
        directions: what is preconditioned.
        updates: the preconditioned directions; an empty tensor for a parameter without blocks. They take the
            place of those that are written.
        fallbacks: what a parameter goes by whose update is not sound; None where it is the direction.
    """

    written: list[Tensor]
    directions: Blocked
    updates: Blocked
    fallbacks: list[Tensor] | None
