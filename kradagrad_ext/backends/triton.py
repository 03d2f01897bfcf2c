"""The ops as Triton kernels (``triton_kernels/``): float32 factors, on any device that Triton compiles for.

Triton is imported when the backend is first asked for. With TRITON_INTERPRET=1 it runs on the CPU, slowly,
for development. An exact update, `precondition` and `eigh` are torch's.
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

from . import reference
from .arguments import Checks

name = "triton"

_FLOAT = (torch.float32,)
_VIEWS = (torch.float32, torch.bfloat16)
_BOOL = (torch.bool,)


def available(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """None where tensors of this device and factors of this dtype can be served, else the reason."""
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
        kernel_module("launch")
    except ImportError as error:
        return f"{error}: pip install kradagrad-ext[triton]"
    return _gpu_reason(device) if device.type == "cuda" else None


@functools.cache
def _gpu_reason(device: torch.device) -> str | None:
    """Why Triton cannot compile for a GPU: its driver needs a C compiler, which a machine may lack."""
    if not torch.version.hip and torch.cuda.get_device_capability(device) < (8, 0):
        return "its kernels are for compute capability 8.0 and later"
    driver = importlib.import_module("triton.runtime").driver
    try:
        driver.active.get_current_target()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"Triton's driver does not start: {error}"
    return None


@functools.cache
def kernel_module(module: str) -> Any:  # noqa: ANN401
    """A module of the kernels by its name; Triton is imported with it."""
    return importlib.import_module(f"kradagrad_ext.triton_kernels.{module}")


def update_factor_(
    factor: Tensor,
    statistics: Tensor,
    unfolding: list[Tensor],
    active: Tensor,
    decay: float,
    weight: float,
    damping: float,
    factor_scale: str,
    refine: int,
    precision: str,
) -> None:
    """See `Backend.update_factor_`."""
    rule = (decay, weight, damping, factor_scale, refine, precision)
    checks = Checks("update_factor_", factor.device)
    checks.factor("", "factor", factor, statistics, "N")
    columns = unfolding[0].shape[-1] if unfolding and unfolding[0].dim() else "k"
    checks.views("unfolding", unfolding, factor.shape[-1], columns, _VIEWS)
    checks.contiguous("active", active, [len(factor)], _BOOL)
    held = sum(view.shape[:-2].numel() for view in unfolding)
    checks.scalar("unfolding", held == len(factor), f"views of {len(factor)} blocks in all", f"{held} blocks")
    checks.rule(*rule)
    if factor_scale == "exact" or 0 in (factor.shape[-1], columns):
        reference.update_factor_(factor, statistics, unfolding, active, *rule)
        return
    kernels = kernel_module("kron_step")
    group = kernels.Group(len(factor), 0, of_one_dtype(unfolding), (factor, statistics))
    kernels.run([group], (factor_scale, refine, precision), active, decay, weight, damping)


def kron_step_(
    left: list[Tensor],
    right: list[Tensor],
    left_statistics: list[Tensor],
    right_statistics: list[Tensor],
    out: list[Tensor],
    norms: Tensor,
    grad: list[Tensor],
    direction: list[Tensor],
    left_root: list[Tensor],
    right_root: list[Tensor],
    active: Tensor,
    decay: float,
    weight: float,
    damping: float,
    factor_scale: str,
    refine: int,
    precision: str,
    update: bool,
) -> None:
    """See `Backend.kron_step_`."""
    rule = (decay, weight, damping, factor_scale, refine, precision)
    tensors = (
        left,
        right,
        left_statistics,
        right_statistics,
        out,
        norms,
        grad,
        direction,
        left_root,
        right_root,
    )
    groups = _checked_groups(*tensors, active, rule, update)
    if (factor_scale == "exact" and update) or any(0 in x.shape[1:] for x in (*left, *right)):
        reference.kron_step_(*tensors, active, *rule, update)
        return
    kernels = kernel_module("kron_step")
    own = [kernels.Group(*group) for group in groups]
    kernels.run(own, (factor_scale, refine, precision), active, decay, weight, damping, norms)


def _checked_groups(
    left: list[Tensor],
    right: list[Tensor],
    left_statistics: list[Tensor],
    right_statistics: list[Tensor],
    out: list[Tensor],
    norms: Tensor,
    grad: list[Tensor],
    direction: list[Tensor],
    left_root: list[Tensor],
    right_root: list[Tensor],
    active: Tensor,
    rule: tuple[float, float, float, str, int, str],
    update: bool,
) -> list[tuple[Any, ...]]:
    """The arguments of the groups (triton_kernels/kron_step.py)."""
    checks = Checks("kron_step_", norms.device)
    checks.rule(*rule)
    checks.factors(left, right, left_statistics, right_statistics)
    checks.roots(left, right, left_root, right_root, direction, bool(out))
    blocks = sum(map(len, left))
    checks.contiguous("norms", norms, [blocks], _FLOAT)
    checks.contiguous("active", active, [blocks], _BOOL)
    sizes = [(len(x), x.shape[-1], y.shape[-1]) for x, y in zip(left, right, strict=True)]
    grads = _views(checks, "grad", grad, sizes, _VIEWS, update)
    directions = _views(checks, "direction", direction, sizes, _VIEWS, bool(out))
    outs = _views(checks, "out", out, sizes, _FLOAT, bool(out))
    groups, first = [], 0
    for i, (count, _, _) in enumerate(sizes):
        sides = [(left[i], left_statistics[i]), (right[i], right_statistics[i])] if update else [None, None]
        roots = [left_root[i], right_root[i]] if out else [None, None]
        groups.append((count, first, grads[i], *sides, directions[i], outs[i], *roots))
        first += count
    return groups


def _views(
    checks: Checks,
    name_: str,
    views: list[Tensor],
    sizes: list[tuple[int, int, int]],
    dtypes: Sequence[torch.dtype],
    needed: bool,
) -> list[list[Tensor]]:
    """A list of block views cut into the groups' own, checked."""
    if not needed:
        return [[] for _ in sizes]
    groups = reference.by_group(name_, views, [count for count, _, _ in sizes])
    for own, (_, rows, cols) in zip(groups, sizes, strict=True):
        checks.views(name_, own, rows, cols, dtypes)
    return [of_one_dtype(own) for own in groups]


