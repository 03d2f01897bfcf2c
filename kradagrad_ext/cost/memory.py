"""Bytes of a rank's state, as it is allocated (state.py, distributed/parts.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from kradagrad_ext.grafting import COLUMNS, has_second_moment
from kradagrad_ext.roots import CHECKS
from kradagrad_ext.state import compute_dtype

from .steps import Part

STATISTICS = 2
"""Numbers that a block keeps of every factor (`state.GroupState`)."""


@dataclass(frozen=True)
class StateBytes:
    """Bytes of optimizer state on a rank; buffers of a step are not among them.

    Attributes:
        factors, roots: of blocks.
        moments: of the gradients, first and second.
        rest: of statistics of blocks and scalars of parameters.
    """

    factors: float = 0
    roots: float = 0
    moments: float = 0
    rest: float = 0

    @property
    def total(self) -> float:
        """The sum of all four."""
        return self.factors + self.roots + self.moments + self.rest

    def __add__(self, other: StateBytes) -> StateBytes:
        return StateBytes(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def divided(self, ranks: int) -> StateBytes:
        """The mean of so many ranks whose sum it is."""
        return StateBytes(*(size / ranks for size in astuple(self)))


def state_bytes(part: Part) -> StateBytes:
    """Of all but scalars, which every rank has of all parameters."""
    config, size = part.config, compute_dtype(part.dtype).itemsize
    root_size = size if config.root_dtype is None else config.root_dtype.itemsize
    stored = factors = 0
    for group in part.groups:
        dims = [d for d in group.factor_dims if d]
        stored += group.blocks * sum(d * (d + 1) // 2 if config.packed else d * d for d in dims)
        factors += group.blocks * len(dims)
    moments = 1 + has_second_moment(config)
    return StateBytes(
        size * stored,
        root_size * stored,
        size * moments * sum(math.prod(plan.shape) for plan in part.plans),
        size * factors * (STATISTICS + len(CHECKS)),
    )


def scalar_bytes(parts: Sequence[Part]) -> StateBytes:
    """Of whole parameters: their scalars."""
    return StateBytes(
        rest=sum(len(COLUMNS) * compute_dtype(own.dtype).itemsize * len(own.plans) for own in parts)
    )
