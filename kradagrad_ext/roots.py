"""Roots X^(1/p) of batches of symmetric positive definite factors, on torch's own linear algebra.

Two methods: an eigendecomposition, and a coupled Newton-Schulz iteration made of products alone, which
needs no host sync and so can be captured in a CUDA graph. Whatever the method, a root is checked by its
residual |P^p - X|_F / |X|_F on the device, and a bad one never replaces a good one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

logger = logging.getLogger("kradagrad_ext")

Eigh = Callable[[Tensor], tuple[Tensor, Tensor]]

RESIDUAL_BOUND = 1e-2
"""A root with a larger residual is refused; sound ones stay well under it (docs/numerics.md)."""

NEWTON_SCHULZ_FLOOR = 1e-4
"""Smallest eigenvalue of a square root of the scaled factor that the first steps are shaped for."""

NEWTON_SCHULZ_STEPS = 13
"""Enough for the floor above to reach 1 in float32's accuracy."""

REFUSALS, RESIDUAL = CHECKS = range(2)
"""Columns of ``checks [N, 2]``: refreshes on which a block's old root stayed because the new one was bad, and
the residual of the last root made, accepted or not."""

SLICE_ELEMENTS = {"cpu": 1 << 18, "accelerator": 1 << 26}
"""Factors are rooted in slices of about this many elements, which bounds the memory of a refresh."""


def supports_newton_schulz(p: int) -> bool:
    """Whether X^(1/p) is reached by square roots alone."""
    return p & (p - 1) == 0


