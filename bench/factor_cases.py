"""Inputs of the ops on blocks, and the least flops of a factor update."""

from __future__ import annotations

import torch
from op_case import Arguments
from torch import Tensor
from workload import block_view, gradient

DAMPING = 1e-3
DECAY = 0.95
RECIPES = {
    "trace": ("trace", 0),
    "frobenius": ("frobenius", 0),
    "refine2": ("frobenius", 2),
    "exact": ("exact", 0),
}
PARAMETERS = ((1024, 1024), (1024, 1024))
"""Cut into blocks of any of the sides timed, without a rest."""


def scalars(recipe: str) -> Arguments:
    """The scalar arguments of a factor update by the package's defaults."""
    factor_scale, refine = RECIPES[recipe]
    return dict(
        decay=DECAY,
        weight=1 - DECAY,
        damping=DAMPING,
        factor_scale=factor_scale,
        refine=refine,
        precision="bf16x3",
    )


def spd(blocks: int, side: int, largest: float, seed: int) -> Tensor:
    """Symmetric positive definite matrices with eigenvalues from about `largest` / 100, ``[N, d, d]``."""
    source = torch.Generator().manual_seed(seed)
    square = torch.randn(blocks, side, side, generator=source)
    eye = torch.eye(side)
    return largest * ((square @ square.mT) / (4 * side) + 0.01 * eye)


def matrix_block_arguments(side: int, parameters: tuple[tuple[int, int], ...] = PARAMETERS) -> Arguments:
    """All tensors of `kron_step_` for square blocks; the factors are those of a run's middle.

    Factors have eigenvalues up to 1 / (damping s), s the statistics' mean eigenvalue, as relative damping
    leaves them.
    """
    gradients = [gradient(shape, index, 0) for index, shape in enumerate(parameters)]
    directions = [gradient(shape, index, 1) for index, shape in enumerate(parameters)]
    blocks = sum(rows * columns for rows, columns in parameters) // side**2
    mean = torch.stack([g.square().mean() for g in gradients]).mean().item() * side
    statistics = torch.tensor([mean, 0.0]).repeat(blocks, 1)
    return dict(
        left=[spd(blocks, side, 1 / (DAMPING * mean), seed=1)],
        right=[spd(blocks, side, 1 / (DAMPING * mean), seed=2)],
        left_statistics=[statistics],
        right_statistics=[statistics.clone()],
        out=[block_view(torch.zeros(shape), side, side) for shape in parameters],
        norms=torch.zeros(blocks),
        grad=[block_view(g, side, side) for g in gradients],
        direction=[block_view(d, side, side) for d in directions],
        left_root=[spd(blocks, side, 1.0, seed=3)],
        right_root=[spd(blocks, side, 1.0, seed=4)],
        active=torch.ones(blocks, dtype=torch.bool),
    )


def downdate_flops(d: int, k: int, recipe: str) -> float:
    """Least flops of one factor's update from an unfolding ``[d, k]``.

    Y = X A costs 2 d^2 k and the symmetric downdate d^2 k. Beyond that: |A^T X A|_F half a product, d k
    min(d, k); N = I + A^T Y the same with k, then three products of k^3 for every refinement, of which two
    symmetric, and Y C; or its Cholesky, k^3 / 3, and a triangular solve, d k^2. Where the unfolding is
    wider than max(d, 64), refined and exact updates take it in chunks.
    """
    base = 3.0 * d * d * k
    if recipe == "trace":
        return base
    if recipe == "frobenius":
        return base + d * k * min(d, k)
    width = min(k, max(d, 64))
    chunks = k / width
    if recipe == "exact":
        return base + chunks * (d * width**2 + width**3 / 3 + d * width**2)
    refine = RECIPES[recipe][1]
    return base + chunks * (d * width**2 + refine * 4 * width**3 + 2 * d * width**2)


def product_flops(m: int, n: int) -> float:
    """Flops of P_left D P_right for one block ``[m, n]``."""
    return 2.0 * m * n * (m + n)
