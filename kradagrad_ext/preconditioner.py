"""One step of groups of blocks: factors first, then roots if due, then the preconditioned direction.

As in the paper's KrADagrad*, the factors of all modes are updated from the gradient itself; with coupling,
each mode's from the gradient that the roots of the other modes have whitened (docs/concepts.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import polar, roots
from .backends.base import (
    RMS,
    WEIGHT,
    WHITENED,
    WHITENED_MEAN,
    WHITENED_WEIGHT,
    Backend,
    BlockGroup,
    RootRule,
    RootSide,
    Side,
    Turn,
)
from .block_views import gather, multiply_modes, squared_norms, with_blocks
from .clock import Clock
from .config import Config
from .plan import Group
from .side_stream import SideStream
from .state import GroupState

WHITENED_DECAY = 0.99
"""Of the running mean of the whitened gradient's mean square."""


@dataclass(frozen=True)
class BlockGroupStep:
    """What a group's blocks need to know about this step.

    Attributes:
        clock: the number of the step.
        has_newcomers: whether blocks that take part may have no factor yet, or no root since it started.
        side_stream: where `directions` are made, to be waited for before they are read.
        scales: ``[N]``, what each block's gradient is multiplied by; 0 for one that takes no part.
        grads, directions, out: block views ``[*grid, *block_shape]``; `out` is written.
    """

    clock: Clock
    has_newcomers: bool
    side_stream: SideStream
    scales: Tensor
    grads: list[Tensor]
    directions: list[Tensor]
    out: list[Tensor]

    def turn(self, config: Config, in_turns: bool) -> Turn | None:
        """The blocks whose roots are due; None where there are none."""
        turn = self.clock.turn(config, in_turns)
        return Turn(turns=0) if turn is None and self.has_newcomers else turn

    @property
    def active(self) -> Tensor:
        """The blocks that take part, ``[N]`` bool."""
        return self.scales > 0


def step(
    states: Sequence[GroupState], config: Config, backends: Sequence[Backend], steps: Sequence[BlockGroupStep]
) -> list[Tensor]:
    """Advance all groups of a bucket, each by its backend, and write their preconditioned updates.

    Returns:
        For each group, the squared norms ``[N]`` of its updates, 0 for blocks that are not active.
    """
    norms: list[Tensor] = [torch.empty(0)] * len(states)
    fused: dict[str, list[int]] = {}
    for i, (state, backend, now) in enumerate(zip(states, backends, steps, strict=True)):
        if state.is_kron:
            fused.setdefault(backend.name, []).append(i)
        else:
            norms[i] = _step_of_any_order(state, config, backend, now)
    for chosen in fused.values():
        backend, taken = backends[chosen[0]], [steps[i] for i in chosen]
        found = _step_of_matrices([states[i] for i in chosen], config, backend, taken)
        for i, norm in zip(chosen, found, strict=True):
            norms[i] = norm
    if config.graft == "whitened" and steps and steps[0].clock.preconditions(config):
        for i, (state, backend, now) in enumerate(zip(states, backends, steps, strict=True)):
            norms[i] = _divide_by_whitened(state, backend, now, norms[i])
    return norms


def _step_of_matrices(
    states: Sequence[GroupState], config: Config, backend: Backend, steps: Sequence[BlockGroupStep]
) -> list[Tensor]:
    """Order 2, all groups in one fused call, or in two where the new factors must be rooted in between."""
    now = steps[0]
    in_turns = makes_roots_in_turns(states[0].group, config, now.scales.device)
    product = now.clock.preconditions(config)
    turn = now.turn(config, in_turns)
    sizes = [len(own.scales) for own in steps]
    scales = torch.cat([own.scales for own in steps])
    norms = torch.empty_like(scales) if product else torch.zeros_like(scales)
    rule = config.update_rule(norms.device, now.clock.damped_updates(config, in_turns))
    groups = [
        BlockGroup(state.side(0), state.side(1), own.grads, own.directions, own.out)
        for state, own in zip(states, steps, strict=True)
    ]
    is_fused = now.clock.updates_all(config) and product and turn is None and not now.side_stream.is_open
    if not is_fused and _updates_any(now, config):
        update_scales = _update_scales(scales, states, now.clock, config)
        backend.kron_step_(groups, update_scales, norms, rule, update=True, precondition=False)
    if turn is not None:
        refresh_roots(states, config, backend, (scales > 0).split_with_sizes(sizes), turn)
    now.side_stream.join()
    if product:
        backend.kron_step_(groups, scales, norms, rule, update=is_fused, precondition=True)
    return list(norms.split_with_sizes(sizes))


