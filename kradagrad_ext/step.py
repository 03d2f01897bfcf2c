"""The algorithm: one step of a param batch, from its gradients to its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .backends import resolve
from .backends.base import COEFFICIENTS, Backend
from .backends.scalars import ScalarRule
from .block_layout import Blocked, Workspace
from .config import Config, all_supported, check_rate, check_tensor, parameter_name, plain
from .packed import precondition_packed
from .param_batch import ParamBatch
from .preconditioner import (
    BlockGroupStep,
    makes_roots_in_turns,
    precondition_captured,
    precondition_groups,
)
from .schedule import Schedule
from .side_stream import SideStream
from .state import BatchState, compute_dtype


@dataclass(frozen=True)
class GroupContext:
    """One parameter group of an optimizer on this step.

    Attributes:
        position: of the group in the optimizer's ``param_groups``.  group: its dict there.
        config: its checked options.  schedule: this step's.
        grads: this rank's part of the gradients of `params`; empty before `with_gradients`.
    """

    position: int
    group: dict[str, Any]
    config: Config
    schedule: Schedule
    grads: Sequence[Tensor | None] = ()

    @classmethod
    def of(cls, position: int, group: dict[str, Any], config: Config) -> GroupContext:
        """Check the group's `lr` and put its step counter where `capturable` needs it.

        The counter is an int, or with `capturable` a 0-dim int64 tensor on the device of the parameters.
        """
        check_rate("lr", plain(group["lr"]), looks=not config.capturable)
        if config.capturable:
            device = group["params"][0].device if group["params"] else torch.device("cpu")
            if isinstance(group["step"], int):
                group["step"] = torch.full((), group["step"], dtype=torch.int64, device=device)
            group["step"] = group["step"].to(device)
            return cls(position, group, config, Schedule(counter=group["step"]))
        group["step"] = int(group["step"])
        return cls(position, group, config, Schedule(group["step"] + 1))

    @property
    def params(self) -> list[Tensor]:
        params: list[Tensor] = self.group["params"]
        return params

    @property
    def lr(self) -> float | Tensor:
        lr: float | Tensor = plain(self.group["lr"])
        return lr

    @property
    def preconditions(self) -> bool:
        return self.schedule.preconditions(self.config)

    @property
    def has_gradient(self) -> bool:
        """True if any parameter has a gradient."""
        return any(grad is not None for grad in self.grads)

    def with_gradients(self, locals_of: Callable[[list[Any]], list[Any]]) -> GroupContext:
        """Return this context with its gradients, checked.

        Args:
            locals_of: returns this rank's part of each tensor, and None for None.

        Raises:
            TypeError: the ops do not support a gradient's layout or dtype.
        """
        grads = locals_of([p.grad for p in self.params])
        if not all_supported([grad for grad in grads if grad is not None]):
            for i, grad in enumerate(grads):
                if grad is not None:
                    check_tensor(grad, f"the gradient of {parameter_name(self.position, i)}")
        return replace(self, grads=grads)

    def count(self) -> None:
        """Advance this group's step counter."""
        if self.schedule.counter is None:
            self.group["step"] = self.schedule.number
        else:
            self.schedule.counter.add_(1)


@dataclass(frozen=True)
class LossScale:
    """The values that `torch.amp.GradScaler` gives an optimizer before a step.

    Attributes:
        scale: of the gradients, a one-element tensor; None if they are unscaled already.
        found_inf: a one-element tensor, positive if any gradient is not finite; None without a scaler.
    """

    scale: Tensor | None = None
    found_inf: Tensor | None = None

    @torch.no_grad()
    def unscale_(self, contexts: Iterable[GroupContext]) -> None:
        """Divide all gradients by the scale, in place, as the scaler does without `amp_scaling`."""
        if self.scale is None:
            return
        by_device: dict[torch.device, list[Tensor]] = {}
        for grad in (grad for context in contexts for grad in context.grads if grad is not None):
            by_device.setdefault(grad.device, []).append(grad)
        for device, grads in by_device.items():
            torch._foreach_mul_(grads, self.scale.to(device).double().reciprocal().float().reshape(()))

    def unscaled(self, norms: Tensor) -> Tensor:
        """Return the unscaled norms, from norms of gradients that are still scaled."""
        return norms if self.scale is None else norms / self.scale.to(norms).reshape(())

    def refused(self, device: torch.device) -> Tensor | None:
        """Return a 0-dim bool, true if this step may change nothing; None without a scaler."""
        return None if self.found_inf is None else (self.found_inf > 0).to(device).reshape(())


