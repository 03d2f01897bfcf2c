"""The step of shape groups whose roots, and perhaps factors, are stored as triangles.

Some blocks at a time are unpacked, stepped and packed: as many block grids as fit in `WHOLE_BYTES`, at least
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import linalg
from .backends.base import Backend
from .blocking import ShapeGroup
from .config import Config
from .preconditioner import BlockGroupStep, makes_roots_in_turns
from .state import GroupState

WHOLE_BYTES = 256 << 20
"""Most bytes of factors and roots that are unpacked at a time."""


@dataclass(frozen=True)
class MemberRun:
    """Members ``first : last`` of the shape group with index `group`."""

    group: int
    first: int
    last: int


Rule = Callable[[Sequence[GroupState], Config, Sequence[Backend], Sequence[BlockGroupStep]], list[Tensor]]
"""`precondition_groups`, or another function with the same arguments."""


def precondition_packed(
    rule: Rule,
    states: Sequence[GroupState],
    config: Config,
    backends: Sequence[Backend],
    steps: Sequence[BlockGroupStep],
) -> list[Tensor]:
    """Call `rule` on packed states, unpacking some blocks at a time; return the same as `rule`."""
    norms: list[list[Tensor]] = [[] for _ in states]
    for runs in batches([state.group for state in states], _sizes(states)):
        opened = [_open(states[run.group], run) for run in runs]
        run_norms = rule(
            opened,
            config,
            [backends[run.group] for run in runs],
            [_part(steps[run.group], states[run.group].group, run) for run in runs],
        )
        for run, whole, run_norm in zip(runs, opened, run_norms, strict=True):
            _close(states[run.group], run, whole, config, steps[run.group])
            norms[run.group].append(run_norm)
    return [torch.cat(each) for each in norms]


def batches(groups: Sequence[ShapeGroup], block_bytes: Sequence[int]) -> Iterator[list[MemberRun]]:
    """Yield all members, in lists of runs that are unpacked at a time.

    Args:
        block_bytes: bytes of one unpacked block's factors and roots, for each shape group.
    """
    runs: list[MemberRun] = []
    used = 0
    for number, (group, size) in enumerate(zip(groups, block_bytes, strict=True)):
        for index, member in enumerate(group.members):
            needed = member.grid.blocks * size
            if runs and used + needed > WHOLE_BYTES:
                yield runs
                runs, used = [], 0
            used += needed
            if runs and runs[-1].group == number:
                runs[-1] = replace(runs[-1], last=index + 1)
            else:
                runs.append(MemberRun(number, index, index + 1))
    if runs:
        yield runs


def _sizes(states: Sequence[GroupState]) -> list[int]:
    return [
        state.group.state_bytes(
            state.factors[state.modes[0]].element_size(), state.roots[state.modes[0]].element_size()
        )
        // state.group.blocks
        for state in states
    ]


def _blocks(group: ShapeGroup, run: MemberRun) -> slice:
    members = group.members[run.first : run.last]
    return slice(members[0].start, members[-1].start + members[-1].grid.blocks)


def _open(state: GroupState, run: MemberRun) -> GroupState:
    """Return the state of a run's blocks with unpacked factors and roots; all other tensors are views."""
    blocks, start = _blocks(state.group, run), state.group.members[run.first].start
    members = tuple(
        replace(member, start=member.start - start) for member in state.group.members[run.first : run.last]
    )
    return GroupState(
        replace(state.group, members=members),
        state.layouts[run.first : run.last],
        [
            linalg.unpack_upper(f[blocks], d) if f.ndim == 2 else f[blocks]
            for f, d in zip(state.factors, state.group.factor_dims, strict=True)
        ],
        [stats[blocks] for stats in state.factor_stats],
        [
            linalg.unpack_lower(r[blocks], d) if r.ndim == 2 else r[blocks]
            for r, d in zip(state.roots, state.group.factor_dims, strict=True)
        ],
        [stats[blocks] for stats in state.root_stats],
    )


def _close(
    state: GroupState, run: MemberRun, whole: GroupState, config: Config, step: BlockGroupStep
) -> None:
    """Pack the factors and roots that the step may have written."""
    blocks = _blocks(state.group, run)
    for mode in state.modes:
        if step.turn(config, makes_roots_in_turns(state.group, config, step.scales.device)) is not None:
            state.roots[mode][blocks] = linalg.pack_lower(whole.roots[mode])
        if state.factors[mode].ndim == 2 and (step.schedule.factors_due(config) or step.has_new_blocks):
            state.factors[mode][blocks] = linalg.pack_upper(whole.factors[mode])


def _part(step: BlockGroupStep, group: ShapeGroup, run: MemberRun) -> BlockGroupStep:
    """Return a run's share of a shape group's step."""
    views = slice(run.first, run.last)
    return replace(
        step,
        scales=step.scales[_blocks(group, run)],
        grads=step.grads[views],
        directions=step.directions[views],
        out=step.out[views],
    )
