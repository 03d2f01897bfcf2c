"""Check of whole steps against the float64 reference, before they are timed."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.common import relative_error
from bench.steps.baselines import RECIPES
from bench.workload import gradient
from kradagrad_ext import KrADagrad

SHAPES = ((320, 192), (256, 256), (70,))
STEPS = 12
BOUND = 1e-3
"""Bound on the relative error of the parameters' displacement from their start."""


def displacement(backend: str, recipe: str, dtype: torch.dtype) -> list[Tensor]:
    params = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    optimizer = KrADagrad(params, lr=1e-3, block_size=128, backend=backend, **RECIPES[recipe])
    for step in range(STEPS):
        for index, (param, shape) in enumerate(zip(params, SHAPES, strict=True)):
            param.grad = gradient(shape, index, step).to(dtype)
        optimizer.step()
    return [param.detach() for param in params]


def verify_steps(backend: str) -> float:
    """Return the largest error of float32 steps on a backend, over all recipes.

    Raises:
        RuntimeError: an error exceeds `BOUND`.
    """
    worst = 0.0
    for recipe in RECIPES:
        wanted = displacement("reference", recipe, torch.float64)
        for got, want in zip(displacement(backend, recipe, torch.float32), wanted, strict=True):
            error = relative_error(got, want)
            if not error <= BOUND:
                raise RuntimeError(
                    f"KrADagrad {recipe} on {backend} is {error:.1e} off the float64 reference"
                )
            worst = max(worst, error)
    return worst