@dataclass(frozen=True)
class BatchStep:
    """One param batch's share of a step, checked and ready to run.

    Attributes:
        backend: of the ops on parameters.  group_backends: of each shape group's blocks.
        schedule: the step's.  state: the param batch's.
        lr, weight_decay: 0-dim, on the parameters' device.
        side_stream: computes moments while factors are updated.
    """

    batch: ParamBatch
    config: Config
    backend: Backend
    group_backends: tuple[Backend, ...]
    schedule: Schedule
    state: BatchState
    lr: Tensor
    weight_decay: Tensor
    side_stream: SideStream

    @property
    def preconditions(self) -> bool:
        return self.schedule.preconditions(self.config)

    @property
    def scales_updates(self) -> bool:
        """True if `scale_updates_` has to give any update another length."""
        return bool(self.batch.groups) or not self.config.scalar_rule.keeps_grafts

    @property
    def host_looks(self) -> bool:
        """True if the host may wait for values, because decompositions make it wait in any case."""
        device = self.batch.key[0]
        return not all(makes_roots_in_turns(group, self.config, device) for group in self.batch.groups)


def backend_of(config: Config, device: torch.device, dtype: torch.dtype, side: int = 0) -> Backend:
    """Return the backend of parameters, or of blocks with this longest side; see `backends.resolve`."""
    return resolve(config.backend, device, compute_dtype(dtype), side)


def plan_batch(batch: ParamBatch, context: GroupContext, tensors: Sequence[Tensor]) -> BatchStep:
    """Plan a param batch's work on this step.

    Args:
        tensors: the entries ``batch.entries`` of its parameters' states.
    """
    config = batch.options(context.config)
    lr, decay = batch.number("lr", context.lr), batch.number("weight_decay", config.weight_decay)
    group_backends = tuple(backend_of(config, *batch.key, max(group.block_shape)) for group in batch.groups)
    side_stream = SideStream(batch.key[0], bool(batch.groups) and context.schedule.factors_due(config))
    backend = backend_of(config, *batch.key)
    state = batch.state(tensors)
    return BatchStep(batch, config, backend, group_backends, context.schedule, state, lr, decay, side_stream)


@dataclass(frozen=True)
class Guard:
    """The result of `guard_gradients_` on the gradients of M matrices.

    Attributes:
        coefficients: ``[M, 10]``, see `backends.base.COEFFICIENTS`.
        active: ``[M]`` bool, true for matrices that take part in the step.
        restarts: ``[M]`` bool, true where gradients have changed their scale so much that the factors'
            contents are useless.
    """

    coefficients: Tensor
    active: Tensor
    restarts: Tensor

    @property
    def scales(self) -> Tensor:
        """The gradients' multipliers ``[M]``, 0 for an inactive matrix; `scale_updates` overwrites them."""
        return self.coefficients[:, 3]

    def __getitem__(self, rows: slice | Tensor) -> Guard:
        return Guard(self.coefficients[rows], self.active[rows], self.restarts[rows])


def guard_gradients(
    backend: Backend,
    rule: ScalarRule,
    scalars: Tensor,
    norms: Tensor,
    numel: Tensor,
    present: Tensor,
    weight_decay: Tensor,
) -> Guard:
    """Guard against non-finite gradients and spikes, and count both in `scalars`.

    Args:
        norms: |g|_F ``[M]`` float64.  numel: elements of each matrix.  present: ``[M]`` bool.
        weight_decay: 0-dim.
    """
    count = len(scalars)
    guard = Guard(scalars.new_empty(count, COEFFICIENTS), present.new_empty(count), present.new_empty(count))
    backend.guard_gradients_(
        scalars,
        guard.coefficients,
        guard.active,
        guard.restarts,
        norms,
        numel,
        present,
        weight_decay,
        rule,
    )
    return guard


def step_batch(step: BatchStep, grads: list[Tensor], present: Tensor, loss_scale: LossScale) -> None:
    """Take one step: guards, momentum, factors and roots, preconditioned update, graft, parameters.

    Args:
        grads, present: see `ParamBatch.gradients`.
    """
    batch, config, params, scalars = step.batch, step.config, step.batch.params, step.state.scalars
    refused = loss_scale.refused(present.device)
    present = present if refused is None else present & ~refused
    norms = batch.gradient_norms(grads, host_looks=not config.capturable)
    rule = config.scalar_rule
    guard = guard_gradients(step.backend, rule, scalars, norms, batch.numel, present, step.weight_decay)
    blocked, workspace = batch.blocked(grads), batch.workspace(config, step.state.momenta)
    graft_norms = update_moments(step, params, grads, workspace, guard)
    updates, update_norms = precondition(step, blocked, workspace, guard)
    if step.scales_updates:
        scale_updates(step, guard, graft_norms, update_norms)
    apply_updates(step, params, updates, fallbacks_of(step, blocked, workspace), guard)


