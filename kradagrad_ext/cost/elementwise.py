"""Costs of a step's launches on elements and on scalars: norms, moments and the write, from shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from kradagrad_ext.backends.base import COEFFICIENTS
from kradagrad_ext.backends.scalars import COLUMNS, GRADIENT_DECAY, spans_of
from kradagrad_ext.blocking import Shape
from kradagrad_ext.config import Config
from kradagrad_ext.state import keeps_residuals

from .blocks import FLOAT
from .gpus import Cost

CONCURRENT_WITH_UPDATE_MOMENTS = "resident_update_128_bf16x3"
"""The kernel beside which an SM has registers left for a CTA of `update_moments` on a side stream."""

SCALARS = len(COLUMNS) + COEFFICIENTS
"""Number of scalars and coefficients of a matrix."""


def elements(shapes: Sequence[Shape]) -> int:
    """Return the number of elements of all shapes together."""
    return sum(math.prod(shape) for shape in shapes)


def before_blocks(
    matrices: Sequence[Shape], rest: Sequence[Shape], config: Config, dtype: torch.dtype
) -> Iterator[Cost]:
    """Yield the costs of the guard against non-finite gradients, moments, and norms of the grafting updates.

    Args:
        matrices, rest: shapes of parameters with and without blocks.
        dtype: that of parameters and gradients.
    """
    shapes = [*matrices, *rest]
    if not shapes:
        return
    count, size = elements(shapes), dtype.itemsize
    yield Cost("torch: foreach_norm", "guard", 1, size * count)
    yield Cost("guard_gradients", "guard", 1, FLOAT * (SCALARS + len(COLUMNS)) * len(shapes))
    averaged = config.momentum_on == "gradient"
    each = size + 2 * FLOAT * config.has_second_moment
    each += 2 * FLOAT * averaged + FLOAT * config.writes_directions
    each += size * bool(config.scalar_rule.decayed == GRADIENT_DECAY and config.weight_decay)
    host = CONCURRENT_WITH_UPDATE_MOMENTS if matrices else ""
    spans = _spans(shapes) if _scales_updates(matrices, config) else 0
    yield Cost("update_moments", "moments", 1, each * count + FLOAT * spans, concurrent_with=host)


def _spans(shapes: Sequence[Shape]) -> int:
    return sum(spans_of(math.prod(shape)) for shape in shapes)


def _scales_updates(matrices: Sequence[Shape], config: Config) -> bool:
    """Return `step.BatchStep.scales_updates` of these matrices."""
    return bool(matrices) or not config.scalar_rule.keeps_grafts


def apply_updates_costs(
    matrices: Sequence[Shape], rest: Sequence[Shape], config: Config, dtype: torch.dtype
) -> Iterator[Cost]:
    """Yield the costs of lengths, graft, weight decay, momentum of the update and the write.

    Args:
        matrices, rest, dtype: see `before_blocks`.
    """
    shapes = [*matrices, *rest]
    if not shapes:
        return
    if _scales_updates(matrices, config):
        yield Cost("scale_updates", "lengths", 1, FLOAT * (2 * SCALARS * len(shapes) + _spans(shapes)))
    size, averaged = dtype.itemsize, config.momentum_on == "gradient"
    each = 2 * size * (1 + keeps_residuals(config, dtype)) + 2 * FLOAT * (not averaged)
    direction = (FLOAT if averaged else size) + FLOAT * config.has_second_moment
    total = each * elements(shapes) + FLOAT * elements(matrices) + direction * elements(rest)
    yield Cost("apply_updates", "write", 1, total)
