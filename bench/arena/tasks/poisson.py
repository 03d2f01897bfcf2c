"""A physics-informed network for Poisson's equation in float32."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Generator, Tensor, nn

from bench.arena.tasks.base import ArenaTask, Batch

WIDTH, LAYERS = 64, 3
INSIDE, EDGE = 1024, 256
"""Points of a batch inside the unit square and on its edge."""

EDGE_WEIGHT = 100.0
GRID = 64
"""Points on each side of the validation grid."""

MODES = ((1, 1, 1.0), (2, 3, 0.5), (4, 2, 0.3))
"""Numbers of half waves in both directions, and amplitudes, of the exact solution."""


def solution(points: Tensor) -> Tensor:
    """Return the exact u at ``[N, 2]``, a sum of products of sines that is zero on the edge."""
    waves = [a * (math.pi * torch.tensor([m, n]) * points).sin().prod(-1) for m, n, a in MODES]
    return torch.stack(waves).sum(0)


def source(points: Tensor) -> Tensor:
    """Return f = -(u_xx + u_yy)."""
    waves = [
        a * math.pi**2 * (m**2 + n**2) * (math.pi * torch.tensor([m, n]) * points).sin().prod(-1)
        for m, n, a in MODES
    ]
    return torch.stack(waves).sum(0)


def laplacian(model: nn.Module, points: Tensor) -> Tensor:
    points = points.requires_grad_()
    (slope,) = torch.autograd.grad(model(points).sum(), points, create_graph=True)
    curvatures = [torch.autograd.grad(slope[:, i].sum(), points, create_graph=True)[0][:, i] for i in (0, 1)]
    return curvatures[0] + curvatures[1]


class Poisson(ArenaTask):
    """-(u_xx + u_yy) = f on the unit square, u = 0 on its edge.

    Trained on the residual of the equation, relative to f, and the edge; validated by the relative error
    |u - exact| / |exact| on a grid.
    """

    name, steps = "poisson", 2000
    ends = ("6.weight",)

    def __init__(self) -> None:
        side = torch.linspace(0, 1, GRID)
        points = torch.cartesian_prod(side, side)
        self.validation = [(points, solution(points))]
        self.scale = source(points).square().mean()

    def make_model(self) -> nn.Module:
        sizes = [2, *[WIDTH] * LAYERS, 1]
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(sizes):
            linear = nn.Linear(inner, outer)
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    def batch(self, generator: Generator | None) -> Batch:
        inside = torch.rand(INSIDE, 2, generator=generator)
        edge = torch.rand(EDGE, 2, generator=generator)
        row, quarter = torch.arange(EDGE), torch.arange(EDGE) % 4
        edge[row, quarter // 2] = (quarter % 2).float()
        return inside, edge

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inside, edge = batch
        residual = laplacian(model, inside) + source(inside)
        return residual.square().mean() / self.scale + EDGE_WEIGHT * model(edge).square().mean()

    @torch.no_grad()
    def validate(self, model: nn.Module) -> float:
        ((points, exact),) = self.validation
        return float((model(points)[:, 0] - exact).norm() / exact.norm())
