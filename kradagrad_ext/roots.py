"""Roots P = X^(1/p) of X = F F^T from F itself, without the gradients' units: roots of w rms^2 k X.

X is not formed where that would cost digits: the condition of F is the square root of X's. Two methods:

- ``polar``, products alone (`polar`); for p = 4, 8, ... the coupled iteration takes square roots of P.
- ``eigh``: the backend's `decomposed_roots`, for any p.

A root is checked by its residual |P^p - X|_F / |X|_F on the device; a bad root never replaces the old one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import polar
from .backends.base import RootSide, Turn
from .decomposed_roots import residuals, usable_factors
from .linalg import identity_like, symmetric
from .polar import Polynomial, RootFunction

RESIDUAL_BOUND = 1e-2
"""A root with a larger residual is refused; sound roots are well below it (docs/numerics.md)."""


def supports_polar(p: int) -> bool:
    """Return True if X^(1/p) can be computed from the polar factor and square roots: p = 2, 4, 8, ..."""
    return p > 1 and p & (p - 1) == 0


def resolve_method(method: str, p: int, device: torch.device) -> str:
    """Return ``polar`` if `method` asks for it (``auto`` does on CUDA) and p allows it, else ``eigh``."""
    wanted = method == "polar" or (method == "auto" and device.type == "cuda")
    return "polar" if wanted and supports_polar(p) else "eigh"


def _even_part(g: Tensor, polynomial: Polynomial) -> Tensor:
    """Return a I + b G + c G^2."""
    a, b, c = polynomial
    return a * identity_like(g) + b * g + c * (g @ g)


def _square_root_by_products(matrices: Tensor, polynomials: Sequence[Polynomial]) -> Tensor:
    """Return X^(1/2) by Y <- Y T, Z <- T Z, T = a I + b G + c G^2, G = Z Y; Y -> X^(1/2), Z -> X^(-1/2).

    Only Y and Z are made symmetric: making T symmetric loses two digits.
    """
    row_sum = matrices.abs().sum(-1).amax(-1)
    bound = torch.minimum(torch.linalg.matrix_norm(matrices), row_sum)[:, None, None]
    y, z = matrices / bound, identity_like(matrices).expand_as(matrices)
    for polynomial in polynomials:
        t = _even_part(z @ y, polynomial)
        y, z = symmetric(y @ t), symmetric(t @ z)
    return y * bound.sqrt()


def roots_by_products(
    factors: Tensor, p: int, polynomials: Sequence[Polynomial] = polar.POLYNOMIALS[8]
) -> tuple[Tensor, Tensor]:
    """Return the same as `Backend.decomposed_roots` by products alone, for p = 2, 4, 8, ..."""
    root, residual = polar.polar_roots(factors, polynomials)
    if p == 2:
        return root, residual
    for _ in range(p.bit_length() - 2):
        root = _square_root_by_products(root, polynomials)
    f, usable = usable_factors(factors)
    return root, residuals(root, f @ f.mT, p, usable)


def refresh_due_(root_side: RootSide, root_function: RootFunction, factorised: bool, turn: Turn) -> None:
    """Refresh the roots that are due by `polar.refresh_`, with the bound of all roots.

    Args:
        root_function: a method for one p.
        factorised: true if a decomposition takes one core per factor, so that a slice needs one per thread.
    """
    on_cpu = root_side.side.factor.device.type == "cpu"
    least = torch.get_num_threads() if on_cpu and factorised else 1
    due = polar.due_blocks(root_side, turn, host_looks=on_cpu or factorised)
    polar.refresh_(root_side, root_function, RESIDUAL_BOUND, due, least)
