"""Where the elements of parameters lie: a box of each on every rank.

A plain tensor lies on every rank in whole, a DTensor as its placements say: sharded, replicated, or both.
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

from .pieces import Box

Boxes = tuple[Box, ...]
"""Of all parameters on one rank."""

_LOCAL = operator.attrgetter("_local_tensor")

Rows = slice | Tensor
"""Which rows: a slice where they follow one another, which copies nothing, else their numbers."""


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of it."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def rows_of(indices: Sequence[int], device: torch.device) -> Rows:
    """What picks these rows of a tensor on a device."""
    first = indices[0] if indices else 0
    following = slice(first, first + len(indices))
    if list(indices) == list(range(following.start, following.stop)):
        return following
    return torch.tensor(indices, dtype=torch.int64, device=device)


def add_to_rows_(sums: Tensor, rows: Rows, values: Tensor) -> None:
    """Add values to rows that may come more than once."""
    values = values.to(sums.dtype)
    if isinstance(rows, slice):
        sums[rows] += values
    else:
        sums.index_add_(0, rows, values)


def box_of(p: Tensor, name: str) -> Box:
    """What this rank holds of a parameter, in its own dims.

    Raises:
        ValueError: the parameter is the sum of what ranks hold.
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
    """`local` of each, None for None; the list as it is where no tensor is a DTensor.

    Without a graph of autograd, and without the view that `DTensor.to_local` makes of a parameter.
    """
    are_sharded = {issubclass(kind, DTensor) for kind in set(map(type, tensors))}
    if True not in are_sharded:
        return tensors
    if False not in are_sharded:
        return list(map(_LOCAL, tensors))
    return [tensor._local_tensor if isinstance(tensor, DTensor) else tensor for tensor in tensors]


@dataclass(frozen=True)
class Holders:
    """One parameter's boxes and the ranks that hold each; empty ones are left out."""

    ranks_of: dict[Box, tuple[int, ...]]

    def sender(self, box: Box, owner: int) -> int:
        """Which of the ranks that hold a box sends it to an owner: itself, or one for each."""
        ranks = self.ranks_of[box]
        return owner if owner in ranks else ranks[owner % len(ranks)]


def gather_holders(
    own: Boxes, shapes: Sequence[tuple[int, ...]], names: Sequence[str], group: dist.ProcessGroup
) -> list[Holders]:
    """The holders of all parameters; every rank gets the same.

    Raises:
        ValueError: on every rank, where ranks do not have the same parameters or no rank has an element.
    """
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, ([tuple(shape) for shape in shapes], own), group=group)
    for rank, (others, _) in enumerate(gathered):
        if others != gathered[0][0]:
            raise ValueError(
                f"KrADagrad: every rank must give the same parameters in the same order, got {len(others)} "
                f"on rank {rank} and {len(gathered[0][0])} on rank 0, or other shapes"
            )
    holders = []
    for index, shape in enumerate(shapes):
        ranks_of: dict[Box, tuple[int, ...]] = {}
        for rank, (_, boxes) in enumerate(gathered):
            if boxes[index].numel > 0:
                ranks_of[boxes[index]] = (*ranks_of.get(boxes[index], ()), rank)
        held = sum(box.numel for box in ranks_of)
        if held != math.prod(shape):
            raise ValueError(
                f"KrADagrad: the ranks of `process_group` must hold every element of {names[index]}, once or "
                f"as replicas, got {held} of {math.prod(shape)}"
            )
        holders.append(Holders(ranks_of))
    return holders