def resolve_method(method: str, p: int, device: torch.device) -> str:
    """The method that serves p: Newton-Schulz where wanted (``auto``: on CUDA) and able, else eigh."""
    wanted = method == "newton_schulz" or (method == "auto" and device.type == "cuda")
    return "newton_schulz" if wanted and supports_newton_schulz(p) else "eigh"


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def _frobenius(matrix: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
    return norm


def _identity_like(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def _checked_eigh(matrices: Tensor, eigh: Eigh) -> tuple[Tensor, Tensor]:
    """`eigh`, in float64 if it does not converge, and NaN, which the residual check refuses, after that."""
    try:
        return eigh(matrices)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as first:
        logger.warning("eigh of %s failed, trying float64: %s", list(matrices.shape), first)
    try:
        values, vectors = torch.linalg.eigh(matrices.double())
        return values.to(matrices.dtype), vectors.to(matrices.dtype)
    except LinAlgError as second:
        logger.warning("eigh failed in float64 as well, the old roots stay: %s", second)
        return matrices.new_full(matrices.shape[:2], math.nan), torch.full_like(matrices, math.nan)


def eigh_root(matrices: Tensor, p: int, eigh: Eigh) -> Tensor:
    """X^(1/p) ``[N, d, d]``, negative eigenvalues taken as 0."""
    values, vectors = _checked_eigh(matrices, eigh)
    return vectors * values.clamp_min(0)[:, None, :] ** (1 / p) @ vectors.mT


def _square_root_by_products(matrices: Tensor) -> Tensor:
    """X^(1/2) by Y <- Y T, Z <- T Z, T = a I + b Z Y, with Y -> X^(1/2) and Z -> X^(-1/2).

    a and b are the degree-3 minimax coefficients for eigenvalues of Y in [f, 1] (Chen and Chow, 2014):
    s = sqrt(3 / (1 + f + f^2)) scales Newton-Schulz so that both ends of the interval meet, and f follows
    its image to 1, where s = 1. Only Y and Z are symmetrised: doing it to T loses two digits.
    """
    row_sum = matrices.abs().sum(-1).amax(-1)[:, None, None]
    bound = torch.minimum(_frobenius(matrices), row_sum)
    identity = _identity_like(matrices)
    y, z = matrices / bound, identity.expand_as(matrices)
    floor = NEWTON_SCHULZ_FLOOR
    for _ in range(NEWTON_SCHULZ_STEPS):
        scale = math.sqrt(3 / (1 + floor + floor * floor))
        t = 1.5 * scale * identity - 0.5 * scale**3 * (z @ y)
        y, z = _symmetric(y @ t), _symmetric(t @ z)
        floor = min(1.0, scale * floor * (3 - (scale * floor) ** 2) / 2)
    return y * bound.sqrt()


def newton_schulz_root(matrices: Tensor, p: int) -> Tensor:
    """X^(1/p), p a power of two, by products alone: no sync, batched, capturable."""
    for _ in range(p.bit_length() - 1):
        matrices = _square_root_by_products(matrices)
    return matrices


def root(matrices: Tensor, p: int, method: str, eigh: Eigh = torch.linalg.eigh) -> tuple[Tensor, Tensor]:
    """The p-th roots of symmetric positive definite matrices and their residuals.

    Args:
        matrices: X ``[N, d, d]``, float32 or float64. Scaled by their mean eigenvalue before anything
            else, so that no norm over- or underflows.
        p: order of the root.
        method: ``eigh`` or ``newton_schulz``.
        eigh: the eigendecomposition to use.

    Returns:
        P ``[N, d, d]`` and |P^p - X|_F / |X|_F ``[N]``; NaN residuals for matrices that are not finite.
    """
    scale = matrices.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    # Passes over memory count here: blocks are small enough that they cost as much as a product.
    scaled = matrices / scale
    size = _frobenius(scaled)
    usable = size.isfinite()
    scaled.masked_fill_(~usable, 0)  # eigh would raise, for all of them
    if p == 1:
        rooted = scaled.clone()
    elif method == "eigh":
        rooted = eigh_root(scaled, p, eigh)
    else:
        rooted = newton_schulz_root(scaled, p)
    power = torch.linalg.matrix_power(rooted, p - 1)
    difference = scaled.baddbmm_(power, rooted, beta=-1)
    residual = torch.where(usable, _frobenius(difference) / size, math.nan)
    return rooted.mul_(scale ** (1 / p)), residual.flatten()


def slices(factors: Tensor, factorised: bool, share: int = 1) -> Iterator[slice]:
    """Runs of blocks to work on at once: few, to bound memory, yet one for every core that factorises one.

    Args:
        share: `SLICE_ELEMENTS` are divided by it, for work that needs so many times the memory.
    """
    on_cpu = factors.device.type == "cpu"
    elements = SLICE_ELEMENTS["cpu" if on_cpu else "accelerator"]
    least = torch.get_num_threads() if on_cpu and factorised else 1
    blocks = max(least, elements // max(1, share * factors[:1].numel()))
    for start in range(0, len(factors), blocks):
        yield slice(start, start + blocks)


def refresh_(
    factors: Tensor,
    roots: Tensor,
    checks: Tensor,
    active: Tensor,
    p: int,
    method: str,
    eigh: Eigh = torch.linalg.eigh,
) -> None:
    """Replace the roots of active blocks by those of their factors, where these pass the residual check.

    Args:
        factors: X ``[N, d, d]``.
        roots: ``[N, d, d]``, written in place; any floating dtype.
        checks: ``[N, 2]``, see `CHECKS`; infinity stands for a residual that is NaN.
        active: ``[N]`` bool.
        p, method, eigh: as in `root`.
    """
    if factors.numel() == 0:
        return
    for part in slices(factors, method == "eigh"):
        new, residual = root(factors[part], p, method, eigh)
        good = residual <= RESIDUAL_BOUND
        replaced, old = (active[part] & good)[:, None, None], roots[part]
        torch.where(replaced, new.to(old.dtype), old, out=old)
        checks[part, REFUSALS] += active[part] & ~good
        made = residual.nan_to_num(nan=math.inf, posinf=math.inf).to(checks.dtype)
        checks[part, RESIDUAL] = torch.where(active[part], made, checks[part, RESIDUAL])
