"""The algorithm: one step of a bucket, from its gradients to its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import captured, packed, preconditioner
from .backends import resolve
from .backends.base import COEFFICIENTS, Backend
from .backends.scalars import ScalarRule
from .block_layout import Blocked, Workspace
from .bucket import Bucket
from .clock import Clock
from .config import Config, all_supported, check_rate, check_tensor, parameter_name, plain
from .side_stream import SideStream
from .state import Batches, compute_dtype


@dataclass(frozen=True)
class Settings:
    """One parameter group of an optimizer on this step.

    Attributes:
        grads: what this rank holds of the gradients of `params`; none before they are asked for.
    """

    position: int
    group: dict[str, Any]
    config: Config
    clock: Clock
    grads: Sequence[Tensor | None] = ()

    @classmethod
    def of(cls, position: int, group: dict[str, Any], config: Config) -> Settings:
        """The group with its checked options; its count of steps is brought to where they need it."""
        check_rate("lr", plain(group["lr"]), looks=not config.capturable)
        if config.capturable:
            device = group["params"][0].device if group["params"] else torch.device("cpu")
            if isinstance(group["step"], int):
                group["step"] = torch.full((), group["step"], dtype=torch.int64, device=device)
            group["step"] = group["step"].to(device)
            return cls(position, group, config, Clock(counter=group["step"]))
        group["step"] = int(group["step"])
        return cls(position, group, config, Clock(group["step"] + 1))

    @property
    def params(self) -> list[Tensor]:
        own: list[Tensor] = self.group["params"]
        return own

    @property
    def lr(self) -> float | Tensor:
        own: float | Tensor = plain(self.group["lr"])
        return own

    @property
    def preconditions(self) -> bool:
        return self.clock.preconditions(self.config)

    @property
    def has_gradient(self) -> bool:
        """Whether any parameter has one."""
        return any(grad is not None for grad in self.grads)

    def with_gradients(self, locals_of: Callable[[list[Any]], list[Any]]) -> Settings:
        """The same with its gradients, checked.

        Args:
            locals_of: what this rank holds of tensors, None for None.

        Raises:
            TypeError: a gradient is none that the ops take.
        """
        grads = locals_of([p.grad for p in self.params])
        given = [grad for grad in grads if grad is not None]
        if not all_supported(given):
            for i, grad in enumerate(grads):
                if grad is not None:
                    check_tensor(grad, f"the gradient of {parameter_name(self.position, i)}")
        return replace(self, grads=grads)

    def count(self) -> None:
        """The step, as one that is being taken."""
        if self.clock.counter is None:
            self.group["step"] = self.clock.number
        else:
            self.clock.counter.add_(1)


@dataclass(frozen=True)
class LossScale:
    """What `torch.amp.GradScaler` tells an optimizer before a step.

    Attributes:
        scale: of the gradients, a one-element tensor; None where they were unscaled before.
        found_inf: a one-element tensor, positive if any gradient is not finite; None without a scaler.
    """

    scale: Tensor | None = None
    found_inf: Tensor | None = None

    @torch.no_grad()
    def unscale_(self, settings: Iterable[Settings]) -> None:
        """Divide all gradients by the scale; in place, as the scaler itself would."""
        if self.scale is None:
            return
        by_device: dict[torch.device, list[Tensor]] = {}
        for grad in (grad for own in settings for grad in own.grads if grad is not None):
            by_device.setdefault(grad.device, []).append(grad)
        for device, own in by_device.items():
            torch._foreach_mul_(own, self.scale.to(device).double().reciprocal().float().reshape(()))

    def unscaled(self, norms: Tensor) -> Tensor:
        """Of gradients that are still scaled."""
        return norms if self.scale is None else norms / self.scale.to(norms).reshape(())

    def refused(self, device: torch.device) -> Tensor | None:
        """Whether nothing may change on this step, a 0-dim bool; None if there is nobody to say so."""
        return None if self.found_inf is None else (self.found_inf > 0).to(device).reshape(())


@dataclass(frozen=True)
class Work:
    """One bucket's share of a step, checked and ready to run.

    Attributes:
        backend: of the ops on parameters.  group_backends: of each group's blocks.
        clock: the step.  batches: the state.
        lr, weight_decay: 0-dim, on the parameters' device.
        side_stream: where moments are made while factors are updated.
    """

    bucket: Bucket
    config: Config
    backend: Backend
    group_backends: tuple[Backend, ...]
    clock: Clock
    batches: Batches
    lr: Tensor
    weight_decay: Tensor
    side_stream: SideStream

    @property
    def preconditions(self) -> bool:
        return self.clock.preconditions(self.config)

    @property
    def scales_updates(self) -> bool:
        """Whether any update has another length than it is made with."""
        return bool(self.bucket.groups) or not self.config.scalar_rule.keeps_grafts

    @property
    def host_looks(self) -> bool:
        """Whether the host may wait for values: decompositions make it wait in any case."""
        device = self.bucket.key[0]
        return not all(
            preconditioner.makes_roots_in_turns(group, self.config, device) for group in self.bucket.groups
        )


def backend_of(config: Config, device: torch.device, dtype: torch.dtype, side: int = 0) -> Backend:
    """The backend of parameters, or of blocks with this longest side; raises as `backends.resolve`."""
    return resolve(config.backend, device, compute_dtype(dtype), side)


def plan_work(bucket: Bucket, settings: Settings, tensors: Sequence[Tensor]) -> Work:
    """A bucket's work on this step.

    Args:
        tensors: the entries of its parameters' states that it wants.
    """
    config = bucket.options(settings.config)
    lr, decay = bucket.number("lr", settings.lr), bucket.number("weight_decay", config.weight_decay)
    of_groups = tuple(backend_of(config, *bucket.key, max(group.block_shape)) for group in bucket.groups)
    side_stream = SideStream(bucket.key[0], bool(bucket.groups) and settings.clock.factors_due(config))
    backend = backend_of(config, *bucket.key)
    batches = bucket.batches(tensors)
    return Work(bucket, config, backend, of_groups, settings.clock, batches, lr, decay, side_stream)


@dataclass(frozen=True)
class Guard:
    """What the gradients of M matrices are taken for on a step.

    Attributes:
        coefficients: ``[M, 10]``, see `backends.base.COEFFICIENTS`.
        active: ``[M]`` bool, which matrices take part.
        restarts: ``[M]`` bool, whose scale has changed so much that what factors hold is worth nothing.
    """

    coefficients: Tensor
    active: Tensor
    restarts: Tensor

    @property
    def scales(self) -> Tensor:
        """What gradients are multiplied by ``[M]``, 0 for one that takes no part; until lengths are known."""
        return self.coefficients[:, 3]

    def __getitem__(self, rows: slice | Tensor) -> Guard:
        return Guard(self.coefficients[rows], self.active[rows], self.restarts[rows])


def observe_gradients(
    backend: Backend,
    rule: ScalarRule,
    scalars: Tensor,
    norms: Tensor,
    numel: Tensor,
    present: Tensor,
    weight_decay: Tensor,
) -> Guard:
    """Guard against gradients that are not finite, and spikes; `scalars` count them.

    Args:
        norms: |g|_F ``[M]`` float64.  numel: elements of each matrix.  present: ``[M]`` bool.
        weight_decay: 0-dim.
    """
    count = len(scalars)
    made = Guard(scalars.new_empty(count, COEFFICIENTS), present.new_empty(count), present.new_empty(count))
    backend.observe_gradients_(
        scalars,
        made.coefficients,
        made.active,
        made.restarts,
        norms,
        numel,
        present,
        weight_decay,
        rule,
    )
    return made


def step_bucket(work: Work, grads: list[Tensor], present: Tensor, loss_scale: LossScale) -> None:
    """Guards, momentum, factors and roots, preconditioned update, graft, write.

    Args:
        grads, present: see `Bucket.gradients`.
    """
    bucket, config, params, scalars = work.bucket, work.config, work.bucket.params, work.batches.scalars
    refused = loss_scale.refused(present.device)
    present = present if refused is None else present & ~refused
    norms = bucket.gradient_norms(grads, host_looks=not config.capturable)
    rule = config.scalar_rule
    guard = observe_gradients(work.backend, rule, scalars, norms, bucket.numel, present, work.weight_decay)
    given, own = bucket.blocked(grads), bucket.workspace(config, work.batches.momenta)
    graft_norms = accumulate(work, params, grads, own, guard)
    updates, update_norms = precondition(work, given, own, guard)
    if work.scales_updates:
        scale(work, guard, graft_norms, update_norms)
    write(work, params, updates, fallbacks_of(work, given, own), guard)


def accumulate(
    work: Work,
    params: list[Tensor],
    grads: list[Tensor],
    own: Workspace,
    guard: Guard,
) -> Tensor:
    """Moments and directions; the squared norms of the spans of their grafting updates, where they serve."""
    bucket, config, batches = work.bucket, work.config, work.batches
    averaged = config.momentum_on == "gradient"
    decay2, weight2 = config.second_moment_rule
    with work.side_stream.launches():
        graft_norms = bucket.like.new_empty(bucket.spans if work.scales_updates else 0)
        work.backend.accumulate_(
            bucket.matrices(batches.momenta) if averaged else [],
            bucket.matrices(batches.second_moments) if batches.second_moments else [],
            bucket.matrices(own.written) if own.written else [],
            graft_norms,
            bucket.matrices(grads),
            bucket.matrices(params),
            guard.coefficients,
            guard.active,
            config.betas[0],
            decay2,
            weight2,
            config.nesterov,
        )
    return graft_norms


def precondition(work: Work, grads: Blocked, own: Workspace, guard: Guard) -> tuple[list[Tensor], Tensor]:
    """Factors and roots; the preconditioned updates, empty without any, and their blocks' squared norms."""
    bucket, batches = work.bucket, work.batches
    if not bucket.groups:
        return [bucket.like] * len(guard.active), bucket.like
    bucket.restart(batches, guard.restarts)
    has_newcomers = not work.host_looks or bucket.has_newcomers(batches, guard.active)
    steps = [
        preconditioner.BlockGroupStep(
            work.clock,
            has_newcomers,
            work.side_stream,
            scales,
            grads.views[i],
            own.directions.views[i],
            own.updates.views[i] if work.preconditions else [],
        )
        for i, scales in enumerate(bucket.of_blocks(guard.scales))
    ]
    rule = captured.step if work.config.capturable else preconditioner.step
    advance = partial(packed.step, rule) if work.config.packed else rule
    try:
        block_norms = advance(batches.groups, work.config, work.group_backends, steps)
    finally:
        work.side_stream.join()
    norms = block_norms[0] if len(block_norms) == 1 else torch.cat(block_norms)
    if not work.preconditions:
        return [bucket.like] * len(guard.active), norms
    return bucket.matrices(own.updates.tensors), norms


