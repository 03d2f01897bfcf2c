"""Steps of the optimizer on a backend, for a small model with blocks of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerances import TRAJECTORY
from torch import Tensor

import kradagrad_ext.step
from kradagrad_ext import KrADagrad
from kradagrad_ext.backends import reference

STEPS = 15
"""Number of steps. In more, this model amplifies differences: an error of 5e-5 in the roots, which bf16x3
leaves, becomes 2e-4 in 15 steps and 4e-3 in 20."""

FEW_STEPS = 9
"""Number of steps where each takes seconds; roots are recomputed twice."""

LR = {torch.float32: 1e-2, torch.bfloat16: 5e-4}
"""Learning rates by dtype. Larger ones in bfloat16 would measure rounding of the parameters, not kernels."""

DTYPES = pytest.mark.parametrize("dtype", LR)
RECIPES = pytest.mark.parametrize(
    "options",
    [{}, {"refine": 3, "momentum_on": "update", "nesterov": True}],
    ids=["default", "update"],
)


class Model(torch.nn.Module):
    """A model with matrices that fit a resident kernel, one that needs grouped products, and vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(20, 140)
        self.second = torch.nn.Linear(140, 33)
        self.last = torch.nn.Linear(33, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def train(
    monkeypatch: pytest.MonkeyPatch, backend: Any, dtype: torch.dtype, options: dict[str, Any], steps: int
) -> list[Tensor]:
    """Return the parameters after `steps` steps on the same data."""
    monkeypatch.setattr(kradagrad_ext.step, "resolve", lambda *_: backend)
    torch.manual_seed(1)
    model = Model().to(dtype)
    x, y = torch.randn(64, 20, dtype=dtype), torch.randn(64, 4, dtype=dtype)
    # Heavy-ball momentum of the update adds up to ten updates.
    lr = LR[dtype] * (0.1 if options.get("momentum_on") == "update" else 1)
    # Stochastic rounding hashes the bits of the update: where the last of them differs, so does the choice.
    defaults = dict(
        lr=lr, block_size=144, factor_update="products", root_every=4, root_method="polar", rounding="nearest"
    )
    optimizer = KrADagrad(model.parameters(), **(defaults | options))
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def check_equals_the_reference(
    monkeypatch: pytest.MonkeyPatch,
    backend: Any,
    dtype: torch.dtype,
    options: dict[str, Any],
    steps: int = STEPS,
) -> None:
    expected = train(monkeypatch, reference, dtype, options, steps)
    ours = train(monkeypatch, backend, dtype, options, steps)
    for p, q in zip(ours, expected, strict=True):
        difference = (p.double() - q.double()).norm() / q.double().norm()
        assert difference <= TRAJECTORY[dtype]
