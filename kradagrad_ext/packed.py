"""The step of groups whose roots, and factors, are stored as triangles: some blocks at a time are made whole.

What is whole at once is bounded: as many regions of parameters as fit into `WHOLE_BYTES`, at least one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import packing
from .backends.base import Backend
from .config import Config
from .plan import Group
from .preconditioner import BlockGroupStep, makes_roots_in_turns
from .state import GroupState

WHOLE_BYTES = 256 << 20
"""Of factors and roots that are whole at once."""


@dataclass(frozen=True)
class Run:
    """Members ``first : last`` of group number `group`."""

    group: int
    first: int
    last: int


Rule = Callable[[Sequence[GroupState], Config, Sequence[Backend], Sequence[BlockGroupStep]], list[Tensor]]
"""`preconditioner.step`, or another with the same arguments."""


def step(
    rule: Rule,
    states: Sequence[GroupState],
    config: Config,
    backends: Sequence[Backend],
    steps: Sequence[BlockGroupStep],
) -> list[Tensor]:
    """As `rule`, of packed states."""
    norms: list[list[Tensor]] = [[] for _ in states]
    for runs in batches([state.group for state in states], _sizes(states)):
        opened = [_open(states[run.group], run) for run in runs]
        taken = rule(
            opened,
            config,
            [backends[run.group] for run in runs],
            [_part(steps[run.group], states[run.group].group, run) for run in runs],
        )
        for run, whole, found in zip(runs, opened, taken, strict=True):
            _close(states[run.group], run, whole, config, steps[run.group])
            norms[run.group].append(found)
    return [torch.cat(own) for own in norms]


def batches(groups: Sequence[Group], block_bytes: Sequence[int]) -> Iterator[list[Run]]:
    """All members, in runs that are to be whole at once.

    Args:
        block_bytes: of one whole block of each group.
    """
    runs: list[Run] = []
    used = 0
    for number, (group, size) in enumerate(zip(groups, block_bytes, strict=True)):
        for index, member in enumerate(group.members):
            needed = member.region.blocks * size
            if runs and used + needed > WHOLE_BYTES:
                yield runs
                runs, used = [], 0
            used += needed
            if runs and runs[-1].group == number:
                runs[-1] = replace(runs[-1], last=index + 1)
            else:
                runs.append(Run(number, index, index + 1))
    if runs:
        yield runs


def _sizes(states: Sequence[GroupState]) -> list[int]:
    return [
        state.group.state_bytes(*(own[state.modes[0]].element_size() for own in (state.factors, state.roots)))
        // state.group.blocks
        for state in states
    ]


def _blocks(group: Group, run: Run) -> slice:
    members = group.members[run.first : run.last]
    return slice(members[0].start, members[-1].start + members[-1].region.blocks)


def _open(state: GroupState, run: Run) -> GroupState:
    """The state of a run's blocks with whole factors and roots; the rest are views."""
    blocks, start = _blocks(state.group, run), state.group.members[run.first].start
    members = tuple(
        replace(member, start=member.start - start) for member in state.group.members[run.first : run.last]
    )
    return GroupState(
        replace(state.group, members=members),
        state.layouts[run.first : run.last],
        [
            packing.unpack_upper(f[blocks], d) if f.ndim == 2 else f[blocks]
            for f, d in zip(state.factors, state.group.factor_dims, strict=True)
        ],
        [stats[blocks] for stats in state.factor_stats],
        [
            packing.unpack(r[blocks], d) if r.ndim == 2 else r[blocks]
            for r, d in zip(state.roots, state.group.factor_dims, strict=True)
        ],
        [stats[blocks] for stats in state.root_stats],
    )


def _close(state: GroupState, run: Run, whole: GroupState, config: Config, now: BlockGroupStep) -> None:
    """Store what the step has written."""
    blocks = _blocks(state.group, run)
    for mode in state.modes:
        if now.turn(config, makes_roots_in_turns(state.group, config, now.scales.device)) is not None:
            state.roots[mode][blocks] = packing.pack(whole.roots[mode])
        if state.factors[mode].ndim == 2 and (now.clock.factors_due(config) or now.has_newcomers):
            state.factors[mode][blocks] = packing.pack_upper(whole.factors[mode])


def _part(now: BlockGroupStep, group: Group, run: Run) -> BlockGroupStep:
    """A run's share of a group's step."""
    views = slice(run.first, run.last)
    return replace(
        now,
        scales=now.scales[_blocks(group, run)],
        grads=now.grads[views],
        directions=now.directions[views],
        out=now.out[views],
    )
