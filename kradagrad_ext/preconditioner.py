"""One step of shape groups: factors first, then roots if due, then the preconditioned direction.

Without coupling, the factors of all modes are updated from the gradient itself, as in the paper's KrADagrad*.
With coupling, each mode's factor is updated from the gradient that the roots of the other modes have whitened
(docs/concepts.md).
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
from .blocking import ShapeGroup
from .config import Config
from .schedule import Schedule
from .side_stream import SideStream
from .state import GroupState

WHITENED_DECAY = 0.99
"""Decay of the running mean of the whitened gradient's mean square."""


@dataclass(frozen=True)
class BlockGroupStep:
    """A shape group's input and output on this step.

    Attributes:
        schedule: the step's.
        has_new_blocks: true if active blocks may lack a factor, or a root since the factor started.
        side_stream: computes `directions`; join it before reading them.
        scales: ``[N]``, multiplier of each block's gradient; 0 for an inactive block.
        grads, directions, out: block views ``[*grid, *block_shape]``; `out` is written.
    """

    schedule: Schedule
    has_new_blocks: bool
    side_stream: SideStream
    scales: Tensor
    grads: list[Tensor]
    directions: list[Tensor]
    out: list[Tensor]

    def turn(self, config: Config, in_turns: bool) -> Turn | None:
        """Return the turn of blocks whose roots are due; None if none are."""
        turn = self.schedule.turn(config, in_turns)
        return Turn(turns=0) if turn is None and self.has_new_blocks else turn

    @property
    def active(self) -> Tensor:
        """The blocks that take part in the step, ``[N]`` bool."""
        return self.scales > 0


def precondition_groups(
    states: Sequence[GroupState], config: Config, backends: Sequence[Backend], steps: Sequence[BlockGroupStep]
) -> list[Tensor]:
    """Advance all shape groups of a param batch, each by its backend, and write the preconditioned updates.

    Returns:
        For each shape group, the squared norms ``[N]`` of its updates, 0 for inactive blocks.
    """
    norms: list[Tensor] = [torch.empty(0)] * len(states)
    fused: dict[str, list[int]] = {}
    for i, (state, backend, step) in enumerate(zip(states, backends, steps, strict=True)):
        if state.is_kron:
            fused.setdefault(backend.name, []).append(i)
        else:
            norms[i] = _step_of_any_order(state, config, backend, step)
    for numbers in fused.values():
        backend, fused_steps = backends[numbers[0]], [steps[i] for i in numbers]
        fused_norms = _step_of_matrices([states[i] for i in numbers], config, backend, fused_steps)
        for i, norm in zip(numbers, fused_norms, strict=True):
            norms[i] = norm
    if config.graft == "whitened" and steps and steps[0].schedule.preconditions(config):
        for i, (state, backend, step) in enumerate(zip(states, backends, steps, strict=True)):
            norms[i] = _divide_by_whitened(state, backend, step, norms[i])
    return norms


def precondition_captured(
    states: Sequence[GroupState], config: Config, backends: Sequence[Backend], steps: Sequence[BlockGroupStep]
) -> list[Tensor]:
    """Run `precondition_groups` for a CUDA graph: the same launches on every step, no host read.

    The norms are 0 on steps before `start_step`, whose updates are not used.
    """
    norms = precondition_groups(states, config, backends, steps)
    masks = [step.schedule.preconditions_on_device(config) for step in steps]
    return [norm * mask for norm, mask in zip(norms, masks, strict=True)]


