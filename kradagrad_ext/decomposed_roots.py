"""Roots P = X^(1/p) of X = F F^T by the eigendecomposition of X, for any p, in float64 where necessary.

The residual |P^p - X|_F / |X|_F identifies a bad root. F has no units here, as in `roots`.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from .linalg import identity_like

logger = logging.getLogger("kradagrad_ext")

EIGH_CONDITION = 1e-3
"""The eigendecomposition in the dtype of F is trusted where the smallest eigenvalue of X is at least eps
times the largest, divided by this."""


def decomposed_roots(factors: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """Return roots and residuals; see `Backend.decomposed_roots`."""
    f, usable = usable_factors(factors)
    x = f @ f.mT
    rooted = _root(f, x, p) if p > 1 and x.numel() > 0 else x
    return rooted, residuals(rooted, x, p, usable)


def usable_factors(factors: Tensor) -> tuple[Tensor, Tensor]:
    """Replace factors that are zero or not finite by identities; return them and which are usable ``[N]``."""
    usable = factors.isfinite().all(-1).all(-1) & (factors != 0).any(-1).any(-1)
    return torch.where(usable[:, None, None], factors, identity_like(factors)), usable


def residuals(rooted: Tensor, x: Tensor, p: int, usable: Tensor) -> Tensor:
    """Return |P^p - X|_F / |X|_F ``[N]``, NaN where the factor was not usable."""
    size = torch.linalg.matrix_norm(x)
    residual = torch.linalg.matrix_norm(torch.linalg.matrix_power(rooted, p) - x) / size
    return torch.where(usable, residual, math.nan)


def _root(f: Tensor, x: Tensor, p: int) -> Tensor:
    try:
        values, vectors = torch.linalg.eigh(x)
    except LinAlgError as error:
        logger.warning("eigh of %s failed, trying float64: %s", list(f.shape), error)
        return _careful_root(f, p)
    root = _from_eigenvalues(values.clamp_min(0) ** (1 / p), vectors)
    rounding = torch.finfo(f.dtype).eps * values[:, -1]
    doubtful = values[:, 0] * EIGH_CONDITION < rounding
    if bool(doubtful.any()):
        root[doubtful] = _careful_root(f[doubtful], p)
    return root


def _careful_root(f: Tensor, p: int) -> Tensor:
    """Return the root of a badly conditioned F F^T: by eigenvalues in float64; float64 F by singular values.

    It is NaN, which the residual check refuses, if LAPACK does not converge.
    """
    try:
        if f.dtype == torch.float64:
            vectors, values, _ = torch.linalg.svd(f)
            return _from_eigenvalues(values ** (2 / p), vectors)
        values, vectors = torch.linalg.eigh(f.double() @ f.double().mT)
        return _from_eigenvalues(values.clamp_min(0) ** (1 / p), vectors).to(f.dtype)
    except LinAlgError as error:
        logger.warning("decomposition of %s failed, the old roots stay: %s", list(f.shape), error)
        return torch.full_like(f, math.nan)


def _from_eigenvalues(values: Tensor, vectors: Tensor) -> Tensor:
    return vectors * values[:, None, :] @ vectors.mT
