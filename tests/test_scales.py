"""Blocks of one parameter whose gradients are of unlike size: each learns as it would alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kradagrad_ext import KrADagrad

STEPS, LR = 100, 0.1
Gradient = Callable[[Tensor, int], Tensor]


def trained(start: Tensor, gradient: Gradient, **options: Any) -> Tensor:
    p = nn.Parameter(start.clone())
    optimizer = KrADagrad([p], lr=LR, coupling="kl", **options)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for step in range(STEPS):
        p.grad = gradient(p.detach(), step)
        optimizer.step()
        schedule.step()
    return p.detach()


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_within(together: Tensor, alone: Tensor, factor: float = 3.0) -> None:
    assert (together < factor * alone).all(), (together, alone)


@pytest.mark.parametrize("options", [{}, {"split": 2}], ids=str)
def test_halves_whose_losses_differ_by_100(options: dict[str, Any], backend: str) -> None:
    """Two blocks of 64 x 32, the second one's loss times 1/100."""
    target, x = random(128, 32, seed=0), random(256, 32, seed=1) * torch.linspace(1, 0.1, 32)
    weights = torch.tensor([1.0, 0.01]).repeat_interleave(64)[:, None]

    def error(rows: slice, **options: Any) -> Tensor:
        def gradient(w: Tensor, step: int) -> Tensor:
            return weights[rows] * (w - target[rows]) @ x.mT @ x / 256

        w = trained(torch.zeros_like(target[rows]), gradient, block_size=64, backend=backend, **options)
        return ((w - target[rows]) @ x.mT).square().reshape(-1, 64 * 256).mean(1)

    alone = torch.cat([error(slice(0, 64)), error(slice(64, 128))])
    assert_within(error(slice(0, 128), **options), alone)


def test_experts_that_get_unlike_shares_of_the_tokens(backend: str) -> None:
    """They get 40, 30, 20 and 10 percent of 400 tokens."""
    tokens = (160, 120, 80, 40)
    target = random(4, 24, 32, seed=2)

    def gradient_of(expert: int, w: Tensor, step: int) -> Tensor:
        x = random(tokens[expert], 32, seed=4 * step + expert)
        return (w - target[expert]) @ x.mT @ x / 400

    def together(w: Tensor, step: int) -> Tensor:
        return torch.stack([gradient_of(expert, w[expert], step) for expert in range(4)])

    w = trained(torch.zeros_like(target), together, batch_dims=1, backend=backend)
    alone = [
        trained(
            torch.zeros(24, 32), lambda w, step, expert=expert: gradient_of(expert, w, step), backend=backend
        )
        for expert in range(4)
    ]
    errors = (w - target).square().mean((1, 2))
    assert_within(errors, (torch.stack(alone) - target).square().mean((1, 2)))