def scale(work: Work, guard: Guard, graft_norms: Tensor, update_norms: Tensor) -> None:
    """The lengths of all updates, from the squared norms of spans and of blocks."""
    bucket, taken = work.bucket, work.clock.preconditions_on_device(work.config)
    work.backend.scale_updates_(
        guard.coefficients,
        work.batches.scalars,
        graft_norms,
        bucket.span_offsets,
        update_norms,
        bucket.block_order,
        bucket.block_offsets,
        bucket.numel,
        bucket.preconditioned if taken is True else bucket.preconditioned & taken,
        work.config.scalar_rule,
    )


def fallbacks_of(work: Work, grads: Blocked, own: Workspace) -> list[Tensor]:
    """What each matrix goes by without a sound update: its direction, unless that was overwritten."""
    if work.config.momentum_on == "update":  # whose coefficients take the gradients as they are
        return work.bucket.matrices(grads.tensors)
    if work.preconditions and own.fallbacks is not None:
        return work.bucket.matrices(own.fallbacks)
    return work.bucket.matrices(own.directions.tensors)


def write(
    work: Work,
    params: list[Tensor],
    updates: list[Tensor],
    fallbacks: list[Tensor],
    guard: Guard,
) -> None:
    """Graft, weight decay, momentum of the update, and the parameters."""
    bucket, config, batches = work.bucket, work.config, work.batches
    averaged = config.momentum_on == "gradient"
    work.backend.parameter_step_(
        bucket.matrices(params),
        [] if averaged else bucket.matrices(batches.momenta),
        bucket.matrices(batches.residuals) if batches.residuals else [],
        updates,
        fallbacks,
        bucket.matrices(batches.second_moments) if batches.second_moments else [],
        guard.coefficients,
        guard.active,
        work.lr,
        config.betas[0],
        config.nesterov,
    )
