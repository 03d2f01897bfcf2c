"""The ops on factors as Triton kernels (``triton_kernels/``).

Updates by Cholesky, and all computation in float64, are left to torch.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import square_root
from .arguments import Checks
from .base import STATISTICS, BlockGroup, UpdateRule

_COMPUTE = (torch.float32, torch.float64)
_VIEWS = (torch.float32, torch.float64, torch.bfloat16)
_READ = (torch.float32, torch.bfloat16)


@functools.cache
def kernel_module(module: str) -> Any:  # noqa: ANN401
    """Return a module of the kernels by its name; Triton is imported with it."""
    return importlib.import_module(f"..triton_kernels.{module}", __package__)


def update_factor_(
    factor: Tensor, statistics: Tensor, unfolding: Sequence[Tensor], scales: Tensor, rule: UpdateRule
) -> None:
    """See `Backend.update_factor_`."""
    checks = Checks("update_factor_", statistics.device)
    checks.tensor("statistics", statistics, ["N", len(STATISTICS)], _COMPUTE)
    blocks, dtype = len(statistics), statistics.dtype
    _check_factor(checks, ("factor", "statistics"), factor, statistics, (blocks, "d"), dtype)
    columns = unfolding[0].shape[-1] if unfolding and unfolding[0].dim() else "k"
    views = _views(checks, "unfolding", unfolding, (blocks, factor.shape[-1], columns), _VIEWS)
    checks.contiguous("scales", scales, [blocks], (dtype,))
    if rule.method == "cholesky" or dtype == torch.float64:
        square_root.update_factor_(factor, statistics, unfolding, scales, rule)
    elif 0 not in (blocks, factor.shape[-1], columns):
        group = kernel_module("plan.groups").KernelGroup(blocks, 0, views, (factor, statistics))
        _run([group], scales, rule, coupled=False)


def kron_step_(
    groups: Sequence[BlockGroup],
    scales: Tensor,
    norms: Tensor,
    rule: UpdateRule,
    *,
    update: bool,
    precondition: bool,
) -> None:
    """See `Backend.kron_step_`."""
    checks, coupled = Checks("kron_step_", norms.device), update and rule.coupled
    rooted = precondition or coupled
    checks.tensor("norms", norms, ["N"], _COMPUTE)
    for i, group in enumerate(groups):
        _check_sides(checks, i, group, norms.dtype, rooted)
    views = [_views_of(checks, i, group, norms.dtype, update, precondition) for i, group in enumerate(groups)]
    sizes = [len(group.left.factor) for group in groups]
    checks.contiguous("norms", norms, [sum(sizes)], _COMPUTE)
    checks.contiguous("scales", scales, [sum(sizes)], (norms.dtype,))
    if (update and rule.method == "cholesky") or norms.dtype == torch.float64:
        square_root.kron_step_(groups, scales, norms, rule, update=update, precondition=precondition)
        return
    present, first = [], 0
    for blocks, group in zip(sizes, views, strict=True):
        if 0 in (group.left.factor.shape[-1], group.right.factor.shape[-1]):
            if precondition:
                norms[first : first + blocks].zero_()
        elif blocks > 0 and (update or precondition):
            present.append(_of_kernels(group, first, rooted))
        first += blocks
    _run(present, scales, rule, coupled, norms)


def _run(
    groups: list[Any], scales: Tensor, rule: UpdateRule, coupled: bool, norms: Tensor | None = None
) -> None:
    architecture = kernel_module("plan.tuning").architecture_of(scales.device)
    precision = kernel_module("plan.tuning").served(rule.precision, architecture)
    damped = rule.damped_updates > 0
    launched = kernel_module("plan.groups").StepRule(rule.refine, coupled, damped, precision, architecture)
    scalars = {
        "decay": rule.decay,
        "weight": rule.weight,
        "damping": rule.damping,
        "prior": rule.prior,
        "damped_updates": rule.damped_updates,
        "norms": norms,
    }
    kernel_module("plan.square_root_step").run(groups, launched, scales, scalars)


def _of_kernels(group: BlockGroup, first: int, rooted: bool) -> Any:  # noqa: ANN401
    """Return the shape group in the form that the kernels read (triton_kernels/plan/groups.py)."""
    left, right = group.left, group.right
    sides = (left.factor, left.statistics), (right.factor, right.statistics)
    roots = (left.root, right.root) if rooted else (None, None)
    blocks = len(left.factor)
    kernel_group = kernel_module("plan.groups").KernelGroup
    return kernel_group(blocks, first, group.grads, *sides, group.directions, group.out, *roots)


def _check_sides(checks: Checks, i: int, group: BlockGroup, dtype: torch.dtype, rooted: bool) -> None:
    blocks = len(group.left.factor)
    for name, side, letter in (("left", group.left, "m"), ("right", group.right, "n")):
        count = "N" if name == "left" else blocks
        names = f"{name}[{i}]", f"{name}_statistics[{i}]"
        _check_factor(checks, names, side.factor, side.statistics, (count, letter), dtype)
        if rooted:
            shape = list(side.factor.shape)
            checks.contiguous(f"{name}_root[{i}]", side.root, shape, (dtype, torch.bfloat16))


def _check_factor(
    checks: Checks,
    names: tuple[str, str],
    factor: Tensor,
    statistics: Tensor,
    dims: tuple[int | str, str],
    dtype: torch.dtype,
) -> None:
    """Check factors ``[N, d, d]`` and their statistics; `dims`: N and the letter for d."""
    (count, letter), (factor_name, statistics_name) = dims, names
    checks.contiguous(factor_name, factor, [count, letter, letter], (dtype, torch.bfloat16))
    checks.contiguous(statistics_name, statistics, [len(factor), len(STATISTICS)], (dtype,))


def _views_of(
    checks: Checks, i: int, group: BlockGroup, dtype: torch.dtype, update: bool, precondition: bool
) -> BlockGroup:
    """Return the shape group with the views that the call needs, checked, as kernels read them."""
    shape = len(group.left.factor), group.left.factor.shape[-1], group.right.factor.shape[-1]

    def views(name: str, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
        return _views(checks, name, tensors, shape, dtypes, f" for group {i}")

    return replace(
        group,
        grads=views("grad", group.grads, _VIEWS) if update else [],
        directions=views("direction", group.directions, _VIEWS) if precondition else [],
        out=views("out", group.out, (dtype,)) if precondition else [],
    )


def _views(
    checks: Checks,
    name: str,
    views: Sequence[Tensor],
    shape: tuple[int, int, int | str],
    dtypes: Sequence[torch.dtype],
    where: str = "",
) -> list[Tensor]:
    """Return block views of N, rows and columns, checked; views without blocks are left out."""
    blocks, rows, columns = shape
    checks.views(name, views, rows, columns, dtypes)
    counts = [math.prod(view.shape[:-2]) for view in views]
    total = sum(counts)
    checks.scalar(name, total == blocks, f"views of {blocks} blocks{where}", f"{total} blocks")
    return of_one_dtype(list(itertools.compress(views, counts)))


def of_one_dtype(views: list[Tensor]) -> list[Tensor]:
    """Return the views, as float32 copies if they have two dtypes, or one that the kernels do not read."""
    dtypes = {view.dtype for view in views}
    return views if len(dtypes) <= 1 and dtypes <= set(_READ) else [view.float() for view in views]
