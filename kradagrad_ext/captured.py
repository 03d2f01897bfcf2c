"""The step that a CUDA graph can hold: the same work on every step, and nothing for the host to look at.

Roots are made in turns, of as many blocks a step as gives every block new ones within `root_every` steps,
after the product: they serve from the next step on. A new parameter's are all made at once, on a step that
the host knows of and that is not captured.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import variants
from .backends.base import Backend
from .config import Config
from .state import GroupState
from .variants import GroupStep


def step(
    states: Sequence[GroupState], config: Config, backends: Sequence[Backend], nows: Sequence[GroupStep]
) -> list[Tensor]:
    """As `variants.step`."""
    norms = variants.step(states, config, backends, nows)
    for state, backend, now in zip(states, backends, nows, strict=True):
        if not now.fresh:
            _take_turn(state, config, backend, now)
    taken = [now.clock.preconditions_on_device(config) for now in nows]
    return [norm * mask for norm, mask in zip(norms, taken, strict=True)]


def _take_turn(state: GroupState, config: Config, backend: Backend, now: GroupStep) -> None:
    """New roots for the blocks whose turn it is."""
    blocks = state.group.blocks
    index = now.clock.turn(blocks, config)
    batches = (state.factors, state.statistics, state.roots, state.checks)
    chosen = [[batch[index] for batch in own] for own in batches]
    turn = GroupState(state.group, state.layouts, *chosen)
    modes = [mode for mode, factored in enumerate(state.group.factored) if factored]
    interval = blocks / len(index)
    variants.root(turn, modes, config, backend, now.active[index], max(1.0, interval / config.factor_every))
    for own, taken in zip(batches, chosen, strict=True):
        for batch, values in zip(own, taken, strict=True):
            batch.index_copy_(0, index, values)