def update_moments(
    step: BatchStep,
    params: list[Tensor],
    grads: list[Tensor],
    workspace: Workspace,
    guard: Guard,
) -> Tensor:
    """Update moments and directions.

    Returns:
        The squared norms of the spans of the grafting updates; empty if no update needs another length.
    """
    batch, config, state = step.batch, step.config, step.state
    averaged = config.momentum_on == "gradient"
    decay2, weight2 = config.second_moment_rule
    with step.side_stream.launches():
        graft_norms = batch.like.new_empty(batch.spans if step.scales_updates else 0)
        step.backend.update_moments_(
            batch.matrices(state.momenta) if averaged else [],
            batch.matrices(state.second_moments) if state.second_moments else [],
            batch.matrices(workspace.written) if workspace.written else [],
            graft_norms,
            batch.matrices(grads),
            batch.matrices(params),
            guard.coefficients,
            guard.active,
            config.betas[0],
            decay2,
            weight2,
            config.nesterov,
        )
    return graft_norms


def precondition(
    step: BatchStep, grads: Blocked, workspace: Workspace, guard: Guard
) -> tuple[list[Tensor], Tensor]:
    """Update factors and roots that are due, and compute the preconditioned updates.

    Returns:
        The update of each matrix, empty tensors where none is computed, and the blocks' squared norms.
    """
    batch, state = step.batch, step.state
    if not batch.groups:
        return [batch.like] * len(guard.active), batch.like
    batch.restart(state, guard.restarts)
    has_new_blocks = not step.host_looks or batch.has_new_blocks(state, guard.active)
    steps = [
        BlockGroupStep(
            step.schedule,
            has_new_blocks,
            step.side_stream,
            scales,
            grads.views[i],
            workspace.directions.views[i],
            workspace.updates.views[i] if step.preconditions else [],
        )
        for i, scales in enumerate(batch.of_blocks(guard.scales))
    ]
    rule = precondition_captured if step.config.capturable else precondition_groups
    advance = partial(precondition_packed, rule) if step.config.packed else rule
    try:
        block_norms = advance(state.groups, step.config, step.group_backends, steps)
    finally:
        step.side_stream.join()
    norms = block_norms[0] if len(block_norms) == 1 else torch.cat(block_norms)
    if not step.preconditions:
        return [batch.like] * len(guard.active), norms
    return batch.matrices(workspace.updates.tensors), norms


def scale_updates(step: BatchStep, guard: Guard, graft_norms: Tensor, update_norms: Tensor) -> None:
    """Write the lengths of all updates to the coefficients, from the squared norms of spans and of blocks."""
    batch, is_used = step.batch, step.schedule.preconditions_on_device(step.config)
    step.backend.scale_updates_(
        guard.coefficients,
        step.state.scalars,
        graft_norms,
        batch.span_offsets,
        update_norms,
        batch.block_order,
        batch.block_offsets,
        batch.numel,
        batch.preconditioned if is_used is True else batch.preconditioned & is_used,
        step.config.scalar_rule,
    )


def fallbacks_of(step: BatchStep, grads: Blocked, workspace: Workspace) -> list[Tensor]:
    """Return the tensor that gives each matrix its direction without a sound preconditioned update.

    With momentum of updates that is the gradient; else the direction, or the momentum if the update has
    overwritten the direction.
    """
    if step.config.momentum_on == "update":  # the graft's coefficient then contains the gradient's scale
        return step.batch.matrices(grads.tensors)
    if step.preconditions and workspace.fallbacks is not None:
        return step.batch.matrices(workspace.fallbacks)
    return step.batch.matrices(workspace.directions.tensors)


def apply_updates(
    step: BatchStep,
    params: list[Tensor],
    updates: list[Tensor],
    fallbacks: list[Tensor],
    guard: Guard,
) -> None:
    """Graft the updates, apply weight decay and the momentum of updates, and write the parameters."""
    batch, config, state = step.batch, step.config, step.state
    averaged = config.momentum_on == "gradient"
    step.backend.apply_updates_(
        batch.matrices(params),
        [] if averaged else batch.matrices(state.momenta),
        batch.matrices(state.residuals) if state.residuals else [],
        updates,
        fallbacks,
        batch.matrices(state.second_moments) if state.second_moments else [],
        guard.coefficients,
        guard.active,
        step.lr,
        config.betas[0],
        config.nesterov,
    )
