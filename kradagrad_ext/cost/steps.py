"""The mean launches of a rank on a step, from the blockings of its parameters or pieces."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from kradagrad_ext.blocking import Blocking, Shape, ShapeGroup, blocking_of, group_by_shape
from kradagrad_ext.config import Config

from .blocks import block_costs
from .blocks import root_costs as root_costs_of
from .elementwise import apply_updates_costs, before_blocks
from .gpus import Cost


@dataclass(frozen=True)
class GroupShapes:
    """Parameters or pieces of one parameter group, dtype and graft.

    Attributes:
        dtype: that of parameters and gradients.
    """

    blockings: tuple[Blocking, ...]
    config: Config
    dtype: torch.dtype

    @functools.cached_property
    def groups(self) -> tuple[ShapeGroup, ...]:
        return group_by_shape(self.blockings)

    @property
    def options(self) -> Config:
        """The options that apply to these parameters."""
        return self.config.for_blocks(bool(self.groups))

    @property
    def shapes(self) -> tuple[list[Shape], list[Shape]]:
        """The shapes of those with blocks, and of the rest."""
        blocked = [blocking.shape for blocking in self.blockings if blocking.grids]
        return blocked, [blocking.shape for blocking in self.blockings if not blocking.grids]


def parts_of(
    shapes: Sequence[Shape],
    config: Config,
    dtype: torch.dtype = torch.float32,
    plain_shapes: Sequence[Shape] = (),
) -> list[GroupShapes]:
    """Return the shapes of two parameter groups on one rank; `plain_shapes` have ``precondition=False``."""
    plain = replace(config, precondition=False)
    groups = ((shapes, config), (plain_shapes, plain))
    blockings = [(blocking_of(shape, options), options) for members, options in groups for shape in members]
    return split_parts(blockings, dtype)


def split_parts(blockings: Iterable[tuple[Blocking, Config]], dtype: torch.dtype) -> list[GroupShapes]:
    """Sort blockings of one dtype by their options, and by the method that gives updates their lengths."""
    parts: dict[tuple[int, str], tuple[list[Blocking], Config]] = {}
    for blocking, config in blockings:
        key = id(config), config.for_blocks(bool(blocking.grids)).graft
        parts.setdefault(key, ([], config))[0].append(blocking)
    return [GroupShapes(tuple(members), config, dtype) for members, config in parts.values()]


def least_costs_on_blocks(part: GroupShapes) -> list[Cost]:
    """Return the least work on a part's blocks, for any kernels."""
    return list(block_costs(part.groups, part.options, part.dtype))


def kernel_costs(
    parts: Sequence[GroupShapes], costs_on_blocks: Callable[[GroupShapes], list[Cost]] = least_costs_on_blocks
) -> list[Cost]:
    """Return the costs of a step without new roots; one of `factor_every` steps updates the factors.

    Args:
        costs_on_blocks: returns the costs on a part's blocks, of the kernels in question.
    """
    costs = [cost for part in parts for cost in before_blocks(*part.shapes, part.options, part.dtype)]
    costs += [cost for part in parts for cost in costs_on_blocks(part)]
    return costs + [
        cost for part in parts for cost in apply_updates_costs(*part.shapes, part.options, part.dtype)
    ]


def root_costs(parts: Sequence[GroupShapes]) -> list[Cost]:
    """Return the costs of new roots, all of which are computed within `root_every` steps."""
    return [cost for part in parts for cost in root_costs_of(part.groups, part.config)]
