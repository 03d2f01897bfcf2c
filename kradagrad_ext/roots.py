"""Roots P = X^(1/p) of X = F F^T from F itself, in units of the gradients: of w rms^2 k X.

X is not formed where that would cost digits: the condition of F is the square root of X's. Two methods:

- ``polar``, products alone (`polar`); for p = 4, 8, ... the coupled iteration takes square roots of P.
- ``eigh``: the backend's `decomposed_roots`. Any p.

A root is checked by its residual |P^p - X|_F / |X|_F on the device, and a bad one never replaces a good one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import polar
from .backends.base import RootSide, Turn
from .decomposed_roots import identity_like, residuals, usable_factors
from .polar import Polynomial, RootFunction, symmetric

RESIDUAL_BOUND = 1e-2
"""A root with a larger residual is refused; sound ones stay well under it (docs/numerics.md)."""


def supports_polar(p: int) -> bool:
    """Whether X^(1/p) is reached by the polar factor and square roots."""
    return p > 1 and p & (p - 1) == 0


def resolve_method(method: str, p: int, device: torch.device) -> str:
    """The method that serves p: polar where wanted (``auto``: on CUDA) and able, else eigh."""
    wanted = method == "polar" or (method == "auto" and device.type == "cuda")
    return "polar" if wanted and supports_polar(p) else "eigh"


def _even_part(g: Tensor, polynomial: Polynomial) -> Tensor:
    """A I + b G + c G^2."""
    a, b, c = polynomial
    return a * identity_like(g) + b * g + c * (g @ g)


def _square_root_by_products(matrices: Tensor, polynomials: Sequence[Polynomial]) -> Tensor:
    """X^(1/2) by Y <- Y T, Z <- T Z, T = a I + b G + c G^2, G = Z Y, with Y -> X^(1/2) and Z -> X^(-1/2).

    Only Y and Z are made symmetric: doing it to T loses two digits.
    """
    row_sum = matrices.abs().sum(-1).amax(-1)
    bound = torch.minimum(torch.linalg.matrix_norm(matrices), row_sum)[:, None, None]
    y, z = matrices / bound, identity_like(matrices).expand_as(matrices)
    for polynomial in polynomials:
        t = _even_part(z @ y, polynomial)
        y, z = symmetric(y @ t), symmetric(t @ z)
    return y * bound.sqrt()


def polar_roots(
    factors: Tensor, p: int, polynomials: Sequence[Polynomial] = polar.POLYNOMIALS[8]
) -> tuple[Tensor, Tensor]:
    """As `Backend.decomposed_roots`, by products alone, for p a power of two from 2 on."""
    root, residual = polar.polar_roots(factors, polynomials)
    if p == 2:
        return root, residual
    for _ in range(p.bit_length() - 2):
        root = _square_root_by_products(root, polynomials)
    f, usable = usable_factors(factors)
    return root, residuals(root, f @ f.mT, p, usable)


def refresh_(of: RootSide, root_function: RootFunction, factorised: bool, turn: Turn) -> None:
    """As `polar.refresh_`, with the bound of all roots.

    Args:
        root_function: a method for one p.  factorised: whether each factor is factorised by one core.
    """
    on_cpu = of.side.factor.device.type == "cpu"
    least = torch.get_num_threads() if on_cpu and factorised else 1
    due = polar.due_blocks(of, turn, host_looks=on_cpu or factorised)
    polar.refresh_(of, root_function, RESIDUAL_BOUND, due, least)