def of_one_dtype(views: list[Tensor]) -> list[Tensor]:
    """What is read, as copies in float32 where a list holds two dtypes, or one that kernels do not take."""
    dtypes = {view.dtype for view in views}
    return views if len(dtypes) <= 1 and dtypes <= set(_VIEWS) else [view.float() for view in views]


def precondition(blocks: Tensor, roots: list[Tensor]) -> Tensor:
    """See `Backend.precondition`."""
    return reference.precondition(blocks, roots)


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """See `Backend.eigh`."""
    return reference.eigh(matrices)


def accumulate_(
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
    l2: float,
    nesterov: bool,
) -> None:
    """See `Backend.accumulate_`."""
    checks = Checks("accumulate_", coefficients.device)
    checks.contiguous("coefficients", coefficients, [len(params), 4], _FLOAT)
    checks.contiguous("graft_norms", graft_norms, [len(params)], _FLOAT)
    checks.contiguous("active", active, [len(params)], _BOOL)
    checks.like_parameters("params", params, params, _VIEWS)
    checks.like_parameters("grads", grads, params, _VIEWS)
    moments = {"momenta": momenta, "second_moments": second_moments, "directions": directions}
    for name_, given in moments.items():
        checks.like_parameters(name_, given, params, _FLOAT, may_be_empty=True)
    for name_, beta in (("beta1", beta1), ("beta2", beta2)):
        checks.scalar(name_, 0 <= beta <= 1, "in [0, 1]", beta)
    checks.not_negative("weight2", weight2)
    checks.not_negative("l2", l2)
    lists = {"grad": grads, "momentum": momenta, "second_moment": second_moments, "direction": directions}
    tensors: dict[str, Any] = {"coefficients": coefficients, "norms": graft_norms}
    scalars = {"beta1": beta1, "rest1": 1 - beta1, "beta2": beta2, "weight2": weight2, "l2": l2}
    kernel_module("elements_plan").accumulate_all(params, lists, nesterov, active, tensors | scalars)


def parameter_step_(
    params: list[Tensor],
    momenta: list[Tensor],
    updates: list[Tensor],
    directions: list[Tensor],
    second_moments: list[Tensor],
    coefficients: Tensor,
    active: Tensor,
    lr: Tensor,
    momentum: float,
    decay: float,
    l2: float,
    nesterov: bool,
) -> None:
    """See `Backend.parameter_step_`."""
    checks = Checks("parameter_step_", coefficients.device)
    checks.contiguous("coefficients", coefficients, [len(params), 4], _FLOAT)
    checks.contiguous("active", active, [len(params)], _BOOL)
    checks.tensor("lr", lr, [], _FLOAT)
    checks.like_parameters("params", params, params, _VIEWS)
    checks.like_parameters("momenta", momenta, params, _FLOAT, may_be_empty=True)
    checks.like_parameters("directions", directions, params, _VIEWS)
    checks.like_parameters("second_moments", second_moments, params, _FLOAT, may_be_empty=True)
    checks.length("updates", updates, len(params))
    for i, update in enumerate(updates):
        if update.numel():
            checks.tensor(f"updates[{i}]", update, list(params[i].shape), _FLOAT)
    for name_, value in (("momentum", momentum), ("decay", decay), ("l2", l2)):
        checks.not_negative(name_, value)
    lists = {"momentum": momenta, "update": updates, "direction": directions, "second_moment": second_moments}
    scalars = {"coefficients": coefficients, "lr": lr, "momentum": momentum, "decay": decay, "l2": l2}
    kernel_module("elements_plan").step_all(params, lists, nesterov, active, scalars)
