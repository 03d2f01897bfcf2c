"""The adding problem, for a recurrent network."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from bench.arena.tasks.base import ArenaTask, Batch, validation_batches

LENGTH = 40
HIDDEN = 128


class SumReader(nn.Module):
    """A GRU that reads ``[B, length, 2]`` and returns a number for each sequence, ``[B]``."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.head(self.gru(numbers)[0][:, -1])[:, 0]


class Adding(ArenaTask):
    """The sum of two marked numbers of a sequence (Hochreiter and Schmidhuber); mean squared error.

    The answer 1 for every sequence has a loss of 1/6.
    """

    name, steps = "adding", 1000
    batch_size = 64
    ends = ("weight_ih_l0", "head.weight")

    def __init__(self) -> None:
        self.validation = validation_batches(self, 8)

    def make_model(self) -> nn.Module:
        return SumReader()

    def batch(self, generator: Generator | None) -> Batch:
        numbers = torch.rand(self.batch_size, LENGTH, generator=generator)
        half = LENGTH // 2
        marks = torch.randint(half, (self.batch_size, 2), generator=generator) + torch.tensor([0, half])
        marked = torch.zeros_like(numbers).scatter_(1, marks, 1.0)
        return torch.stack([numbers, marked], -1), (numbers * marked).sum(1)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        numbers, sums = batch
        return (model(numbers) - sums).square().mean()
