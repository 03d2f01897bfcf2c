"""Roots P = X^(1/p) of X = F F^T from F itself, in units of the gradients: of w rms^2 k X.

X is not formed where that would cost digits: the condition of F is the square root of X's. Two methods:

- ``polar``, products alone: P = F Q^T for p = 2, Q the orthogonal polar factor of F, by minimax polynomials
  of degree 5; no host sync, so it can be captured in a CUDA graph. For p = 4, 8, ... the coupled
  iteration takes square roots of P.
- ``eigh``: the eigendecomposition of F F^T, of the blocks that are too badly conditioned for it in float64.
  Any p.

A root is checked by its residual |P^p - X|_F / |X|_F on the device, and a bad one never replaces a good one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from .backends.base import RMS, WEIGHT

logger = logging.getLogger("kradagrad_ext")

Eigh = Callable[[Tensor], tuple[Tensor, Tensor]]

RESIDUAL_BOUND = 1e-2
"""A root with a larger residual is refused; sound ones stay well under it (docs/numerics.md)."""

FLOOR = 2e-4
"""Smallest singular value, over a bound of the largest, that the iterations are shaped for. Relative damping
of 1e-3 leaves the F of blocks of 256 one of about 1e-3."""

Polynomial = tuple[float, float, float]

POLYNOMIALS: tuple[Polynomial, ...] = (
    (8.42134658, -24.5047034, 17.8304442),
    (4.20053693, -3.05757079, 0.556962066),
    (4.15544823, -3.02725681, 0.553664347),
    (3.97975921, -2.90828739, 0.540735452),
    (3.41712292, -2.51644513, 0.49837786),
    (2.42423422, -1.75778043, 0.418883696),
    (1.90959515, -1.28465744, 0.375763889),
    (1.87501821, -1.25002023, 0.375002019),
)
"""(a, b, c) of a x + b x^3 + c x^5, step by step: the one nearest to 1 on the interval that the steps before
map [FLOOR, 1] to (Amsel et al., 2025, section 3), made 1% wider but for the last step: beyond an
interval's upper end the next polynomials multiply what rounding adds. All end within 5e-8 of 1."""

EIGH_CONDITION = 1e-3
"""An eigendecomposition is taken where the smallest eigenvalue of X is more than the rounding of the largest
over this."""

REFUSALS, RESIDUAL, WHITENED_MEAN, WHITENED_WEIGHT = ROOT_STATS = range(4)
"""Columns of ``root_stats [N, 4]``: refreshes on which a block's old root stayed because the new one was bad;
the residual of the last root made, accepted or not; a running mean of the mean square of the whitened
gradient and the sum of its weights, both 0 unless lengths depend on them."""

SLICE_ELEMENTS = {"cpu": 1 << 18, "accelerator": 1 << 26}
"""Factors are rooted in slices of about this many elements, which bounds the memory of a refresh."""


def supports_polar(p: int) -> bool:
    """Whether X^(1/p) is reached by the polar factor and square roots."""
    return p > 1 and p & (p - 1) == 0


def resolve_method(method: str, p: int, device: torch.device) -> str:
    """The method that serves p: polar where wanted (``auto``: on CUDA) and able, else eigh."""
    wanted = method == "polar" or (method == "auto" and device.type == "cuda")
    return "polar" if wanted and supports_polar(p) else "eigh"


def units(factor_stats: Tensor, k: int) -> Tensor:
    """sqrt(w k) rms ``[N]``: times it, F has no units, and F F^T a mean inverse near 1; 0 before a gradient.

    Args:
        factor_stats: ``[N, 4]``.  k: columns of the side's unfoldings.
    """
    return (factor_stats[:, WEIGHT] * k).sqrt() * factor_stats[:, RMS]


def _square_root_by_products(matrices: Tensor) -> Tensor:
    """X^(1/2) by Y <- Y T, Z <- T Z, T = a I + b G + c G^2, G = Z Y, with Y -> X^(1/2) and Z -> X^(-1/2).

    Only Y and Z are symmetrised: doing it to T loses two digits.
    """
    row_sum = matrices.abs().sum(-1).amax(-1)
    bound = torch.minimum(torch.linalg.matrix_norm(matrices), row_sum)[:, None, None]
    y, z = matrices / bound, _identity_like(matrices).expand_as(matrices)
    for polynomial in POLYNOMIALS:
        t = _even_part(z @ y, polynomial)
        y, z = _symmetric(y @ t), _symmetric(t @ z)
    return y * bound.sqrt()


