"""The ops in C++ (``csrc/``), in a library that is loaded when the backend is first asked for.

The library uses the LibTorch stable ABI: one binary serves every torch from 2.10 on. On a CPU its
matrix products are its own, decompositions are torch's; it is deterministic for a given number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kradagrad_ext import build_info, polar
from kradagrad_ext import decomposed_roots as by_torch

from . import square_root
from .base import WHOLE_SIDE, BlockGroup, RootRule, RootSide, Turn, UpdateRule
from .scalars import ScalarRule

name = "native"

_OPS = (
    "kron_step_",
    "update_factor_",
    "observe_gradients_",
    "accumulate_",
    "scale_updates_",
    "parameter_step_",
    "decomposed_roots",
    "polar_roots_",
)
_OVERLOADS: dict[str, Any] = {}

_DTYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32,)}


def available(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """None where tensors of this device and factors of this dtype can be served, else the reason."""
    build = build_info.read()
    if device.type not in _DTYPES or (device.type == "cuda" and build.native not in ("cuda", "none")):
        return f"no kernels for {device.type} in this build"
    dtypes = _DTYPES[device.type]
    if dtype is not None and dtype not in dtypes:
        return f"factors must be {' or '.join(str(d).removeprefix('torch.') for d in dtypes)}, not {dtype}"
    return _load()


@functools.cache
def _load() -> str | None:
    """Load the library beside the package and register the fake kernels: None, or why that failed."""
    path = next(Path(__file__).parent.parent.glob("_native*.so"), None)
    if path is None:
        return "not built: there is no _native*.so in the package"
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError as error:
        return f"{path.name} does not load: {error}"
    torch.library.register_fake("kradagrad_ext::decomposed_roots", _fake_decomposed_roots)
    _OVERLOADS.update({name: getattr(torch.ops.kradagrad_ext, name).default for name in _OPS})
    return None


def _fake_decomposed_roots(factors: Tensor, p: int) -> tuple[Tensor, Tensor]:
    return factors.new_empty(factors.shape), factors.new_empty(factors.shape[:1])


def op(name: str) -> Any:  # noqa: ANN401
    """An op's one overload; calling that skips a lookup by name on every call."""
    if not _OVERLOADS:
        reason = _load()
        if reason is not None:
            raise RuntimeError(f"the native backend cannot run: {reason}")
    return _OVERLOADS[name]


def update_factor_(
    factor: Tensor, statistics: Tensor, unfolding: Sequence[Tensor], scales: Tensor, rule: UpdateRule
) -> None:
    """See `Backend.update_factor_`. On CUDA, whose kernels have no Cholesky, that is torch's."""
    if rule.method == "cholesky" and statistics.device.type == "cuda":
        square_root.update_factor_(factor, statistics, unfolding, scales, rule)
        return
    op("update_factor_")(factor, statistics, list(unfolding), scales, *astuple(rule))


def kron_step_(
    groups: Sequence[BlockGroup],
    scales: Tensor,
    norms: Tensor,
    rule: UpdateRule,
    *,
    update: bool,
    precondition: bool,
) -> None:
    """See `Backend.kron_step_`; updates by Cholesky as in `update_factor_`."""
    if update and rule.method == "cholesky" and norms.device.type == "cuda":
        square_root.kron_step_(groups, scales, norms, rule, update=update, precondition=precondition)
        return
    rooted = groups if precondition or (update and rule.coupled) else ()
    written = groups if precondition else ()
    op("kron_step_")(
        [group.left.factor for group in groups],
        [group.right.factor for group in groups],
        [group.left.statistics for group in groups],
        [group.right.statistics for group in groups],
        [view for group in written for view in group.out],
        norms,
        [view for group in groups for view in group.grads] if update else [],
        [view for group in written for view in group.directions],
        [group.left.root for group in rooted],
        [group.right.root for group in rooted],
        scales,
        *astuple(rule),
        update,
        precondition,
    )


def observe_gradients_(
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
    """See `Backend.observe_gradients_`."""
    op("observe_gradients_")(
        scalars, coefficients, active, restarts, norms, numel, present, weight_decay, *rule.values
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
    op("scale_updates_")(
        coefficients,
        scalars,
        graft_norms,
        graft_offsets,
        update_norms,
        update_order,
        update_offsets,
        numel,
        preconditioned,
        rule.beta1,
        rule.averaged,
        rule.length,
    )


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
    nesterov: bool,
) -> None:
    """See `Backend.accumulate_`."""
    op("accumulate_")(
        momenta,
        second_moments,
        directions,
        graft_norms,
        grads,
        params,
        coefficients,
        active,
        beta1,
        beta2,
        weight2,
        nesterov,
    )


def parameter_step_(
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
    """See `Backend.parameter_step_`."""
    op("parameter_step_")(
        params,
        momenta,
        residuals,
        updates,
        directions,
        second_moments,
        coefficients,
        active,
        lr,
        momentum,
        nesterov,
    )


def decomposed_roots(factors: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """See `Backend.decomposed_roots`; torch's own decompositions on CUDA."""
    ours = by_torch.decomposed_roots if factors.device.type == "cuda" else op("decomposed_roots")
    roots, residuals = ours(factors, p)
    return roots, residuals


def _longest_root_side(sides: Sequence[RootSide], precision: str, turns: int) -> int:
    """Of factors that kernels root, by the shared memory of a CTA and how many are due; 0 on a CPU.

    Beyond `WHOLE_SIDE` a root takes one CTA so long that torch's products, which have the GPU for each, are
    done with a quarter as many roots as there are multiprocessors: fewer are torch's.
    """
    device = sides[0].active.device
    if device.type != "cuda":
        return 0
    properties = torch.cuda.get_device_properties(device)
    optin = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stub lacks it
    longest = _root_side_within(optin, precision)
    long = sum(
        -(-len(of.active) // turns) for of in sides if WHOLE_SIDE < of.side.factor.shape[-1] <= longest
    )
    return longest if 4 * long >= properties.multi_processor_count else min(longest, WHOLE_SIDE)


def _root_side_within(shared: int, precision: str) -> int:
    """The longest of factors that kernels root in a CTA's shared memory of so many bytes; 0 for none."""
    known = ((97, 1024), (73, 64)) if precision == "bf16x3" else ((137, 128), (73, 64))
    return next((side for kilobytes, side in known if shared >= kilobytes << 10), 0)


def polar_roots_(sides: Sequence[RootSide], rule: RootRule, turn: Turn) -> None:
    """See `Backend.polar_roots_`; torch's products on a CPU, and for longer sides than kernels take."""
    rooted: list[RootSide] = []
    others: list[RootSide] = []
    longest = _longest_root_side(sides, rule.precision, turn.turns) if sides else 0
    for of in sides:
        (rooted if of.side.factor.shape[-1] <= longest else others).append(of)
    polar.polar_roots_(others, rule, turn)
    if not rooted:
        return
    op("polar_roots_")(
        [of.side.root for of in rooted],
        [of.root_stats for of in rooted],
        [of.side.factor for of in rooted],
        [of.side.statistics for of in rooted],
        [of.active for of in rooted],
        [of.columns for of in rooted],
        turn.counter,
        turn.number,
        turn.turns,
        [number for polynomial in rule.polynomials for number in polynomial],
        rule.bound,
        rule.precision,
    )
