"""Inputs and declaration of `guard_gradients_`: matrices in every state, gradients of every size."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any
from unittest import mock

import cases
import torch

from kradagrad_ext.backends.base import COEFFICIENTS
from kradagrad_ext.backends.scalars import (
    COLUMNS,
    IN_A_ROW,
    LARGEST_SHIFT,
    MEAN_SQUARE,
    SKIPPED,
    SPIKES,
    STEPS,
    UNIT,
    USUAL,
    ScalarRule,
)

from .op import Kernel, Refusal, ScalarOp

RULE: dict[str, Any] = {
    "spike_limit": 30.0,
    "beta1": 0.9,
    "averaged": True,
    "nesterov": False,
    "bias2": 0.99,
    "decay2": 0.99,
    "weight2": 0.01,
    "eps": 1e-8,
    "decayed": 9,
    "by_chance": False,
    "length": "graft",
}


OPTIONS: list[dict[str, Any]] = [
    {},
    {"nesterov": True, "by_chance": True},
    {"averaged": False, "decayed": 8},
    {"decayed": 7},
    {"decayed": 7, "weight_decay": 1e30},
    {"bias2": 0.0, "decay2": 1.0, "weight2": 1.0},
    {"bias2": 0.0, "decay2": 1.0, "weight2": 0.0, "length": "rms"},
    {"beta1": 0.0, "length": "gradient"},
    {"spike_limit": math.inf},
]


# All kinds of norms that a gradient may have, over the usual one and sqrt(numel).
RATIOS = [1.0, 0.0, 29.9, 30.1, 2.0**50, 2.0**-50, 1e-30, 1e30, math.inf, math.nan]


# USUAL, UNIT, IN_A_ROW and MEAN_SQUARE of matrices that may get such a gradient.
KNOWN = [
    (0.0, 0.0, 0, 0.0),
    (1.3, 1.0, 0, 1.7),
    (1.3, 1.0, 1, 1e-9),
    (1.3, 1.0, 2, 1e9),
    (1.3e-30, 2.0**-100, 0, 1.7),
    (1.3e30, 2.0**99, 2, 1.7),
    (1.3, 2.0**45, 0, 0.0),
    (1.3, 2.0**45, 0, 0.001),
    (1.3e-42, 0.0, 0, 0.0),
    (1.3e-42, 2.0**-126, 0, 1.7),
]


def make(dtype: torch.dtype, transposed: bool = False) -> SimpleNamespace:
    """Return matrices for every pair of `KNOWN` and `RATIOS`; `run` sets the rule by its options."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    pairs = [(known, ratio) for known in KNOWN for ratio in RATIOS]
    count = len(pairs)
    scalars = torch.rand(count, len(COLUMNS), dtype=compute) * 9
    steps = torch.tensor([0.0, 1, 2, 7, 300, 2.0**23, 5]).repeat(count)[:count]
    for column in (STEPS, SPIKES, SKIPPED):
        scalars[:, column] = steps
    known = torch.tensor([known for known, _ in pairs], dtype=compute)
    if dtype == torch.float64:  # the same at both ends of its range
        far = known[:, 1] > 2.0**90
        known[far, :2] *= 2.0**850
        near = known[:, 0] < 1e-29
        known[near & (known[:, 0] > 0), :2] *= 2.0**-850
    for i, column in enumerate((USUAL, UNIT, IN_A_ROW, MEAN_SQUARE)):
        scalars[:, column] = known[:, i]
    numel = torch.tensor([1.0, 7, 4096, 1e9], dtype=compute).repeat(count)[:count]
    usual = torch.where(scalars[:, USUAL] > 0, scalars[:, USUAL], 1).double()
    ratios = torch.tensor([ratio for _, ratio in pairs], dtype=torch.float64)
    limits = torch.finfo(compute)  # no gradient has elements beyond
    sizes = torch.where(ratios > 0, (usual * ratios).clamp(limits.tiny, limits.max / 8), 0)
    rms = torch.where(ratios.isfinite(), sizes, ratios)
    return SimpleNamespace(
        scalars=scalars,
        coefficients=torch.full((count, COEFFICIENTS), math.nan, dtype=compute),
        active=torch.arange(count) % 2 == 0,
        restarts=torch.arange(count) % 3 == 0,
        norms=rms * numel.double().sqrt(),
        numel=numel,
        present=torch.arange(count) % 11 != 10,
        weight_decay=torch.tensor(0.3, dtype=compute),
    )


def run(
    backend: Any, inputs: SimpleNamespace, dtype: torch.dtype | None = None, **options: Any
) -> SimpleNamespace:
    """Run the op on copies, in another dtype with the largest shift of the inputs' dtype."""
    result = cases.copied(inputs, dtype)
    options = RULE | options
    result.weight_decay.fill_(options.pop("weight_decay", float(inputs.weight_decay)))
    largest = LARGEST_SHIFT[inputs.scalars.dtype]
    with mock.patch.dict(LARGEST_SHIFT, {result.scalars.dtype: largest}):
        backend.guard_gradients_(*vars(result).values(), ScalarRule(**options))
    return result


def rows(inputs: SimpleNamespace, chosen: torch.Tensor) -> SimpleNamespace:
    each = {name: value if value.ndim == 0 else value[chosen] for name, value in vars(inputs).items()}
    return SimpleNamespace(**each)


def sample() -> tuple[object, ...]:
    inputs = rows(make(torch.float32), torch.arange(7))
    return (*vars(inputs).values(), *ScalarRule(**RULE).values)


GUARD_GRADIENTS = ScalarOp(
    "guard_gradients_",
    sample,
    [
        Refusal(0, torch.zeros(7, 8), "`scalars` must be [M, 9] float32 or"),
        Refusal(1, torch.zeros(7, 9), "`coefficients` must be [7, 10]"),
        Refusal(2, torch.zeros(7), "`active` must be [7] bool"),
        Refusal(3, torch.zeros(7), "`restarts` must be [7] bool"),
        Refusal(4, torch.zeros(7), "`norms` must be [7] float64"),
        Refusal(5, torch.zeros(6), "`numel` must be [7] float32"),
        Refusal(6, torch.zeros(7), "`present` must be [7] bool"),
        Refusal(7, torch.zeros(1), "`weight_decay` must be [] float32"),
        Refusal(8, 1.0, "`spike_limit` must be > 1, got 1"),
        Refusal(9, 1.0, "`beta1` must be in [0, 1), got 1"),
        Refusal(12, -0.1, "`bias2` must be in [0, 1), got -0.1"),
        Refusal(13, 1.1, "`decay2` must be in [0, 1], got 1.1"),
        Refusal(14, -1.0, "`weight2` must be >= 0"),
        Refusal(15, -1.0, "`eps` must be >= 0"),
        Refusal(16, 6, "`decayed` must be 7, 8 or 9, got 6"),
        Refusal(18, "sgd", "`length` must be graft, gradient, rms or whitened"),
    ],
    {"guard_gradients": Kernel("scalars", 8, swept=True)},
    make=make,
    options=OPTIONS,
    run=run,
    written=("scalars", "coefficients", "active", "restarts"),
    rows=rows,
)
OPS = (GUARD_GRADIENTS,)
