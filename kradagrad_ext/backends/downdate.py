"""One factor's update, X - Y C Y^T with Y = X A: the formulas of the reference, written to be read.

X [N, d, d] is a batch of factors, A [N, d, k] their unfoldings, N = I + A^T X A.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNIT_LEAST_EXPONENT = -120
"""Of damping mean, so that the square of the unit is a float32."""


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def identity_like(matrix: Tensor) -> Tensor:
    """I, to be broadcast over a batch of square matrices."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def unit_of(damped_mean: Tensor) -> Tensor:
    """u ``[N, 1, 1]``, the power of two near (damping mean)^(-1/2), under which damping keeps X^(1/2).

    With X / u^2 and A u for X and A, Y Y^T overflows where t does; without, where X (t - 1) does. Powers of
    two round nothing.
    """
    exponent = torch.frexp(damped_mean).exponent.clamp_min(UNIT_LEAST_EXPONENT)
    unit = torch.ldexp(torch.ones_like(damped_mean), -(exponent // 2))
    return torch.where(damped_mean > 0, unit, 1)[:, None, None]


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
    """X - Y C Y^T with C <= N^-1 from the KrAD lemma, and per block whether t and it are finite.

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
        identity = identity_like(a.mT @ a)
        n = identity + _symmetric(a.mT @ y)
        c = identity / t
        for _ in range(refine):
            w = _symmetric(n @ c)
            c = _symmetric(c @ (5 * identity - 8 * w + 4 * w @ w))
        downdate = y @ c @ y.mT
    updated = factor - _symmetric(downdate)
    return updated, t.isfinite().flatten() & updated.isfinite().all(-1).all(-1)


def exact_downdate(factor: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """X - Y N^-1 Y^T = (X^-1 + A A^T)^-1 (Woodbury) by Cholesky of N, and per block whether it succeeded."""
    y = factor @ a
    n = identity_like(a.mT @ a) + _symmetric(a.mT @ y)
    lower, info = torch.linalg.cholesky_ex(n)
    z = torch.linalg.solve_triangular(lower, y.mT, upper=False)
    updated = factor - _symmetric(z.mT @ z)
    return updated, (info == 0) & updated.isfinite().all(-1).all(-1)
