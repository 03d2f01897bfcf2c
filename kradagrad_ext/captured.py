"""The step that a CUDA graph can hold: the same work on every step, and nothing for the host to look at.

Roots are made in turns, of as many blocks a step as gives every block new ones within `root_every` steps,
after the product: they serve from the next step on. A new parameter's are all made at once, on a step that
the host knows of and that is not captured.
"""

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
    for state, backend, now in zip(states, backends, steps, strict=True):
        if not now.fresh:
            _take_turn(state, config, backend, now)
    taken = [now.clock.preconditions_on_device(config) for now in steps]
    return [norm * mask for norm, mask in zip(norms, taken, strict=True)]


def _take_turn(state: GroupState, config: Config, backend: Backend, now: BlockGroupStep) -> None:
    """New roots for the blocks whose turn it is."""
    index = now.clock.turn(state.group.blocks, config)
    batches = (state.factors, state.factor_stats, state.roots, state.root_stats)
    chosen = [[batch[index] for batch in own] for own in batches]
    turn = GroupState(state.group, state.layouts, *chosen)
    preconditioner.refresh_roots(turn, config, backend, now.active[index])
    for own, taken in zip(batches[2:], chosen[2:], strict=True):
        for batch, values in zip(own, taken, strict=True):
            batch.index_copy_(0, index, values)
