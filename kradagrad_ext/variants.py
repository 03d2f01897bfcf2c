"""One step of groups of blocks: factors first, then roots if due, then the preconditioned direction.

As in the paper's KrADagrad*, the factors of all modes are updated from the gradient itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import roots
from .backends.base import Backend
from .clock import Clock
from .config import Config
from .state import GroupState

DAMPING_REFINE = 3
"""Refinement of the damping where it is not exact: N = I + c X is close to I, three iterates reach it."""


@dataclass(frozen=True)
class GroupStep:
    """What a group's blocks need to know about this step.

    Attributes:
        clock: the number of the step.
        fresh: whether a parameter of the bucket takes its first step.
        active: ``[N]`` bool, the blocks that take part.
        grads, directions, out: block views ``[*grid, *block_shape]``; `out` is written.
    """

    clock: Clock
    fresh: bool
    active: Tensor
    grads: list[Tensor]
    directions: list[Tensor]
    out: list[Tensor]

    def refreshes_roots(self, config: Config) -> bool:
        """When due; for a new parameter at once."""
        return self.clock.roots_due(config) or self.fresh

    def updated(self, config: Config) -> Tensor:
        """Blocks whose factors are updated, where any may be."""
        return self.active & self.clock.factors_due_on_device(config)


def step(
    states: Sequence[GroupState], config: Config, backends: Sequence[Backend], nows: Sequence[GroupStep]
) -> list[Tensor]:
    """Advance all groups of a bucket, each by its backend, and write their preconditioned updates.

    Returns:
        For each group, the squared norms ``[N]`` of its updates, 0 for blocks that are not active.
    """
    norms: list[Tensor] = [torch.empty(0)] * len(states)
    fused: dict[str, list[int]] = {}
    for i, (state, backend, now) in enumerate(zip(states, backends, nows, strict=True)):
        if state.is_kron:
            fused.setdefault(backend.name, []).append(i)
        else:
            norms[i] = _step_of_any_order(state, config, backend, now)
    for chosen in fused.values():
        backend, own_nows = backends[chosen[0]], [nows[i] for i in chosen]
        own = _matrix_step([states[i] for i in chosen], config, backend, own_nows)
        for i, norm in zip(chosen, own, strict=True):
            norms[i] = norm
    return norms


def _matrix_step(
    states: Sequence[GroupState], config: Config, backend: Backend, nows: Sequence[GroupStep]
) -> list[Tensor]:
    """Order 2, all groups in one fused call, or in two where the new factors must be rooted in between."""
    now = nows[0]
    update, refresh, product = (
        now.clock.factors_due(config),
        now.refreshes_roots(config),
        now.clock.preconditions(config),
    )
    norms = states[0].checks[0].new_zeros(sum(len(state.checks[0]) for state in states))
    apart = refresh or not product or now.clock.leaves_blocks_out(config)
    if update and apart:
        _kron_step(states, config, backend, nows, norms, update=True, product=False)
        update = False
    if refresh:
        for state, own in zip(states, nows, strict=True):
            _refresh(state, range(2), config, backend, own)
    if product:
        _kron_step(states, config, backend, nows, norms, update=update, product=True)
    return list(torch.split(norms, [len(state.checks[0]) for state in states]))


def _kron_step(
    states: Sequence[GroupState],
    config: Config,
    backend: Backend,
    nows: Sequence[GroupStep],
    norms: Tensor,
    *,
    update: bool,
    product: bool,
) -> None:
    backend.kron_step_(
        [state.factors[0] for state in states],
        [state.factors[1] for state in states],
        [state.statistics[0] for state in states],
        [state.statistics[1] for state in states],
        [view for now in nows for view in now.out] if product else [],
        norms,
        [view for now in nows for view in now.grads],
        [view for now in nows for view in now.directions] if product else [],
        [state.roots[0] for state in states] if product else [],
        [state.roots[1] for state in states] if product else [],
        torch.cat([now.active if product else now.updated(config) for now in nows]),
        config.factor_decay,
        config.factor_weight(),
        config.damping,
        config.op_scale(norms.device),
        config.refine,
        config.precision,
        update,
    )


def _step_of_any_order(state: GroupState, config: Config, backend: Backend, now: GroupStep) -> Tensor:
    """Blocks of any order, and modes without a factor."""
    modes = [mode for mode, factored in enumerate(state.group.factored) if factored]
    if now.clock.factors_due(config):
        blocks = _gather(now.grads, state)
        for mode in modes:
            _update_factor(state, mode, config, backend, now.updated(config), [_unfold(blocks, mode)])
    if now.refreshes_roots(config):
        _refresh(state, modes, config, backend, now)
    if not now.clock.preconditions(config):
        return torch.zeros_like(state.checks[0][:, 0])
    return _write(backend.precondition(_gather(now.directions, state), state.roots), now)


def _update_factor(
    state: GroupState, mode: int, config: Config, backend: Backend, active: Tensor, unfolding: list[Tensor]
) -> None:
    backend.update_factor_(
        state.factors[mode],
        state.statistics[mode],
        unfolding,
        active,
        config.factor_decay,
        config.factor_weight(),
        config.damping,
        config.op_scale(active.device),
        config.refine,
        config.precision,
    )


def _refresh(
    state: GroupState, modes: Sequence[int], config: Config, backend: Backend, now: GroupStep
) -> None:
    """New roots for some modes, damping their factors first where the schedule is due."""
    updates = max(1.0, config.root_every / config.factor_every) if now.clock.roots_due(config) else 0.0
    root(state, modes, config, backend, now.active, updates)


def root(
    state: GroupState,
    modes: Sequence[int],
    config: Config,
    backend: Backend,
    active: Tensor,
    updates: float,
) -> None:
    """New roots for some modes of active blocks.

    Args:
        updates: of the factors since the last ones, by which they are damped first; 0 for no damping.
    """
    p = config.root_order(len(state.group.block_shape))
    method = "newton_schulz" if config.capturable else config.root_method
    for mode in modes:
        rooted = active & (state.statistics[mode][:, 0] > 0)
        if updates > 0:
            _damp_(state, mode, config, backend, rooted, updates)
        roots.refresh_(
            state.factors[mode],
            state.roots[mode],
            state.checks[mode],
            rooted,
            p,
            roots.resolve_method(method, p, active.device),
            backend.eigh,
        )


def _damp_(
    state: GroupState, mode: int, config: Config, backend: Backend, active: Tensor, updates: float
) -> None:
    """X <- (X^-1 + c I)^-1, c = (1 - decay) damping mean per factor update since the last refresh.

    Without it a direction that gets no gradient grows as decay^-n for ever. It is the factor update with
    the unfolding sqrt(c) I, and so keeps its guarantee. A multiple of the rounding unit is added to the
    diagonal, so that what rounding took from the smallest eigenvalues never adds up to a negative one.
    """
    factor, statistics = state.factors[mode], state.statistics[mode]
    if config.factor_decay < 1:
        c = (1 - config.factor_decay) * config.damping * updates * statistics[:, 0]
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        scale, refine = ("exact", 0) if config.factorises(factor.device) else ("frobenius", DAMPING_REFINE)
        for part in roots.slices(factor, scale == "exact"):
            unfolding = [c[part].sqrt()[:, None, None] * identity]
            backend.update_factor_(
                factor[part],
                statistics[part],
                unfolding,
                active[part],
                1.0,
                1.0,
                0.0,
                scale,
                refine,
                config.precision,
            )
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    floor = 4 * torch.finfo(factor.dtype).eps * diagonal.mean(-1, keepdim=True)
    diagonal.add_(torch.where(active[:, None], floor, 0))


def _gather(views: list[Tensor], state: GroupState) -> Tensor:
    """Block views as one batch ``[N, *block_shape]`` in the compute dtype."""
    return torch.cat([view.reshape(-1, *state.group.block_shape) for view in views]).to(state.checks[0].dtype)


def _unfold(blocks: Tensor, mode: int) -> Tensor:
    """mat_i: ``[N, d_i, product of the others]``."""
    moved = blocks.movedim(mode + 1, 1)
    return moved.reshape(*moved.shape[:2], -1)


def _write(product: Tensor, now: GroupStep) -> Tensor:
    """Write a batch into the update's views; its squared norms ``[N]``, 0 where a block is not active."""
    start = 0
    for view in now.out:
        blocks = math.prod(view.shape[: view.ndim - product.ndim + 1])
        view.copy_(product[start : start + blocks].reshape(view.shape))
        start += blocks
    norms = product.flatten(1).square().sum(1)
    return torch.where(now.active, norms, 0)
