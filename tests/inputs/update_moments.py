"""Inputs of `update_moments_`: parameters of all kinds of shapes."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import cases
import torch

from kradagrad_ext.backends.base import COEFFICIENTS
from kradagrad_ext.backends.scalars import spans_of, sums_of

SHAPES = [(), (1,), (0, 3), (7,), (33, 129), (5, 4, 3), (40_000,)]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"nesterov": True},
    {"momenta": False},
    {"second_moments": False},
    {"decay": 0.1},
    {"beta2": 1.0, "weight2": 1.0},
]


def make(dtype: torch.dtype, transposed: bool = False) -> SimpleNamespace:
    compute = torch.float64 if dtype == torch.float64 else torch.float32

    def tensors(
        positive: bool = False, kind: torch.dtype = compute, as_parameter: bool = False
    ) -> list[torch.Tensor]:
        """With `transposed`, pad matrices, and store parameters and gradients by columns."""
        values = [torch.randn(shape).to(kind) for shape in SHAPES]
        values = [t.abs() for t in values] if positive else values
        return [cases.padded(t, as_parameter) if transposed and t.ndim == 2 else t for t in values]

    count = len(SHAPES)
    return SimpleNamespace(
        momenta=tensors(),
        second_moments=tensors(positive=True),
        directions=tensors(),
        graft_norms=torch.full((sum(spans_of(math.prod(shape)) for shape in SHAPES),), 3.0, dtype=compute),
        grads=tensors(kind=dtype, as_parameter=True),
        params=tensors(kind=dtype, as_parameter=True),
        coefficients=torch.rand(count, COEFFICIENTS, dtype=compute) + 0.1,
        active=torch.arange(count) != 3,
    )


def add_up_(graft_norms: torch.Tensor, params: list[torch.Tensor]) -> None:
    """Put a parameter's norm in its first span, as the reference does: the spans' elements are open."""
    offsets = list(itertools.accumulate((spans_of(p.numel()) for p in params), initial=0))
    sums = sums_of(graft_norms, torch.tensor(offsets))
    graft_norms.zero_()
    for p, first, norm in zip(params, offsets, sums, strict=False):
        if p.numel():
            graft_norms[first] = norm


def run(
    backend: Any, inputs: SimpleNamespace, dtype: torch.dtype | None = None, **options: Any
) -> SimpleNamespace:
    chosen: dict[str, Any] = {"beta1": 0.9, "beta2": 0.99, "weight2": 0.01, "nesterov": False}

    result = cases.copied(inputs, dtype)
    result.coefficients[:, 7] *= options.pop("decay", 0.0)
    for name in ("momenta", "second_moments"):
        if not options.pop(name, True):
            setattr(result, name, [])
    chosen |= options
    if not chosen["nesterov"]:
        result.directions = []
    backend.update_moments_(*vars(result).values(), *chosen.values())
    if len(result.graft_norms):
        add_up_(result.graft_norms, result.params)
    return result
