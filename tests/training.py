"""Parameters and gradients for tests that train a few steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from kradagrad_ext import KrADagrad

SMALL: dict[str, Any] = {"block_size": 8, "root_every": 3, "lr": 1e-2}


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_gradients(params: list[nn.Parameter], step: int, scale: float = 1.0) -> None:
    """Set gradients of a fixed sequence, with columns of different scales so that roots matter."""
    generator = torch.Generator().manual_seed(step)
    for p in params:
        gradient = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if p.ndim >= 2 and p.numel():
            gradient = gradient * torch.linspace(0.1, 3, p.shape[-1], dtype=torch.float64)
        p.grad = (gradient * scale).to(p.dtype)


def train(optimizer: KrADagrad, params: list[nn.Parameter], steps: range, scale: float = 1.0) -> None:
    for step in steps:
        set_gradients(params, step, scale)
        optimizer.step()


def relative_difference(ours: list[nn.Parameter], expected: list[nn.Parameter]) -> float:
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(ours, expected, strict=True)]
    gap = sum(float((a - b).square().sum()) for a, b in pairs)
    return math.sqrt(gap / sum(float(b.square().sum()) for _, b in pairs))


SHAPES = ((20, 12), (8, 8), (7,), (1,), (1, 1), (), (0, 3), (3, 4, 5), (30, 1), (2, 2, 3, 3))
