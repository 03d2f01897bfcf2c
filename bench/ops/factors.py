"""Inputs of the ops on blocks, and the least flops of a factor update."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor

from bench.ops.case import Case
from bench.workload import block_view, gradient
from kradagrad_ext.backends.base import RMS, WEIGHT, BlockGroup, Side, UpdateRule

RULE = UpdateRule(decay=0.95, weight=0.05, damping=1e-3, damped_updates=0.0)
RECIPES = {
    "cholesky": dict(method="cholesky"),
    "cholesky kl": dict(method="cholesky", coupled=True),
    "products": dict(method="products", refine=2),
    "products kl": dict(method="products", refine=2, coupled=True),
}
PARAMETERS = ((1024, 1024), (1024, 1024))
"""Parameter shapes that are multiples of every timed block size."""


def spd(blocks: int, side: int, seed: int) -> Tensor:
    """Return symmetric positive definite matrices with eigenvalues from 0.01 to about 1, ``[N, d, d]``."""
    source = torch.Generator().manual_seed(seed)
    square = torch.randn(blocks, side, side, generator=source)
    return (square @ square.mT) / (4 * side) + 0.01 * torch.eye(side)


def side_of_a_run(blocks: int, d: int, k: int, rms: float, seed: int) -> Side:
    """Make a side as in the middle of a run: F upper triangular, F F^T near (k rms^2 I)^-1, roots near I.

    Args:
        k: columns of the unfoldings.  rms: root mean square of the gradients' entries.
    """
    root = spd(blocks, d, seed)
    factor = torch.linalg.cholesky(root).mT / (rms * k**0.5)
    statistics = torch.zeros(blocks, 4)
    statistics[:, RMS], statistics[:, WEIGHT] = rms, 1.0
    return Side(factor.contiguous(), statistics, root)


def matrix_block_group(side: int, parameters: tuple[tuple[int, int], ...] = PARAMETERS) -> BlockGroup:
    """Return a group of square blocks of some parameters' gradients."""
    gradients = [gradient(shape, index, 0) for index, shape in enumerate(parameters)]
    directions = [gradient(shape, index, 1) for index, shape in enumerate(parameters)]
    blocks = sum(rows * columns for rows, columns in parameters) // side**2
    rms = torch.stack([g.square().mean() for g in gradients]).mean().sqrt().item()
    return BlockGroup(
        side_of_a_run(blocks, side, side, rms, seed=1),
        side_of_a_run(blocks, side, side, rms, seed=2),
        [block_view(g, side, side) for g in gradients],
        [block_view(d, side, side) for d in directions],
        [block_view(torch.zeros(shape), side, side) for shape in parameters],
    )


def update_flops(d: int, k: int, recipe: str) -> float:
    """Return the least flops of one factor's update from an unfolding ``[d, k]`` (docs/concepts.md).

    Cholesky, F upper triangular: B takes d^2 k, H d^2 k, the factorisation and the new F d^3 / 3 each.
    Products: B takes 2 d^2 k, H d^2 k, the polynomial of refine 2 three symmetric products, F R 2 d^3.
    Coupling adds a product with the other side's root.
    """
    coupling = 2.0 * d * k * k if recipe.endswith("kl") else 0.0
    if recipe.startswith("cholesky"):
        return coupling + 2.0 * d * d * k + 2.0 * d**3 / 3
    return coupling + 3.0 * d * d * k + 5.0 * d**3


def product_flops(m: int, n: int) -> float:
    """Return the flops of P_left D P_right for one block ``[m, n]``."""
    return 2.0 * m * n * (m + n)


@functools.lru_cache(maxsize=1)
def kron_step_case(side: int, recipe: str) -> Case:
    """Return a step of square blocks."""
    group = matrix_block_group(side)
    blocks = len(group.left.factor)
    return Case(
        op="kron_step_",
        arguments=dict(
            groups=[group],
            scales=torch.ones(blocks),
            norms=torch.zeros(blocks),
            rule=replace(RULE, **RECIPES[recipe]),
            update=True,
            precondition=True,
        ),
        writes=("groups", "norms"),
        shape=f"{side}x{side}",
        blocks=blocks,
        recipe=recipe,
        flops=blocks * (2 * update_flops(side, side, recipe) + product_flops(side, side)),
    )
