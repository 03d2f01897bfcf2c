"""Inputs of `apply_updates_`: parameters of all kinds of shapes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import cases
import torch

from kradagrad_ext.backends.base import COEFFICIENTS

SHAPES = [(), (1,), (0, 3), (7,), (33, 129), (5, 4, 3), (40_000,)]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"momenta": True},
    {"momenta": True, "nesterov": True},
    {"second_moments": False},
    {"decay": 0.1},
    {"added": 0.1, "momenta": True},
]


def make(dtype: torch.dtype, transposed: bool = False) -> SimpleNamespace:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {
        name: [torch.randn(shape).to(kind) for shape in SHAPES]
        for name, kind in (
            ("params", dtype),
            ("momenta", compute),
            ("residuals", torch.int16),
            ("updates", compute),
            ("directions", dtype),
            ("second_moments", compute),
        )
    }
    tensors["residuals"] = [torch.randint(-(2**15), 2**15, shape).short() for shape in SHAPES]
    if transposed:
        for name, values in tensors.items():
            tensors[name] = [cases.padded(t, name == "params") if t.ndim == 2 else t for t in values]
    for second_moment in tensors["second_moments"]:
        second_moment.abs_()
    tensors["updates"][5] = torch.empty(0, dtype=compute)
    inputs = SimpleNamespace(**tensors)
    inputs.coefficients = torch.rand(len(SHAPES), COEFFICIENTS, dtype=compute) + 0.1
    inputs.coefficients[4, 3] = math.nan
    inputs.coefficients[6, 5] = math.inf
    inputs.coefficients[:, 6] = 0
    inputs.active = torch.arange(len(SHAPES)) != 3
    inputs.lr = torch.tensor(0.3, dtype=compute)
    return inputs


def run(
    backend: Any, inputs: SimpleNamespace, dtype: torch.dtype | None = None, **options: Any
) -> SimpleNamespace:
    chosen: dict[str, Any] = {"momentum": 0.9, "nesterov": False}

    result = cases.copied(inputs, dtype)
    for column, name in ((8, "added"), (9, "decay")):
        result.coefficients[:, column] *= options.pop(name, 0.0)
    for name in ("momenta", "residuals"):
        if not options.pop(name, False):
            setattr(result, name, [])
    if not options.pop("second_moments", True):
        result.second_moments = []
    backend.apply_updates_(*vars(result).values(), *(chosen | options).values())
    return result


def exact_inputs(count: int) -> SimpleNamespace:
    """Return bfloat16 parameters whose new values float32 holds exactly, in any order of operations.

    Args:
        count: the count that chance depends on; 0 for none.
    """
    inputs = make(torch.float32)
    for i, shape in enumerate(SHAPES):
        whole = torch.randint(-255, 256, shape)
        inputs.params[i] = whole.to(torch.bfloat16)
        inputs.updates[i] = torch.randint(-99, 100, shape) / 64
    inputs.coefficients[:] = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.25, count, 0.0, 0.0, 0.0])
    inputs.lr = torch.tensor(2.0**-7)
    return inputs
