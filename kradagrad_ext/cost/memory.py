"""Bytes of a rank's state, as it is allocated (state.py, distributed/owned.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch

from kradagrad_ext.backends.base import ROOT_STATS, STATISTICS
from kradagrad_ext.backends.scalars import COLUMNS
from kradagrad_ext.state import compute_dtype, keeps_residuals

from .steps import GroupShapes


@dataclass(frozen=True)
class StateBytes:
    """Bytes of optimizer state on a rank, without the buffers of a step.

    Attributes:
        factors, roots: those of blocks.
        moments: first and second moments of the gradients.
        rest: statistics of blocks, scalars of parameters, and residuals of the rounding of their elements.
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
        """Return the mean, if this is a sum over `ranks` ranks."""
        return StateBytes(*(size / ranks for size in astuple(self)))


def state_bytes(part: GroupShapes, device: torch.device) -> StateBytes:
    """Return the bytes of all state except scalars, which every rank keeps of all parameters.

    Args:
        device: device of the state, which determines if packed factors are triangles.
    """
    config, size = part.options, compute_dtype(part.dtype).itemsize
    factor_size = size if config.factor_dtype is None else config.factor_dtype.itemsize
    root_size = size if config.root_dtype is None else config.root_dtype.itemsize
    whole = triangles = factors = 0
    for group in part.groups:
        dims = [d for d in group.factor_dims if d]
        whole += group.factor_elements
        triangles += group.blocks * sum(d * (d + 1) // 2 for d in dims)
        factors += group.blocks * len(dims)
    moments = 1 + config.has_second_moment
    elements = sum(math.prod(blocking.shape) for blocking in part.blockings)
    return StateBytes(
        factor_size * (triangles if config.packs_factors(device) else whole),
        root_size * (triangles if config.packed else whole),
        size * moments * elements,
        size * factors * (len(STATISTICS) + len(ROOT_STATS))
        + keeps_residuals(config, part.dtype) * part.dtype.itemsize * elements,
    )


def scalar_bytes(parts: Sequence[GroupShapes]) -> StateBytes:
    """Return the bytes of the scalars of whole parameters' matrices."""
    return StateBytes(
        rest=sum(
            len(COLUMNS) * compute_dtype(part.dtype).itemsize * blocking.matrices
            for part in parts
            for blocking in part.blockings
        )
    )
