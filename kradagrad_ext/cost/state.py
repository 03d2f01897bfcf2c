"""Bytes of a rank's state: those of the very tensors that the optimizer makes (`kradagrad_ext.state`)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kradagrad_ext.blocking import Blocking, blocking_of
from kradagrad_ext.distributed.partition import Piece
from kradagrad_ext.state import MOMENTUM, SCALARS, SECOND_MOMENT, state_specs

from .parameters import ParamShape

KINDS = {"factor": "factors", "root": "roots", MOMENTUM: "moments", SECOND_MOMENT: "moments"}
"""The attribute of `StateBytes` that counts a kind of entry; the others are counted as `rest`."""


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


def scalar_bytes(parameters: Sequence[ParamShape], device: torch.device) -> int:
    """Return the bytes of all parameters' scalars, which every rank keeps."""
    return sum(_entries(p, blocking_of(p.shape, p.config), device)[SCALARS] for p in parameters)


def state_bytes(
    parameters: Sequence[ParamShape], pieces: Sequence[Piece], scalars: int, device: torch.device
) -> StateBytes:
    """Return the bytes of the state of a rank with these pieces.

    Args:
        scalars: see `scalar_bytes`.
    """
    sizes = Counter(rest=scalars)
    for piece in pieces:
        for key, size in _entries(parameters[piece.parameter], piece.blocking, device).items():
            if key != SCALARS:
                sizes[KINDS.get(key.rstrip("_0123456789"), "rest")] += size
    return StateBytes(**sizes)


def _entries(parameter: ParamShape, blocking: Blocking, device: torch.device) -> dict[str, int]:
    """Return the bytes of the state of a parameter, or of a piece, by key."""
    specs = state_specs(blocking, parameter.config, parameter.dtype, device)
    return {key: math.prod(spec.shape) * spec.dtype.itemsize for key, spec in specs.items()}
