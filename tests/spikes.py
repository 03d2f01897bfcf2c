"""A regression with one gradient of another size, compared with the same run without it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kradagrad_ext.step
from kradagrad_ext import KrADagrad, read_diagnostics

AT, AFTER = 30, 200
"""Step of the spike, and number of steps after it."""

SPIKE, TINY = {AT: 1e4}, {0: 1e-6}
"""Factors that multiply the gradients of single steps, by step."""

SHAPE = 24, 20
LR = 2e-2


def trained(sizes: dict[int, float], seed: int, **options: Any) -> tuple[float, KrADagrad]:
    """Return the loss at the end, and the optimizer.

    The curvature falls from 1 to 0.1 over the rows and over the columns, and gradients are noisy.
    """
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(SHAPE, generator=generator)
    curvature = torch.linspace(1, 0.1, SHAPE[0])[:, None] * torch.linspace(1, 0.1, SHAPE[1])
    w = nn.Parameter(torch.zeros(SHAPE))
    optimizer = KrADagrad([w], **({"lr": LR, "block_size": 16} | options))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, AT + AFTER)
    for step in range(AT + AFTER):
        noise = 0.3 * torch.randn(SHAPE, generator=generator)
        w.grad = ((w.detach() - target) * curvature + noise) * curvature * sizes.get(step, 1.0)
        optimizer.step()
        schedule.step()
    return float(((w.detach() - target) * curvature).square().sum()), optimizer


@functools.cache
def undisturbed(seed: int, options: tuple[tuple[str, Any], ...]) -> float:
    """Return the loss at the end of a run without a spike, on the reference backend."""
    return trained({}, seed, backend="reference", **dict(options))[0]


def check(sizes: dict[int, float], seed: int = 0, **options: Any) -> None:
    """Assert a loss at most 1.1 times the undisturbed one, positive definite factors, and no fallback."""
    loss, optimizer = trained(sizes, seed, **options)
    plain = {name: value for name, value in options.items() if name != "backend"}
    assert loss <= 1.1 * undisturbed(seed, tuple(sorted(plain.items())))
    (state,) = optimizer.state.values()
    factors = [value for name, value in state.items() if name.startswith("factor_") and "stats" not in name]
    assert factors
    for factor in factors:
        assert (torch.linalg.eigvalsh(_inverse_statistics(factor)) > 0).all()
    (row,) = read_diagnostics(optimizer)
    assert row["graft_fallbacks"] == row["factor_fallbacks"] == 0
    assert row["gradient_spikes"] == (1 if sizes is SPIKE else 2)


def _inverse_statistics(factor: Tensor) -> Tensor:
    f = factor.double()
    return f @ f.mT


def check_on(monkeypatch: pytest.MonkeyPatch, ops: Any, sizes: dict[int, float]) -> None:
    """Check ops that are no backend of the package, on CPU tensors, with the options that kernels serve."""
    undisturbed(0, KERNELS)
    monkeypatch.setattr(kradagrad_ext.step, "resolve", lambda *_: ops)
    check(sizes, **dict(KERNELS))


KERNELS = (("factor_update", "products"), ("root_method", "polar"))
