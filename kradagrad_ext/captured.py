"""The step that a CUDA graph can hold: the same work on every step, and nothing for the host to look at."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import preconditioner
from .backends.base import Backend
from .config import Config
from .preconditioner import BlockGroupStep
from .state import GroupState


def step(
    states: Sequence[GroupState], config: Config, backends: Sequence[Backend], steps: Sequence[BlockGroupStep]
) -> list[Tensor]:
    """As `preconditioner.step`."""
    norms = preconditioner.step(states, config, backends, steps)
    taken = [now.clock.preconditions_on_device(config) for now in steps]
    return [norm * mask for norm, mask in zip(norms, taken, strict=True)]
