"""Roots P = X^(1/p) of X = F F^T from F itself, in units of the gradients: of w rms^2 k X.

X is not formed where that would cost digits: the condition of F is the square root of X's. Two methods:

- ``polar``, products alone: P = F Q^T for p = 2, Q the orthogonal polar factor of F, by scaled Newton-Schulz
  (Chen and Chow, 2014); no host sync, so it can be captured in a CUDA graph. For p = 4, 8, ... the coupled
  iteration takes square roots of P.
- ``eigh``: the eigendecomposition of F F^T, and of the blocks that are too badly conditioned for it, the
  singular values of F. Any p.

A root is checked by its residual |P^p - X|_F / |X|_F on the device, and a bad one never replaces a good one.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from .backends.base import RMS, WEIGHT
from .roots import REFUSALS, RESIDUAL, RESIDUAL_BOUND, Eigh, newton_schulz_root, slices

logger = logging.getLogger("kradagrad_ext")

POLAR_FLOOR = 1e-4
"""Smallest singular value of F, over a bound of the largest, that the polar iteration is shaped for. Relative
damping of 1e-3 leaves blocks of 256 one of about 1e-3."""

POLAR_STEPS = 13
"""Enough for the floor above to reach 1 in float32's accuracy."""

EIGH_CONDITION = 1e-3
"""An eigendecomposition is taken where the smallest eigenvalue of X is more than the rounding of the largest
over this."""


def units(statistics: Tensor, k: int) -> Tensor:
    """sqrt(w k) rms ``[N]``: times it, F has no units, and F F^T a mean inverse near 1; 0 before a gradient.

    Args:
        statistics: ``[N, 4]``.  k: columns of the side's unfoldings.
    """
    return (statistics[:, WEIGHT] * k).sqrt() * statistics[:, RMS]


def polar_root(f: Tensor, p: int) -> Tensor:
    """(F F^T)^(1/p) for F ``[N, d, d]`` and p a power of two, from 2 on."""
    magnitudes = f.abs()
    by_sums = (magnitudes.sum(-1).amax(-1) * magnitudes.sum(-2).amax(-1)).sqrt()
    bound = torch.minimum(torch.linalg.matrix_norm(f), by_sums)[:, None, None]
    q, floor = f / bound, POLAR_FLOOR
    identity = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
    for _ in range(POLAR_STEPS):
        s = math.sqrt(3 / (1 + floor + floor * floor))
        q = q @ (1.5 * s * identity - 0.5 * s**3 * (q.mT @ q))
        floor = min(1.0, s * floor * (3 - (s * floor) ** 2) / 2)
    product = f @ q.mT
    root = (product + product.mT) / 2
    return newton_schulz_root(root, p // 2) if p > 2 else root


def decomposed_root(f: Tensor, p: int, eigh: Eigh) -> Tensor:
    """(F F^T)^(1/p) for F ``[N, d, d]``, by eigenvalues of F F^T where these are exact, else by the SVD."""
    try:
        values, vectors = eigh(f @ f.mT)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        logger.warning("eigh of %s failed, trying the SVD: %s", list(f.shape), error)
        return _svd_root(f, p)
    root = _from_eigenvalues(values.clamp_min(0) ** (1 / p), vectors)
    rounding = torch.finfo(f.dtype).eps * values[:, -1]
    doubtful = values[:, 0] * EIGH_CONDITION < rounding
    if bool(doubtful.any()):
        root[doubtful] = _svd_root(f[doubtful], p)
    return root


def _svd_root(f: Tensor, p: int) -> Tensor:
    """The same by singular values, in float64 if LAPACK does not converge; NaN if it does not then."""
    for attempt in (f, f.double()):
        try:
            vectors, values, _ = torch.linalg.svd(attempt)
        except LinAlgError as error:
            logger.warning("SVD of %s in %s failed: %s", list(f.shape), attempt.dtype, error)
            continue
        return _from_eigenvalues(values ** (2 / p), vectors).to(f.dtype)
    return torch.full_like(f, math.nan)


def _from_eigenvalues(values: Tensor, vectors: Tensor) -> Tensor:
    return vectors * values[:, None, :] @ vectors.mT


def root(f: Tensor, p: int, method: str, eigh: Eigh = torch.linalg.eigh) -> tuple[Tensor, Tensor]:
    """The p-th roots of F F^T and their residuals.

    Args:
        f: F ``[N, d, d]`` without units, float32 or float64.
        p: order of the root, at least 1.
        method: ``polar`` (p a power of two) or ``eigh``.
        eigh: the eigendecomposition to use.

    Returns:
        P ``[N, d, d]`` and |P^p - X|_F / |X|_F ``[N]``; NaN residuals where F is not finite or zero.
    """
    usable = f.isfinite().all(-1).all(-1) & (f != 0).any(-1).any(-1)
    identity = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
    f = torch.where(usable[:, None, None], f, identity)  # a decomposition would raise, for all of them
    x = f @ f.mT
    if p == 1:
        rooted = x
    elif method == "polar":
        rooted = polar_root(f, p)
    else:
        rooted = decomposed_root(f, p, eigh)
    size = torch.linalg.matrix_norm(x)
    residual = torch.linalg.matrix_norm(torch.linalg.matrix_power(rooted, p) - x) / size
    return rooted, torch.where(usable, residual, math.nan)


def refresh_(
    factors: Tensor,
    statistics: Tensor,
    roots: Tensor,
    checks: Tensor,
    active: Tensor,
    k: int,
    p: int,
    method: str,
    eigh: Eigh = torch.linalg.eigh,
) -> None:
    """Replace the roots of active blocks by those of their factors, where these pass the residual check.

    Args:
        factors: F ``[N, d, d]``.  statistics: ``[N, 4]``; a block without a gradient keeps its root.
        roots: ``[N, d, d]``, written in place; any floating dtype.
        checks: ``[N, 2]``, see `roots.CHECKS`; infinity stands for a residual that is NaN.
        active: ``[N]`` bool.
        k: columns of the side's unfoldings.
        p, method, eigh: as in `root`.
    """
    if factors.numel() == 0:
        return
    for part in slices(factors, method == "eigh"):
        scale = units(statistics[part], k)
        chosen = active[part] & (scale > 0)
        new, residual = root(factors[part].to(scale.dtype) * scale[:, None, None], p, method, eigh)
        good = residual <= RESIDUAL_BOUND
        old = roots[part]
        torch.where((chosen & good)[:, None, None], new.to(old.dtype), old, out=old)
        checks[part, REFUSALS] += chosen & ~good
        made = residual.nan_to_num(nan=math.inf, posinf=math.inf).to(checks.dtype)
        checks[part, RESIDUAL] = torch.where(chosen, made, checks[part, RESIDUAL])
