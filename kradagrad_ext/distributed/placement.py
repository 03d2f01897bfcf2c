"""Placement of the parameters' elements: every rank holds a box of each parameter.

Every rank holds a plain tensor completely, and of a DTensor what its placements define: sharded, replicated,
or both.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from .partition import Box

Boxes = tuple[Box, ...]
"""The boxes of all parameters on one rank."""

_LOCAL = operator.attrgetter("_local_tensor")

Rows = slice | Tensor
"""Index of rows: a slice if the rows are consecutive, which copies nothing, else their numbers."""


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def rows_of(indices: Sequence[int], device: torch.device) -> Rows:
    """Return the index of rows of a tensor on a device."""
    first = indices[0] if indices else 0
    consecutive = slice(first, first + len(indices))
    if list(indices) == list(range(consecutive.start, consecutive.stop)):
        return consecutive
    return torch.tensor(indices, dtype=torch.int64, device=device)


def add_to_rows_(sums: Tensor, rows: Rows, values: Tensor) -> None:
    """Add values to rows, among which a row may occur more than once."""
    values = values.to(sums.dtype)
    if isinstance(rows, slice):
        sums[rows] += values
    else:
        sums.index_add_(0, rows, values)


def local_box(p: Tensor, name: str) -> Box:
    """Return the box of a parameter that this rank holds, in the unmerged dims.

    Raises:
        ValueError: the parameter is a sum over ranks, or this rank's part is not a box.
    """
    if not isinstance(p, DTensor):
        return Box((0,) * p.ndim, tuple(p.shape))
    if any(placement.is_partial() for placement in p.placements):
        raise ValueError(f"KrADagrad: {name} must be sharded or replicated, got {p.placements}")
    shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    if tuple(shape) != tuple(p.to_local().shape):
        raise ValueError(
            f"KrADagrad: {name} must hold a box of rows and columns on every rank, which {p.placements} of "
            f"{list(p.shape)} does not: {list(p.to_local().shape)} here, not {list(shape)} at {list(offset)}"
        )
    return Box(tuple(offset), tuple(shape))


def locals_of(tensors: list[Any]) -> list[Any]:
    """Return `local` of each tensor, None for None; the same list if no tensor is a DTensor.

    No autograd graph is recorded, and no view is created as by `DTensor.to_local`.
    """
    are_sharded = {issubclass(kind, DTensor) for kind in set(map(type, tensors))}
    if True not in are_sharded:
        return tensors
    if False not in are_sharded:
        return list(map(_LOCAL, tensors))
    return [tensor._local_tensor if isinstance(tensor, DTensor) else tensor for tensor in tensors]


@dataclass(frozen=True)
class Placement:
    """The boxes of one parameter and the ranks that hold each; empty boxes are left out."""

    ranks_of: dict[Box, tuple[int, ...]]

    def sender(self, box: Box, owner: int) -> int:
        """Return which holder of a box sends it to an owner: the owner if it is one, else they take turns."""
        ranks = self.ranks_of[box]
        return owner if owner in ranks else ranks[owner % len(ranks)]


def gather_placements(
    boxes: Boxes, shapes: Sequence[tuple[int, ...]], names: Sequence[str], group: dist.ProcessGroup
) -> list[Placement]:
    """Return the placements of all parameters, the same on every rank.

    Args:
        boxes: those of this rank.

    Raises:
        ValueError: ranks have different parameters, or no rank has some element; on every rank.
    """
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, ([tuple(shape) for shape in shapes], boxes), group=group)
    for rank, (listed, _) in enumerate(gathered):
        if listed != gathered[0][0]:
            raise ValueError(
                f"KrADagrad: every rank must give the same parameters in the same order, got {len(listed)} "
                f"on rank {rank} and {len(gathered[0][0])} on rank 0, or other shapes"
            )
    holders = []
    for index, shape in enumerate(shapes):
        ranks_of: dict[Box, tuple[int, ...]] = {}
        for rank, (_, rank_boxes) in enumerate(gathered):
            if (box := rank_boxes[index]).numel > 0:
                ranks_of[box] = (*ranks_of.get(box, ()), rank)
        elements = sum(box.numel for box in ranks_of)
        if elements != math.prod(shape):
            raise ValueError(
                f"KrADagrad: the ranks of `process_group` must hold every element of {names[index]}, once or "
                f"as replicas, got {elements} of {math.prod(shape)}"
            )
        holders.append(Placement(ranks_of))
    return holders