def _step_of_any_order(state: GroupState, config: Config, backend: Backend, now: BlockGroupStep) -> Tensor:
    """Blocks of any order, and modes without a factor."""
    in_turns = makes_roots_in_turns(state.group, config, now.scales.device)
    if _updates_any(now, config):
        ones = now.active.to(now.scales.dtype)
        update_scales = _update_scales(ones, [state], now.clock, config)
        damped_updates = now.clock.damped_updates(config, in_turns)
        rule = replace(config.update_rule(now.scales.device, damped_updates), coupled=False)
        unfoldings = _unfoldings(_gradients(now, state), state, config, backend)
        for mode, unfolding in zip(state.modes, unfoldings, strict=True):
            factor, stats = state.factors[mode], state.factor_stats[mode]
            backend.update_factor_(factor, stats, [unfolding], update_scales, rule)
    turn = now.turn(config, in_turns)
    if turn is not None:
        refresh_roots([state], config, backend, [now.active], turn)
    if not now.clock.preconditions(config):
        return torch.zeros_like(now.scales)
    now.side_stream.join()
    directions = _over_rms(_gather(now.directions, state), state)
    return _write(multiply_modes(directions, state.roots), now)


def _updates_any(now: BlockGroupStep, config: Config) -> bool:
    """Whether any factor may be updated: those that have not started are in any case."""
    return now.clock.factors_due(config) or now.has_newcomers


def _update_scales(scales: Tensor, states: Sequence[GroupState], clock: Clock, config: Config) -> Tensor:
    """Scales of the groups' blocks, 0 for those whose factors stay."""
    if clock.updates_all(config):
        return scales
    weights = torch.cat([state.factor_stats[state.modes[0]][:, WEIGHT] for state in states])
    return clock.update_scales(scales, weights, config)


def _unfoldings(blocks: Tensor, state: GroupState, config: Config, backend: Backend) -> list[Tensor]:
    """What every mode's factor is updated from, ``[N, d_i, product of the others]``.

    With coupling, the gradient that the other modes' roots have whitened, of the gradient's own norm.
    """
    if config.coupling == "none":
        return [_unfold(blocks, mode) for mode in state.modes]
    unfoldings = []
    for mode in state.modes:
        others = [root[:, :0] if i == mode else root for i, root in enumerate(state.roots)]
        unfolding = _unfold(multiply_modes(blocks, others), mode)
        stretch = squared_norms(unfolding) / squared_norms(blocks)
        scale = torch.where(stretch > 0, stretch.rsqrt(), 0)
        unfoldings.append(unfolding * scale[:, None, None].to(unfolding.dtype))
    return unfoldings


def makes_roots_in_turns(group: Group, config: Config, device: torch.device) -> bool:
    """Whether roots are made by products, of some blocks on every step; decompositions make all at once."""
    return _root_method(group, config, device) == "polar"


def _root_method(group: Group, config: Config, device: torch.device) -> str:
    p = config.root_order(len(group.block_shape))
    return roots.resolve_method(config.wanted_root_method, p, device)


