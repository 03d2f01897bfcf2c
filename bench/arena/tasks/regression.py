"""An ill-conditioned regression by a two-layer linear network."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from bench.arena.tasks.base import ArenaTask, Batch, validation_batches

SIDE = 256
CONDITION = 1e4


class Regression(ArenaTask):
    """y = A S^-1/2 x for inputs x of covariance S with condition number 1e4; mean squared error.

    A is orthogonal: every direction of the inputs, however small, has the same share in y.
    """

    name, steps = "regression", 400
    batch_size = 1024

    def __init__(self) -> None:
        generator = Generator().manual_seed(0)
        turns = [torch.linalg.qr(torch.randn(SIDE, SIDE, generator=generator))[0] for _ in range(3)]
        deviations = torch.logspace(0, -0.5 * torch.tensor(CONDITION).log10().item(), SIDE)
        self.mix = turns[0] * deviations @ turns[1]  # x = z mix, with z of unit covariance
        self.turn = turns[1].T @ turns[2]
        self.unmix = turns[0]
        self.validation = validation_batches(self, 4)

    def make_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(SIDE, SIDE, bias=False), nn.Linear(SIDE, SIDE, bias=False))

    def batch(self, generator: Generator | None) -> Batch:
        z = torch.randn(self.batch_size, SIDE, generator=generator)
        return z @ self.mix, z @ self.unmix @ self.turn

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        return (model(x) - y).square().mean()
