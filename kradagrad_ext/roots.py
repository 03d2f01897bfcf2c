"""Roots P = X^(1/p) of X = F F^T from F itself, in units of the gradients: of w rms^2 k X.

X is not formed where that would cost digits: the condition of F is the square root of X's. Two methods:

- ``polar``, products alone (`polar`); for p = 4, 8, ... the coupled iteration takes square roots of P.
- ``eigh``: the backend's `decomposed_roots`. Any p.

A root is checked by its residual |P^p - X|_F / |X|_F on the device, and a bad one never replaces a good one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .backends.base import RootSide, Turn
from .decomposed_roots import identity_like, residuals, usable_factors
from .polar import POLYNOMIALS, SLICE_ELEMENTS, even_part, store, symmetric, units
from .polar import polar_roots as square_roots

RootFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From F ``[N, d, d]`` without units, float32 or float64, to P ``[N, d, d]`` and the residuals ``[N]``."""

RESIDUAL_BOUND = 1e-2
"""A root with a larger residual is refused; sound ones stay well under it (docs/numerics.md)."""

REFUSALS, RESIDUAL, WHITENED_MEAN, WHITENED_WEIGHT = ROOT_STATS = range(4)
"""Columns of ``root_stats [N, 4]``: refreshes on which a block's old root stayed because the new one was bad;
the residual of the last root made, accepted or not; a running mean of the mean square of the whitened
gradient and the sum of its weights, both 0 unless lengths depend on them."""


def supports_polar(p: int) -> bool:
    """Whether X^(1/p) is reached by the polar factor and square roots."""
    return p > 1 and p & (p - 1) == 0


def resolve_method(method: str, p: int, device: torch.device) -> str:
    """The method that serves p: polar where wanted (``auto``: on CUDA) and able, else eigh."""
    wanted = method == "polar" or (method == "auto" and device.type == "cuda")
    return "polar" if wanted and supports_polar(p) else "eigh"


def _square_root_by_products(matrices: Tensor) -> Tensor:
    """X^(1/2) by Y <- Y T, Z <- T Z, T = a I + b G + c G^2, G = Z Y, with Y -> X^(1/2) and Z -> X^(-1/2).

    Only Y and Z are made symmetric: doing it to T loses two digits.
    """
    row_sum = matrices.abs().sum(-1).amax(-1)
    bound = torch.minimum(torch.linalg.matrix_norm(matrices), row_sum)[:, None, None]
    y, z = matrices / bound, identity_like(matrices).expand_as(matrices)
    for polynomial in POLYNOMIALS:
        t = even_part(z @ y, polynomial)
        y, z = symmetric(y @ t), symmetric(t @ z)
    return y * bound.sqrt()


def polar_roots(factors: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """As `Backend.decomposed_roots`, by products alone, for p a power of two from 2 on."""
    root, residual = square_roots(factors)
    if p == 2:
        return root, residual
    for _ in range(p.bit_length() - 2):
        root = _square_root_by_products(root)
    f, usable = usable_factors(factors)
    return root, residuals(root, f @ f.mT, p, usable)


def slices(factors: Tensor, factorised: bool, share: int = 1) -> Iterator[slice]:
    """Runs of blocks to work on at once: few, to bound memory, yet one for every core that factorises one.

    Args:
        factorised: whether each is factorised by one core.
        share: `SLICE_ELEMENTS` are divided by it, for work that needs so many times the memory.
    """
    on_cpu = factors.device.type == "cpu"
    elements = SLICE_ELEMENTS["cpu" if on_cpu else "accelerator"]
    least = torch.get_num_threads() if on_cpu and factorised else 1
    blocks = max(least, elements // max(1, share * factors[:1].numel()))
    for start in range(0, len(factors), blocks):
        yield slice(start, start + blocks)


def refresh_(of: RootSide, root_function: RootFunction, factorised: bool, turn: Turn) -> None:
    """Replace the roots of active blocks that are due by those of their factors that pass the residual check.

    A block without a gradient keeps its root; infinity stands for a residual that is NaN.

    Args:
        root_function: a method for one p.  factorised: as in `slices`.
    """
    factors, stats, roots = of.side.factor, of.side.statistics, of.side.root
    if factors.numel() == 0:
        return
    due = turn.due(len(factors), factors.device)
    for part in slices(factors[: len(due)], factorised):
        index = due[part]
        scale = units(stats[index], of.columns)
        new, residual = root_function(factors[index].to(scale.dtype) * scale[:, None, None])
        store(roots, of.root_stats, index, of.active[index] & (scale > 0), new, residual, RESIDUAL_BOUND)
