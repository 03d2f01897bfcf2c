"""Where the blocks of parameters lie, and views of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .plan import ParameterPlan, Region, Shape


@dataclass(frozen=True)
class BlockLayout:
    """How the blocks of one region lie in a parameter, as views that torch.compile can write through.

    Attributes:
        merged_shape: of the parameter.
        cuts: (dim, offset, length) where the region is shorter than the parameter.
        split: the region as ``grid[0], side[0], grid[1], side[1], ...``, without grid dims of 1 and the sides
            of batch dims.
        order: of these dims, those of the grid first.

    None stands for what leaves a view as it is.
    """

    merged_shape: Shape | None
    cuts: tuple[Shape, ...]
    split: Shape | None
    order: Shape | None

    @classmethod
    def of(cls, plan: ParameterPlan, region: Region) -> BlockLayout | None:
        """The layout of one of the plan's regions; None for one block that is the whole parameter."""
        if region.block_shape == plan.shape:
            return None
        merged, sides = plan.merged_shape, region.block_shape
        lengths = [count * side for count, side in zip(region.grid, sides, strict=True)]
        cuts = [
            (dim, offset, length)
            for dim, (offset, length) in enumerate(zip(region.offset, lengths, strict=True))
            if length != merged[dim]
        ]
        split: list[int] = []
        grid, modes = [], []
        for dim, (count, side) in enumerate(zip(region.grid, sides, strict=True)):
            if count > 1:
                grid.append(len(split))
                split.append(count)
            if dim >= plan.batch_dims:
                modes.append(len(split))
                split.append(side)
        order = (*grid, *modes)
        return cls(
            None if merged == plan.shape else merged,
            tuple(cuts),
            None if split == lengths else tuple(split),
            None if order == tuple(range(len(order))) else order,
        )

    def view(self, tensor: Tensor) -> Tensor:
        """The blocks ``[*grid, *block_shape]``, without grid dims of 1, of a tensor of the whole shape.

        Those of a copy where it is not contiguous.
        """
        view = tensor.contiguous()
        if self.merged_shape is not None:
            view = view.view(self.merged_shape)
        for dim, offset, length in self.cuts:
            view = view.narrow(dim, offset, length)
        if self.split is not None:
            view = view.view(self.split)
        return view if self.order is None else view.permute(self.order)


@dataclass(frozen=True)
class Blocked:
    """One tensor for each parameter of a bucket, and views of the blocks in them, a list for each group."""

    tensors: list[Tensor]
    views: list[list[Tensor]]


@dataclass(frozen=True)
class Workspace:
    """What a bucket's step makes of the gradients.

    Attributes:
        lookahead: Nesterov's directions, a tensor for each parameter, or none.
        directions: what is preconditioned; None where it is the gradients.
        updates: the preconditioned directions; an empty tensor for a parameter without blocks. They take the
            place of Nesterov's directions.
        fallbacks: what a parameter goes by whose update is not sound; None where it is the direction.
    """

    lookahead: list[Tensor]
    directions: Blocked | None
    updates: Blocked
    fallbacks: list[Tensor] | None
