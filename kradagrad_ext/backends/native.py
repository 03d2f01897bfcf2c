"""The ops in C++ (``csrc/``), in a library that is loaded on the first use of the backend.

The library uses the LibTorch stable ABI: one binary serves every torch from 2.10 on. On a CPU the library
computes matrix products, and torch decompositions; results are deterministic for a given number of threads.
"""

from __future__ import annotations

import filecmp
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
    "guard_gradients_",
    "update_moments_",
    "scale_updates_",
    "apply_updates_",
    "decomposed_roots",
    "polar_roots_",
)
_OVERLOADS: dict[str, Any] = {}

_DTYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32,)}


def available(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None if tensors of this device and factors of this dtype are supported, else the reason."""
    build = build_info.read_build_info()
    if device.type not in _DTYPES or (device.type == "cuda" and build.native not in ("cuda", "none")):
        return f"no kernels for {device.type} in this build"
    dtypes = _DTYPES[device.type]
    if dtype is not None and dtype not in dtypes:
        return f"factors must be {' or '.join(str(d).removeprefix('torch.') for d in dtypes)}, not {dtype}"
    return _load()


@functools.cache
def _load() -> str | None:
    """Load the library beside the package and register the fake kernels; return None, or why that failed.

    torch refuses to register an op twice. So a second copy of the package in a process, such as a kernel of
    Hugging Face's hub beside the installed package, uses the first one's library if it is the same file.
    """
    path = next(Path(__file__).parent.parent.glob("_native*.so"), None)
    if path is None:
        return "not built: there is no _native*.so in the package"
    if hasattr(torch.ops.kradagrad_ext, _OPS[0]):
        loaded = [other for other in map(Path, torch.ops.loaded_libraries) if other.name == path.name]
        if not any(filecmp.cmp(other, path, shallow=False) for other in loaded):
            return (
                f"another build of {path.name} is loaded: {', '.join(map(str, loaded)) or 'of unknown path'}"
            )
    else:
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
    """Return the only overload of an op, which saves a lookup by name on every call."""
    if not _OVERLOADS:
        reason = _load()
        if reason is not None:
            raise RuntimeError(f"the native backend cannot run: {reason}")
    return _OVERLOADS[name]


def update_factor_(
    factor: Tensor, statistics: Tensor, unfolding: Sequence[Tensor], scales: Tensor, rule: UpdateRule
) -> None:
    """See `Backend.update_factor_`. The CUDA kernels have no Cholesky decomposition: torch computes it."""
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
    """See `Backend.kron_step_`. Updates by Cholesky are computed as in `update_factor_`."""
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
    op("guard_gradients_")(
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
    op("update_moments_")(
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
    op("apply_updates_")(
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
    """See `Backend.decomposed_roots`. On CUDA torch computes the decompositions."""
    compute = by_torch.decomposed_roots if factors.device.type == "cuda" else op("decomposed_roots")
    roots, residuals = compute(factors, p)
    return roots, residuals


def _longest_root_side(sides: Sequence[RootSide], precision: str, turns: int) -> int:
    """Return the longest side of factors whose roots the kernels compute; 0 on a CPU.

    It depends on the shared memory of a CTA and on how many roots are due. Beyond `WHOLE_SIDE`, while one CTA
    computes one root, torch's products, which use the whole GPU for each root, compute a quarter as many
    roots as there are multiprocessors. Fewer roots than that are left to torch.
    """
    device = sides[0].active.device
    if device.type != "cuda":
        return 0
    properties = torch.cuda.get_device_properties(device)
    optin = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stub lacks it
    longest = _root_side_within(optin, precision)
    due = sum(
        -(-len(root_side.active) // turns)
        for root_side in sides
        if WHOLE_SIDE < root_side.side.factor.shape[-1] <= longest
    )
    return longest if 4 * due >= properties.multi_processor_count else min(longest, WHOLE_SIDE)


def _root_side_within(shared: int, precision: str) -> int:
    """Return the longest side of factors whose roots fit a CTA with `shared` bytes of memory; 0 for none."""
    sides = ((97, 1024), (73, 64)) if precision == "bf16x3" else ((137, 128), (73, 64))
    return next((side for kilobytes, side in sides if shared >= kilobytes << 10), 0)


def polar_roots_(sides: Sequence[RootSide], rule: RootRule, turn: Turn) -> None:
    """See `Backend.polar_roots_`. torch computes roots on a CPU, and those too large for the kernels."""
    kernel_sides: list[RootSide] = []
    torch_sides: list[RootSide] = []
    longest = _longest_root_side(sides, rule.precision, turn.turns) if sides else 0
    for root_side in sides:
        (kernel_sides if root_side.side.factor.shape[-1] <= longest else torch_sides).append(root_side)
    polar.polar_roots_(torch_sides, rule, turn)
    if not kernel_sides:
        return
    op("polar_roots_")(
        [root_side.side.root for root_side in kernel_sides],
        [root_side.root_stats for root_side in kernel_sides],
        [root_side.side.factor for root_side in kernel_sides],
        [root_side.side.statistics for root_side in kernel_sides],
        [root_side.active for root_side in kernel_sides],
        [root_side.columns for root_side in kernel_sides],
        turn.counter,
        turn.number,
        turn.turns,
        [number for polynomial in rule.polynomials for number in polynomial],
        rule.bound,
        rule.precision,
    )