def refresh_roots(
    states: Sequence[GroupState], config: Config, backend: Backend, active: Sequence[Tensor], turn: Turn
) -> None:
    """New roots for all modes of active blocks that are due and have had a gradient."""
    squares: list[RootSide] = []
    polynomials = polar.POLYNOMIALS[config.polar_steps]
    for state, own in zip(states, active, strict=True):
        p, method = (
            config.root_order(len(state.group.block_shape)),
            _root_method(state.group, config, own.device),
        )
        by_products = functools.partial(roots.polar_roots, polynomials=polynomials)
        take_roots = by_products if method == "polar" else backend.decomposed_roots
        for mode in state.modes:
            side = Side(state.factors[mode], state.factor_stats[mode], state.roots[mode])
            of = RootSide(side, state.root_stats[mode], own, state.columns(mode))
            if method == "polar" and p == 2:
                squares.append(of)
            else:
                roots.refresh_(of, functools.partial(take_roots, p=p), method == "eigh", turn)
    if squares:
        rule = RootRule(polynomials, roots.RESIDUAL_BOUND, config.precision)
        backend.polar_roots_(squares, rule, turn)


def _divide_by_whitened(state: GroupState, backend: Backend, now: BlockGroupStep, norms: Tensor) -> Tensor:
    """Every block's update over the root of c, the running mean square of its whitened gradient.

    A gradient enters c before it enters the length, so that a spike is not taken at its own size.

    Returns:
        The squared norms ``[N]`` of the new updates.
    """
    stats = state.root_stats[state.modes[0]]
    last = _whitened(state, backend, now)
    counted = now.active & (last > 0)
    for column, value in ((WHITENED_MEAN, last), (WHITENED_WEIGHT, torch.ones_like(last))):
        mean = WHITENED_DECAY * stats[:, column] + (1 - WHITENED_DECAY) * value
        stats[:, column] = torch.where(counted, mean, stats[:, column])
    mean, weight = stats[:, WHITENED_MEAN], stats[:, WHITENED_WEIGHT]
    of_first = norms / math.prod(state.group.block_shape)  # before a root has whitened anything
    square = torch.where(weight > 0, mean / weight, of_first)
    scale = torch.where(square > 0, square.rsqrt(), 0)
    order = len(state.group.block_shape)
    for view, blocks in with_blocks(now.out, order):
        view.mul_(scale[blocks].reshape(*view.shape[: view.ndim - order], *[1] * order))
    return norms * scale.square()


def _whitened(state: GroupState, backend: Backend, now: BlockGroupStep) -> Tensor:
    """Mean square ``[N]`` of the gradient whitened on all sides."""
    if state.is_kron:  # told by both updates
        return (state.factor_stats[0][:, WHITENED] + state.factor_stats[1][:, WHITENED]) / 2
    whitened = multiply_modes(_over_rms(_gradients(now, state), state), state.roots)
    return (squared_norms(whitened) / math.prod(state.group.block_shape)).to(whitened.dtype)


def _gather(views: list[Tensor], state: GroupState) -> Tensor:
    """Block views as one batch ``[N, *block_shape]`` in the compute dtype."""
    return gather(views, len(state.group.block_shape), state.root_stats[state.modes[0]].dtype)


def _gradients(now: BlockGroupStep, state: GroupState) -> Tensor:
    """Gradients times their scales; 0 where that is 0, whatever the block holds."""
    scales = _of_blocks(now.scales, state)
    return torch.where(scales > 0, _gather(now.grads, state) * scales, 0)


def _over_rms(blocks: Tensor, state: GroupState) -> Tensor:
    """Blocks over the root mean square of their gradients; 0 for one that has had none."""
    rms = _of_blocks(state.factor_stats[state.modes[0]][:, RMS], state)
    return torch.where(rms > 0, blocks / rms, 0)


def _of_blocks(values: Tensor, state: GroupState) -> Tensor:
    """``[N]`` as it multiplies blocks ``[N, *block_shape]``."""
    return values.reshape(-1, *[1] * len(state.group.block_shape))


def _unfold(blocks: Tensor, mode: int) -> Tensor:
    """mat_i: ``[N, d_i, product of the others]``."""
    moved = blocks.movedim(mode + 1, 1)
    return moved.reshape(*moved.shape[:2], -1)


def _write(product: Tensor, now: BlockGroupStep) -> Tensor:
    """Write a batch into the update's views; its squared norms ``[N]``, 0 where a block is not active."""
    for view, blocks in with_blocks(now.out, product.ndim - 1):
        view.copy_(product[blocks].reshape(view.shape))
    norms = product.flatten(1).square().sum(1)
    return torch.where(now.active, norms, 0)
