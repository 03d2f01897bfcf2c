"""The launches on elements of a step: norms, moments and the write, from the shapes of parameters.

Those on a few numbers for each matrix are left out: they move next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from kradagrad_ext.backends.scalars import GRADIENT_DECAY
from kradagrad_ext.config import Config
from kradagrad_ext.plan import Shape
from kradagrad_ext.state import keeps_residuals

from .blocks import FLOAT
from .gpus import Cost

SPAN = 4096  # kSpan

CONCURRENT_WITH_ACCUMULATE = "resident_update_128_bf16x3"
"""What leaves an SM enough registers for a CTA of `accumulate`, launched before it on a stream of its own."""


def elements(shapes: Sequence[Shape]) -> int:
    """Of all shapes together."""
    return sum(math.prod(shape) for shape in shapes)


def before_blocks(
    matrices: Sequence[Shape], rest: Sequence[Shape], config: Config, dtype: torch.dtype
) -> Iterator[Cost]:
    """The guard against non-finite gradients, moments, and norms of the grafting updates.

    Args:
        matrices, rest: shapes of parameters with and without blocks.
        dtype: of parameters and gradients.
    """
    shapes = [*matrices, *rest]
    if not shapes:
        return
    count, size = elements(shapes), dtype.itemsize
    spans = sum(math.ceil(math.prod(shape) / SPAN) for shape in shapes)
    yield Cost("torch: foreach_norm", "guard", 1, size * count)
    averaged = config.momentum_on == "gradient"
    each = size + 2 * FLOAT * config.has_second_moment
    each += 2 * FLOAT * averaged + FLOAT * config.writes_directions
    each += size * bool(config.scalar_rule.decayed == GRADIENT_DECAY and config.weight_decay)
    host = CONCURRENT_WITH_ACCUMULATE if matrices else ""
    yield Cost("accumulate", "moments", 1, each * count + FLOAT * spans, concurrent_with=host)
    yield Cost("sum_spans", "graft norms", 1, FLOAT * (spans + len(shapes)))


def parameter_step_costs(
    matrices: Sequence[Shape], rest: Sequence[Shape], config: Config, dtype: torch.dtype
) -> Iterator[Cost]:
    """Graft, weight decay, momentum of the update, and the write; as `before_blocks`."""
    if not matrices and not rest:
        return
    size, averaged = dtype.itemsize, config.momentum_on == "gradient"
    each = 2 * size * (1 + keeps_residuals(config, dtype)) + 2 * FLOAT * (not averaged)
    direction = (FLOAT if averaged else size) + FLOAT * config.has_second_moment
    total = (
        each * (elements(matrices) + elements(rest)) + FLOAT * elements(matrices) + direction * elements(rest)
    )
    yield Cost("parameter_step", "write", 1, total)
