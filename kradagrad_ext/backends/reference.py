"""The definition of correct: every op of `base.py` in plain PyTorch, on any device.

Written to be read next to the paper (Mei, Moreno, Walters, UAI 2023); X, A, N, C, S are its letters.
Results are computed for every block and kept for the active ones, so nothing here looks at a value on the
host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import FALLBACK_REFINE

name = "reference"


def available(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """None: the reference runs everywhere."""
    return None


def _gather(views: list[Tensor], dtype: torch.dtype) -> Tensor:
    """A list of block views [*, m, n] as one batch [N, m, n]."""
    return torch.cat([view.reshape(-1, *view.shape[-2:]) for view in views]).to(dtype)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def _identity_like(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def _frobenius(matrix: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
    return norm


def _bound(factor: Tensor, a: Tensor, y: Tensor, factor_scale: str) -> Tensor:
    """t >= the largest eigenvalue of N = I + A^T X A, for X [N, d, d], A and Y = X A [N, d, k]: [N, 1, 1]."""
    d = factor.shape[-1]
    if factor_scale in ("trace", "trace_dim"):
        trace = (a * y).sum((-2, -1), keepdim=True)
        return 1 + trace if factor_scale == "trace" else d * (1 + trace)
    if factor_scale == "product":
        return 1 + _frobenius(y @ a.mT)
    # The nonzero eigenvalues of A^T X A [k, k] and X A A^T [d, d] are the same: take the smaller matrix.
    # The Frobenius norms of a symmetric B^2 and of its powers are traces, which both share.
    b = a.mT @ y if a.shape[-1] <= d else y @ a.mT
    if factor_scale == "schatten4":
        b = b @ b
        return 1 + (b * b.mT).sum((-2, -1), keepdim=True).clamp_min(0) ** 0.25
    return 1 + (b * b.mT).sum((-2, -1), keepdim=True).clamp_min(0).sqrt()


def krad_downdate(factor: Tensor, a: Tensor, factor_scale: str, refine: int) -> tuple[Tensor, Tensor]:
    """X - Y C Y^T with C <= N^-1 from the KrAD lemma, and per block whether t was finite.

    C starts at I / t and grows towards N^-1 by C <- C (5 I - 8 W + 4 W^2), W = N C, which on every
    eigenvalue of W in (0, 1] stays within (0, 1]: the result dominates (X^-1 + A A^T)^-1 at every iterate.

    Args:
        factor: X ``[N, d, d]``.  a: ``[N, d, k]``.
    """
    y = factor @ a
    t = _bound(factor, a, y, factor_scale)
    if refine == 0:
        downdate = y @ y.mT / t
    else:
        identity = _identity_like(a.mT @ a)
        n = identity + _symmetric(a.mT @ y)
        c = identity / t
        for _ in range(refine):
            w = _symmetric(n @ c)
            c = _symmetric(c @ (5 * identity - 8 * w + 4 * w @ w))
        downdate = y @ c @ y.mT
    return factor - _symmetric(downdate), t.isfinite().flatten()


def exact_downdate(factor: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """X - Y N^-1 Y^T = (X^-1 + A A^T)^-1 (Woodbury) by Cholesky of N, and per block whether it succeeded."""
    y = factor @ a
    n = _identity_like(a.mT @ a) + _symmetric(a.mT @ y)
    lower, info = torch.linalg.cholesky_ex(n)
    z = torch.linalg.solve_triangular(lower, y.mT, upper=False)
    updated = factor - _symmetric(z.mT @ z)
    return updated, (info == 0) & updated.isfinite().all(-1).all(-1)


def _looking_is_free(device: torch.device) -> bool:
    return device.type == "cpu"


def _downdate(factor: Tensor, a: Tensor, factor_scale: str, refine: int) -> tuple[Tensor, Tensor, Tensor]:
    """One chunk of the update: the new factors, which blocks took it as asked, and which took any."""
    if factor_scale != "exact":
        updated, succeeded = krad_downdate(factor, a, factor_scale, refine)
        return torch.where(succeeded[:, None, None], updated, factor), succeeded, succeeded
    updated, succeeded = exact_downdate(factor, a)
    if _looking_is_free(factor.device) and bool(succeeded.all()):
        return updated, succeeded, succeeded
    fallback, finite = krad_downdate(factor, a, "frobenius", FALLBACK_REFINE)
    fallback = torch.where(finite[:, None, None], fallback, factor)
    return torch.where(succeeded[:, None, None], updated, fallback), succeeded, succeeded | finite


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
) -> None:
    """See `Backend.update_factor_`."""
    if factor.numel() == 0:
        return
    a = _gather(unfolding, factor.dtype)
    mean, fallbacks = statistics.unbind(-1)
    x, usable = factor, torch.ones_like(active)
    if damping > 0:
        x, new_mean = _track_mean(factor, mean, a, decay, damping)
        active = active & ~(new_mean <= 0)
        usable = new_mean.isfinite()
        mean.copy_(torch.where(active & usable, new_mean, mean))
    d, k = a.shape[-2:]
    whole = factor_scale != "exact" and refine == 0
    x, succeeded, changed = x / decay, usable, torch.zeros_like(active)
    for chunk in torch.split(a * math.sqrt(weight), k if whole else max(d, 64), -1):
        x, chunk_succeeded, chunk_changed = _downdate(x, chunk, factor_scale, refine)
        succeeded = succeeded & chunk_succeeded
        changed = changed | chunk_changed
    factor.copy_(torch.where((active & usable & changed)[:, None, None], x, factor))
    fallbacks.add_(active & ~succeeded)


def _track_mean(
    factor: Tensor, mean: Tensor, a: Tensor, decay: float, damping: float
) -> tuple[Tensor, Tensor]:
    """The factors, started where this is the first gradient, and the new running mean of tr(S) / d."""
    scale = a.square().sum((-2, -1)) / a.shape[-2]
    first = mean == 0
    start = _identity_like(factor) / (damping * scale)[:, None, None]
    x = torch.where((first & (scale > 0))[:, None, None], start, factor)
    return x, torch.where(first, scale, decay * mean + (1 - decay) * scale)


def kron_step_(
    left: Tensor,
    right: Tensor,
    left_statistics: Tensor,
    right_statistics: Tensor,
    out: list[Tensor],
    norms: Tensor,
    grad: list[Tensor],
    direction: list[Tensor],
    left_root: Tensor,
    right_root: Tensor,
    active: Tensor,
    decay: float,
    weight: float,
    damping: float,
    factor_scale: str,
    refine: int,
    update: bool,
) -> None:
    """See `Backend.kron_step_`."""
    if update:
        for factor, statistics, unfolding in (
            (left, left_statistics, grad),
            (right, right_statistics, [view.mT for view in grad]),
        ):
            update_factor_(
                factor, statistics, unfolding, active, decay, weight, damping, factor_scale, refine
            )
    blocks = _gather(direction, left.dtype)
    product = left_root.to(left.dtype) @ blocks @ right_root.to(left.dtype)
    norms.copy_(torch.where(active, product.square().sum((-2, -1)), 0))
    start = 0
    for view in out:
        grid = view.shape[:-2]
        end = start + math.prod(grid)
        keep = active[start:end].reshape(*grid, 1, 1)
        view.copy_(torch.where(keep, product[start:end].reshape(view.shape), view))
        start = end


def precondition(blocks: Tensor, roots: list[Tensor]) -> Tensor:
    """See `Backend.precondition`."""
    product = blocks.clone()
    for mode, root in enumerate(roots, start=1):
        if root.numel() > 0:
            unfolded = product.movedim(mode, 1)
            moved = root.to(blocks.dtype) @ unfolded.reshape(*unfolded.shape[:2], -1)
            product = moved.reshape(unfolded.shape).movedim(1, mode)
    return product.contiguous()


def _graft_update(direction: Tensor, second_moment: Tensor | None, coefficients: Tensor) -> Tensor:
    """c0 d / (sqrt(c1 v) + c2), 0 where the denominator is 0; c0 d without a second moment."""
    c0, c1, c2, _ = coefficients.unbind()
    update = c0 * direction.to(coefficients.dtype)
    if second_moment is None:
        return update
    denominator = (c1 * second_moment).sqrt() + c2
    return torch.where(denominator > 0, update / denominator, 0)


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
    dtype = coefficients.dtype
    for i, keep in enumerate(active.unbind()):
        g = grads[i].to(dtype)
        if l2 != 0:
            g = g + l2 * params[i].to(dtype)
        d = g
        if momenta:
            d = beta1 * momenta[i] + (1 - beta1) * g
            momenta[i].copy_(torch.where(keep, d, momenta[i]))
            if nesterov:
                d = beta1 * d + (1 - beta1) * g
        if directions:
            directions[i].copy_(torch.where(keep, d, directions[i]))
        v = None
        if second_moments:
            v = beta2 * second_moments[i] + weight2 * g.square()
            second_moments[i].copy_(torch.where(keep, v, second_moments[i]))
        norm = _graft_update(d, v, coefficients[i]).square().sum()
        graft_norms[i] = torch.where(keep, norm, 0)


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
    for i, keep in enumerate(active.unbind()):
        p = params[i].to(coefficients.dtype)
        u = _graft_update(directions[i], second_moments[i] if second_moments else None, coefficients[i])
        if updates[i].numel() > 0:
            scale = coefficients[i, 3]
            u = torch.where(scale.isfinite(), scale * updates[i], u)
        u = u + l2 * p
        if momenta:
            buffer = momentum * momenta[i] + u
            momenta[i].copy_(torch.where(keep, buffer, momenta[i]))
            u = u + momentum * buffer if nesterov else buffer
        p = (1 - lr * decay) * p - lr * u
        params[i].copy_(torch.where(keep, p.to(params[i].dtype), params[i]))


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """See `Backend.eigh`."""
    values, vectors = torch.linalg.eigh(matrices)
    return values, vectors
