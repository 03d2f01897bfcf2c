"""The algorithm: one step of a bucket, from its gradients to its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import captured, grafting, packed, preconditioner
from .backends import resolve
from .backends.base import Backend
from .clock import Clock
from .config import Config, check_lr, check_tensor
from .state import Bucket, compute_dtype


@dataclass(frozen=True)
class Settings:
    """One parameter group of an optimizer on this step."""

    position: int
    group: dict[str, Any]
    config: Config
    clock: Clock

    @classmethod
    def of(cls, position: int, group: dict[str, Any]) -> Settings:
        """The group's checked options; its count of steps is brought to where they need it."""
        check_lr(group["lr"])
        config = Config.of(group)
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
        own: float | Tensor = self.group["lr"]
        return own

    @property
    def preconditions(self) -> bool:
        return self.clock.preconditions(self.config)

    def check_gradients(self) -> None:
        """Raise TypeError or ValueError if a gradient, or where it lies, is none that the ops take."""
        for i, p in enumerate(self.params):
            if p.grad is not None:
                check_tensor(p.grad, f"the gradient of parameter {i} of parameter group {self.position}")
        for key in {(p.device, p.dtype) for p in self.params if p.grad is not None}:
            backend_of(self.config, *key)

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
    def unscale_(self, grads: Sequence[Tensor]) -> None:
        """Divide gradients, as they lie on this rank, by the scale; in place, as the scaler itself would."""
        if self.scale is not None:
            by_device: dict[torch.device, list[Tensor]] = {}
            for grad in grads:
                by_device.setdefault(grad.device, []).append(grad)
            for device, own in by_device.items():
                torch._foreach_mul_(own, self.scale.to(device).double().reciprocal().float().reshape(()))

    def refused(self, device: torch.device) -> Tensor:
        """Whether nothing may change on this step, a 0-dim bool."""
        if self.found_inf is None:
            return torch.zeros((), dtype=torch.bool, device=device)
        return (self.found_inf > 0).to(device).reshape(())


@dataclass(frozen=True)
class Work:
    """One bucket's share of a step, checked and ready to run.

    Attributes:
        backend: of the ops on parameters.  group_backends: of each group's blocks.
        clock: the step.  fresh: whether a parameter takes its first one.
    """

    bucket: Bucket
    config: Config
    backend: Backend
    group_backends: tuple[Backend, ...]
    clock: Clock
    fresh: bool
    lr: Tensor

    @property
    def preconditions(self) -> bool:
        return self.clock.preconditions(self.config)


def backend_of(config: Config, device: torch.device, dtype: torch.dtype, side: int = 0) -> Backend:
    """The backend of parameters, or of blocks with this longest side; raises as `backends.resolve`."""
    return resolve(config.backend, device, compute_dtype(dtype), side)


def plan_work(bucket: Bucket, settings: Settings, fresh: bool) -> Work:
    """A bucket's work on this step."""
    config, lr = bucket.options(settings.config), bucket.lr_tensor(settings.lr)
    of_groups = tuple(
        backend_of(config, *bucket.key, max(state.group.block_shape)) for state in bucket.groups
    )
    return Work(bucket, config, backend_of(config, *bucket.key), of_groups, settings.clock, fresh, lr)


def step_bucket(work: Work, grads: list[Tensor], present: Tensor, loss_scale: LossScale) -> None:
    """Guards, momentum, factors and roots, preconditioned update, graft, write.

    Args:
        grads, present: see `Bucket.gradients`.
    """
    bucket, config = work.bucket, work.config
    params = [p.detach() for p in bucket.params]
    present = present & ~loss_scale.refused(present.device)
    guard = grafting.observe_(bucket.scalars, bucket.gradient_norms(grads), bucket.numel, present, config)
    coefficients, active = grafting.coefficients(bucket.scalars, guard.scales, config), guard.active
    directions, graft_norms = accumulate(work, params, grads, coefficients, active)
    updates, norms = precondition(work, grads, directions, guard)
    taken = bucket.preconditioned & work.clock.preconditions_on_device(config)
    grafting.scale_(coefficients, bucket.scalars, graft_norms, norms, bucket.numel, taken, config)
    write(work, params, updates, directions, coefficients, active)


def accumulate(
    work: Work, params: list[Tensor], grads: list[Tensor], coefficients: Tensor, active: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Moments; the directions to precondition and the squared norms of their grafting updates ``[P]``."""
    bucket, config = work.bucket, work.config
    averaged = config.momentum_on == "gradient"
    lookahead = [torch.empty_like(m) for m in bucket.momenta] if config.looks_ahead else []
    decay2, weight2 = grafting.second_moment_rule(config)
    graft_norms = torch.zeros_like(bucket.numel)
    work.backend.accumulate_(
        bucket.momenta if averaged else [],
        bucket.second_moments,
        lookahead,
        graft_norms,
        grads,
        params,
        coefficients,
        active,
        config.betas[0],
        decay2,
        weight2,
        config.weight_decay if averaged and not config.decoupled_weight_decay else 0.0,
        config.nesterov,
    )
    return lookahead or (bucket.momenta if averaged else grads), graft_norms


def precondition(
    work: Work, grads: list[Tensor], directions: list[Tensor], guard: grafting.Guard
) -> tuple[list[Tensor], Tensor]:
    """Factors and roots; the preconditioned updates, empty without any, and their squared norms ``[P]``."""
    bucket = work.bucket
    bucket.restart(guard.restarts)
    updates = bucket.update_buffers(work.config, directions) if work.preconditions else []
    steps = [
        preconditioner.BlockGroupStep(
            work.clock,
            work.fresh,
            guard.scales[owners],
            group.views(grads),
            group.views(directions),
            group.views(updates) if work.preconditions else [],
        )
        for group, owners in zip(bucket.groups, bucket.block_parameters, strict=True)
    ]
    rule = captured.step if work.config.capturable else preconditioner.step
    advance = partial(packed.step, rule) if work.config.packed else rule
    block_norms = advance(bucket.groups, work.config, work.group_backends, steps)
    return updates or [bucket.like] * len(grads), bucket.update_norms(block_norms)


def write(
    work: Work,
    params: list[Tensor],
    updates: list[Tensor],
    directions: list[Tensor],
    coefficients: Tensor,
    active: Tensor,
) -> None:
    """Graft, weight decay, momentum of the update, and the parameters."""
    bucket, config = work.bucket, work.config
    averaged, decoupled = config.momentum_on == "gradient", config.decoupled_weight_decay
    work.backend.parameter_step_(
        params,
        [] if averaged else bucket.momenta,
        updates,
        bucket.fallbacks(config, directions, updates),
        bucket.second_moments,
        coefficients,
        active,
        work.lr,
        config.betas[0],
        config.weight_decay if decoupled else 0.0,
        0.0 if decoupled or averaged else config.weight_decay,
        config.nesterov,
    )