def _even_part(g: Tensor, polynomial: Polynomial) -> Tensor:
    """A I + b G + c G^2."""
    a, b, c = polynomial
    return a * _identity_like(g) + b * g + c * (g @ g)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def _identity_like(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def polar_root(f: Tensor, p: int) -> Tensor:
    """(F F^T)^(1/p) for F ``[N, d, d]`` and p a power of two, from 2 on.

    Q <- Q (a I + b G + c G^2), G = Q^T Q, from F over a bound of its largest singular value.
    """
    magnitudes = f.abs()
    by_sums = (magnitudes.sum(-1).amax(-1) * magnitudes.sum(-2).amax(-1)).sqrt()
    q = f / torch.minimum(torch.linalg.matrix_norm(f), by_sums)[:, None, None]
    for polynomial in POLYNOMIALS:
        q = q @ _even_part(q.mT @ q, polynomial)
    root = _symmetric(f @ q.mT)
    for _ in range(p.bit_length() - 2):
        root = _square_root_by_products(root)
    return root


def decomposed_root(f: Tensor, x: Tensor, p: int, eigh: Eigh) -> Tensor:
    """X^(1/p) for F ``[N, d, d]`` and X = F F^T, by eigenvalues of X, in float64 where need be."""
    try:
        values, vectors = eigh(x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        logger.warning("eigh of %s failed, trying float64: %s", list(f.shape), error)
        return _careful_root(f, p)
    root = _from_eigenvalues(values.clamp_min(0) ** (1 / p), vectors)
    rounding = torch.finfo(f.dtype).eps * values[:, -1]
    doubtful = values[:, 0] * EIGH_CONDITION < rounding
    if bool(doubtful.any()):
        root[doubtful] = _careful_root(f[doubtful], p)
    return root


def _careful_root(f: Tensor, p: int) -> Tensor:
    """The same where F F^T is badly conditioned: its eigenvalues in float64, of float64 F's singular values.

    NaN, which the residual check refuses, if LAPACK does not converge.
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
    # A decomposition would raise, for all of them.
    f = torch.where(usable[:, None, None], f, _identity_like(f))
    x = f @ f.mT
    if p == 1:
        rooted = x
    elif method == "polar":
        rooted = polar_root(f, p)
    else:
        rooted = decomposed_root(f, x, p, eigh)
    size = torch.linalg.matrix_norm(x)
    residual = torch.linalg.matrix_norm(torch.linalg.matrix_power(rooted, p) - x) / size
    return rooted, torch.where(usable, residual, math.nan)


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
    factor_stats: Tensor,
    roots: Tensor,
    root_stats: Tensor,
    active: Tensor,
    k: int,
    p: int,
    method: str,
    eigh: Eigh = torch.linalg.eigh,
) -> None:
    """Replace the roots of active blocks by those of their factors, where these pass the residual check.

    Args:
        factors: F ``[N, d, d]``.  factor_stats: ``[N, 4]``; a block without a gradient keeps its root.
        roots: ``[N, d, d]``, written in place; any floating dtype.
        root_stats: ``[N, 4]``, see `ROOT_STATS`; infinity stands for a residual that is NaN.
        active: ``[N]`` bool.
        k: columns of the side's unfoldings.
        p, method, eigh: as in `root`.
    """
    if factors.numel() == 0:
        return
    for part in slices(factors, method == "eigh"):
        scale = units(factor_stats[part], k)
        chosen = active[part] & (scale > 0)
        new, residual = root(factors[part].to(scale.dtype) * scale[:, None, None], p, method, eigh)
        good = residual <= RESIDUAL_BOUND
        old = roots[part]
        torch.where((chosen & good)[:, None, None], new.to(old.dtype), old, out=old)
        root_stats[part, REFUSALS] += chosen & ~good
        made = residual.nan_to_num(nan=math.inf, posinf=math.inf).to(root_stats.dtype)
        root_stats[part, RESIDUAL] = torch.where(chosen, made, root_stats[part, RESIDUAL])