def _step_of_matrices(
    states: Sequence[GroupState], config: Config, backend: Backend, steps: Sequence[BlockGroupStep]
) -> list[Tensor]:
    """Advance shape groups of order 2 by one fused op, or by two if roots are computed in between."""
    step = steps[0]
    in_turns = makes_roots_in_turns(states[0].group, config, step.scales.device)
    product = step.schedule.preconditions(config)
    turn = step.turn(config, in_turns)
    sizes = [len(each.scales) for each in steps]
    scales = torch.cat([each.scales for each in steps])
    norms = torch.empty_like(scales) if product else torch.zeros_like(scales)
    rule = config.update_rule(norms.device, step.schedule.damped_updates(config, in_turns))
    groups = [
        BlockGroup(state.side(0), state.side(1), each.grads, each.directions, each.out)
        for state, each in zip(states, steps, strict=True)
    ]
    is_fused = step.schedule.updates_all(config) and product and turn is None and not step.side_stream.is_open
    if not is_fused and _updates_any(step, config):
        update_scales = _update_scales(scales, states, step.schedule, config)
        backend.kron_step_(groups, update_scales, norms, rule, update=True, precondition=False)
    if turn is not None:
        refresh_roots(states, config, backend, (scales > 0).split_with_sizes(sizes), turn)
    step.side_stream.join()
    if product:
        backend.kron_step_(groups, scales, norms, rule, update=is_fused, precondition=True)
    return list(norms.split_with_sizes(sizes))


def _step_of_any_order(state: GroupState, config: Config, backend: Backend, step: BlockGroupStep) -> Tensor:
    """Advance a shape group of any order, which may have modes without a factor."""
    in_turns = makes_roots_in_turns(state.group, config, step.scales.device)
    if _updates_any(step, config):
        ones = step.active.to(step.scales.dtype)
        update_scales = _update_scales(ones, [state], step.schedule, config)
        damped_updates = step.schedule.damped_updates(config, in_turns)
        rule = replace(config.update_rule(step.scales.device, damped_updates), coupled=False)
        unfoldings = _unfoldings(_gradients(step, state), state, config, backend)
        for mode, unfolding in zip(state.modes, unfoldings, strict=True):
            factor, stats = state.factors[mode], state.factor_stats[mode]
            backend.update_factor_(factor, stats, [unfolding], update_scales, rule)
    turn = step.turn(config, in_turns)
    if turn is not None:
        refresh_roots([state], config, backend, [step.active], turn)
    if not step.schedule.preconditions(config):
        return torch.zeros_like(step.scales)
    step.side_stream.join()
    directions = _over_rms(_gather(step.directions, state), state)
    return _write(multiply_modes(directions, state.roots), step)


def _updates_any(step: BlockGroupStep, config: Config) -> bool:
    """Return True if any factor may be due for an update: one that has not started is always due."""
    return step.schedule.factors_due(config) or step.has_new_blocks


def _update_scales(
    scales: Tensor, states: Sequence[GroupState], schedule: Schedule, config: Config
) -> Tensor:
    """Return the scales of the shape groups' blocks, 0 for blocks whose factors are not due."""
    if schedule.updates_all(config):
        return scales
    weights = torch.cat([state.factor_stats[state.modes[0]][:, WEIGHT] for state in states])
    return schedule.update_scales(scales, weights, config)


