"""The ops as Triton kernels (``triton_kernels/``): float32 factors, on any device that Triton compiles for.

Triton is imported on the first use of the backend. With TRITON_INTERPRET=1 it runs on the CPU, slowly, for
development. Updates by Cholesky are left to torch. Roots and the ops on the scalars of matrices are left to
the native backend if it runs, else to torch.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kradagrad_ext import polar
from kradagrad_ext.decomposed_roots import decomposed_roots

from . import native
from . import scalars as by_torch
from .arguments import Checks
from .base import COEFFICIENTS, RootRule, RootSide, Turn
from .scalars import ScalarRule, spans_of
from .square_root_triton import kernel_module, kron_step_, update_factor_

__all__ = [
    "apply_updates_",
    "available",
    "decomposed_roots",
    "guard_gradients_",
    "kron_step_",
    "name",
    "polar_roots_",
    "scale_updates_",
    "update_factor_",
    "update_moments_",
]

name = "triton"

_FLOAT = (torch.float32,)
_VIEWS = (torch.float32, torch.bfloat16)
_BOOL = (torch.bool,)
_BF16 = (torch.bfloat16,)


def available(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None if tensors of this device and factors of this dtype are supported, else the reason."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type == "cpu" and not interpreted:
        return "no Triton kernels for cpu, but with TRITON_INTERPRET=1 for development"
    if device.type not in ("cuda", "cpu"):
        return f"no Triton kernels for {device.type}"
    if device.type == "cuda" and interpreted:
        return "with TRITON_INTERPRET=1 the kernels run on CPU tensors alone"
    if dtype not in (None, torch.float32):
        return f"factors must be float32, not {dtype}"
    try:
        kernel_module("plan.launch")
    except ImportError as error:
        return f"{error}: pip install 'triton>=3.3'"
    return _gpu_reason(device) if device.type == "cuda" else None


@functools.cache
def _gpu_reason(device: torch.device) -> str | None:
    """Return why Triton cannot compile for a GPU, or None; its driver needs a C compiler."""
    if not torch.version.hip and torch.cuda.get_device_capability(device) < (8, 0):
        return "its kernels are for compute capability 8.0 and later"
    driver = importlib.import_module("triton.runtime").driver
    try:
        driver.active.get_current_target()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"Triton's driver does not start: {error}"
    return None


def _has_native(device: torch.device) -> bool:
    """Return True if tensors are on a GPU that the native backend supports, too."""
    return device.type == "cuda" and native.available(device) is None


def polar_roots_(sides: Sequence[RootSide], rule: RootRule, turn: Turn) -> None:
    """See `Backend.polar_roots_`. All sides are on one device."""
    by_native = bool(sides) and _has_native(sides[0].active.device)
    (native if by_native else polar).polar_roots_(sides, rule, turn)


def guard_gradients_(
    scalars: Tensor,
    coefficients: Tensor,
    active: Tensor,
    restarts: Tensor,
    norms: Tensor,
    numel: Tensor,
    present: Tensor,
    weight_decay: Tensor,
    rule: ScalarRule,
) -> None:
    """See `Backend.guard_gradients_`."""
    (native if _has_native(scalars.device) else by_torch).guard_gradients_(
        scalars, coefficients, active, restarts, norms, numel, present, weight_decay, rule
    )


def scale_updates_(
    coefficients: Tensor,
    scalars: Tensor,
    graft_norms: Tensor,
    graft_offsets: Tensor,
    update_norms: Tensor,
    update_order: Tensor,
    update_offsets: Tensor,
    numel: Tensor,
    preconditioned: Tensor,
    rule: ScalarRule,
) -> None:
    """See `Backend.scale_updates_`."""
    (native if _has_native(scalars.device) else by_torch).scale_updates_(
        coefficients,
        scalars,
        graft_norms,
        graft_offsets,
        update_norms,
        update_order,
        update_offsets,
        numel,
        preconditioned,
        rule,
    )


def update_moments_(
    momenta: list[Tensor],
    second_moments: list[Tensor],
    directions: list[Tensor],
    graft_norms: Tensor,
    grads: list[Tensor],
    params: list[Tensor],
    coefficients: Tensor,
    active: Tensor,
    beta1: float,
    beta2: float,
    weight2: float,
    nesterov: bool,
) -> None:
    """See `Backend.update_moments_`."""
    checks = Checks("update_moments_", coefficients.device)
    checks.contiguous("coefficients", coefficients, [len(params), COEFFICIENTS], _FLOAT)
    spans = sum(spans_of(p.numel()) for p in params) if len(graft_norms) else 0
    checks.contiguous("graft_norms", graft_norms, [spans], _FLOAT)
    checks.contiguous("active", active, [len(params)], _BOOL)
    checks.like_parameters("params", params, params, _VIEWS)
    checks.like_parameters("grads", grads, params, _VIEWS)
    moments = {"momenta": momenta, "second_moments": second_moments, "directions": directions}
    for name_, tensors in moments.items():
        checks.like_parameters(name_, tensors, params, _FLOAT, may_be_empty=True)
    for name_, beta in (("beta1", beta1), ("beta2", beta2)):
        checks.scalar(name_, 0 <= beta <= 1, "in [0, 1]", beta)
    checks.not_negative("weight2", weight2)
    lists = {"grad": grads, "momentum": momenta, "second_moment": second_moments, "direction": directions}
    arguments: dict[str, Any] = {"coefficients": coefficients, "norms": graft_norms}
    scalars = {"beta1": beta1, "rest1": 1 - beta1, "beta2": beta2, "weight2": weight2}
    kernel_module("plan.elements").update_moments_all(params, lists, nesterov, active, arguments | scalars)


def apply_updates_(
    params: list[Tensor],
    momenta: list[Tensor],
    residuals: list[Tensor],
    updates: list[Tensor],
    directions: list[Tensor],
    second_moments: list[Tensor],
    coefficients: Tensor,
    active: Tensor,
    lr: Tensor,
    momentum: float,
    nesterov: bool,
) -> None:
    """See `Backend.apply_updates_`."""
    checks = Checks("apply_updates_", coefficients.device)
    checks.contiguous("coefficients", coefficients, [len(params), COEFFICIENTS], _FLOAT)
    checks.contiguous("active", active, [len(params)], _BOOL)
    checks.tensor("lr", lr, [], _FLOAT)
    checks.like_parameters("params", params, params, _BF16 if residuals else _VIEWS)
    checks.like_parameters("momenta", momenta, params, _FLOAT, may_be_empty=True)
    checks.like_parameters("residuals", residuals, params, (torch.int16,), may_be_empty=True)
    checks.like_parameters("directions", directions, params, _VIEWS)
    checks.like_parameters("second_moments", second_moments, params, _FLOAT, may_be_empty=True)
    checks.length("updates", updates, len(params))
    expected = [update if update.numel() == 0 else p for p, update in zip(params, updates, strict=True)]
    checks.like_parameters("updates", updates, expected, _FLOAT)
    checks.not_negative("momentum", momentum)
    lists = {"momentum": momenta, "update": updates, "direction": directions, "second_moment": second_moments}
    lists["residual"] = residuals
    scalars = {"coefficients": coefficients, "lr": lr, "momentum": momentum}
    kernel_module("plan.elements").step_all(params, lists, nesterov, active, scalars)
