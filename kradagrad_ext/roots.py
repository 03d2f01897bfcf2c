"""Roots P = X^(1/p) of X = F F^T from F itself, in units of the gradients: of w rms^2 k X.

X is not formed where that would cost digits: the condition of F is the square root of X's. Two methods:

- ``polar``, products alone: P = F Q^T for p = 2, Q the orthogonal polar factor of F, by minimax polynomials
  of degree 5; no host sync, so it can be captured in a CUDA graph. For p = 4, 8, ... the coupled
  iteration takes square roots of P.
- ``eigh``: the backend's `decomposed_roots`. Any p.

A root is checked by its residual |P^p - X|_F / |X|_F on the device, and a bad one never replaces a good one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .backends.base import RMS, WEIGHT
from .decomposed_roots import identity_like, residuals, usable_factors

RootFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From F ``[N, d, d]`` without units, float32 or float64, to P ``[N, d, d]`` and the residuals ``[N]``."""

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
    y, z = matrices / bound, identity_like(matrices).expand_as(matrices)
    for polynomial in POLYNOMIALS:
        t = _even_part(z @ y, polynomial)
        y, z = _symmetric(y @ t), _symmetric(t @ z)
    return y * bound.sqrt()


def _even_part(g: Tensor, polynomial: Polynomial) -> Tensor:
    """A I + b G + c G^2."""
    a, b, c = polynomial
    return a * identity_like(g) + b * g + c * (g @ g)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def polar_roots(factors: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """As `Backend.decomposed_roots`, by products alone, for p a power of two from 2 on.

    Q <- Q (a I + b G + c G^2), G = Q^T Q, from F over a bound of its largest singular value.
    """
    f, usable = usable_factors(factors)
    magnitudes = f.abs()
    by_sums = (magnitudes.sum(-1).amax(-1) * magnitudes.sum(-2).amax(-1)).sqrt()
    q = f / torch.minimum(torch.linalg.matrix_norm(f), by_sums)[:, None, None]
    for polynomial in POLYNOMIALS:
        q = q @ _even_part(q.mT @ q, polynomial)
    root = _symmetric(f @ q.mT)
    for _ in range(p.bit_length() - 2):
        root = _square_root_by_products(root)
    return root, residuals(root, f @ f.mT, p, usable)


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
    root_function: RootFunction,
    factorised: bool,
) -> None:
    """Replace the roots of active blocks by those of their factors, where these pass the residual check.

    Args:
        factors: F ``[N, d, d]``.  factor_stats: ``[N, 4]``; a block without a gradient keeps its root.
        roots: ``[N, d, d]``, written in place; any floating dtype.
        root_stats: ``[N, 4]``, see `ROOT_STATS`; infinity stands for a residual that is NaN.
        active: ``[N]`` bool.
        k: columns of the side's unfoldings.
        root_function: a method for one p.  factorised: as in `slices`.
    """
    if factors.numel() == 0:
        return
    for part in slices(factors, factorised):
        scale = units(factor_stats[part], k)
        chosen = active[part] & (scale > 0)
        new, residual = root_function(factors[part].to(scale.dtype) * scale[:, None, None])
        good = residual <= RESIDUAL_BOUND
        old = roots[part]
        torch.where((chosen & good)[:, None, None], new.to(old.dtype), old, out=old)
        root_stats[part, REFUSALS] += chosen & ~good
        made = residual.nan_to_num(nan=math.inf, posinf=math.inf).to(root_stats.dtype)
        root_stats[part, RESIDUAL] = torch.where(chosen, made, root_stats[part, RESIDUAL])