def _unfoldings(blocks: Tensor, state: GroupState, config: Config, backend: Backend) -> list[Tensor]:
    """Return the unfolding that updates each mode's factor, ``[N, d_i, product of the others]``.

    With coupling, it is that of the gradient whitened by the other modes' roots, scaled to the norm that the
    gradient had before.
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


def makes_roots_in_turns(group: ShapeGroup, config: Config, device: torch.device) -> bool:
    """Return True if products compute roots, some on every step; decompositions compute all at once."""
    return _root_method(group, config, device) == "polar"


def _root_method(group: ShapeGroup, config: Config, device: torch.device) -> str:
    p = config.root_order(len(group.block_shape))
    return roots.resolve_method(config.wanted_root_method, p, device)


def refresh_roots(
    states: Sequence[GroupState], config: Config, backend: Backend, active: Sequence[Tensor], turn: Turn
) -> None:
    """Refresh the roots of all modes of active blocks that are due and have had a gradient."""
    squares: list[RootSide] = []
    polynomials = polar.POLYNOMIALS[config.polar_steps]
    for state, is_active in zip(states, active, strict=True):
        p = config.root_order(len(state.group.block_shape))
        method = _root_method(state.group, config, is_active.device)
        by_products = functools.partial(roots.roots_by_products, polynomials=polynomials)
        take_roots = by_products if method == "polar" else backend.decomposed_roots
        for mode in state.modes:
            side = Side(state.factors[mode], state.factor_stats[mode], state.roots[mode])
            root_side = RootSide(side, state.root_stats[mode], is_active, state.columns(mode))
            if method == "polar" and p == 2:
                squares.append(root_side)
            else:
                roots.refresh_due_(root_side, functools.partial(take_roots, p=p), method == "eigh", turn)
    if squares:
        rule = RootRule(polynomials, roots.RESIDUAL_BOUND, config.precision)
        backend.polar_roots_(squares, rule, turn)


def _divide_by_whitened(state: GroupState, backend: Backend, step: BlockGroupStep, norms: Tensor) -> Tensor:
    """Divide every block's update by the root of c, the running mean square of its whitened gradient.

    c is updated before it gives the length, so that a spike is divided by a mean that contains it.

    Returns:
        The squared norms ``[N]`` of the new updates.
    """
    stats = state.root_stats[state.modes[0]]
    last = _whitened(state, backend, step)
    counted = step.active & (last > 0)
    for column, value in ((WHITENED_MEAN, last), (WHITENED_WEIGHT, torch.ones_like(last))):
        mean = WHITENED_DECAY * stats[:, column] + (1 - WHITENED_DECAY) * value
        stats[:, column] = torch.where(counted, mean, stats[:, column])
    mean, weight = stats[:, WHITENED_MEAN], stats[:, WHITENED_WEIGHT]
    update_square = norms / math.prod(state.group.block_shape)  # before a root has whitened anything
    square = torch.where(weight > 0, mean / weight, update_square)
    scale = torch.where(square > 0, square.rsqrt(), 0)
    order = len(state.group.block_shape)
    for view, blocks in with_blocks(step.out, order):
        view.mul_(scale[blocks].reshape(*view.shape[: view.ndim - order], *[1] * order))
    return norms * scale.square()


def _whitened(state: GroupState, backend: Backend, step: BlockGroupStep) -> Tensor:
    """Return the mean square ``[N]`` of the gradient whitened on all sides."""
    if state.is_kron:  # both factor updates have computed it
        return (state.factor_stats[0][:, WHITENED] + state.factor_stats[1][:, WHITENED]) / 2
    whitened = multiply_modes(_over_rms(_gradients(step, state), state), state.roots)
    return (squared_norms(whitened) / math.prod(state.group.block_shape)).to(whitened.dtype)


def _gather(views: list[Tensor], state: GroupState) -> Tensor:
    """Copy block views into one tensor ``[N, *block_shape]`` of the compute dtype."""
    return gather(views, len(state.group.block_shape), state.root_stats[state.modes[0]].dtype)


def _gradients(step: BlockGroupStep, state: GroupState) -> Tensor:
    """Return gradients times their scales; 0 for blocks with scale 0, even where a gradient is not finite."""
    scales = _of_blocks(step.scales, state)
    return torch.where(scales > 0, _gather(step.grads, state) * scales, 0)


def _over_rms(blocks: Tensor, state: GroupState) -> Tensor:
    """Divide blocks by the root mean square of their gradients; 0 for a block without a gradient so far."""
    rms = _of_blocks(state.factor_stats[state.modes[0]][:, RMS], state)
    return torch.where(rms > 0, blocks / rms, 0)


def _of_blocks(values: Tensor, state: GroupState) -> Tensor:
    """Reshape ``[N]`` so that it broadcasts over blocks ``[N, *block_shape]``."""
    return values.reshape(-1, *[1] * len(state.group.block_shape))


def _unfold(blocks: Tensor, mode: int) -> Tensor:
    """Return mat_i of blocks, ``[N, d_i, product of the others]``."""
    moved = blocks.movedim(mode + 1, 1)
    return moved.reshape(*moved.shape[:2], -1)


def _write(product: Tensor, step: BlockGroupStep) -> Tensor:
    """Write blocks into the update's views; return their squared norms ``[N]``, 0 for inactive blocks."""
    for view, blocks in with_blocks(step.out, product.ndim - 1):
        view.copy_(product[blocks].reshape(view.shape))
    norms = product.flatten(1).square().sum(1)
    return torch.where(step.active, norms, 0)
