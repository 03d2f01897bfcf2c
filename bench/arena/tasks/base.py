"""A training task: model, data and losses, each fixed by a seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

Batch = tuple[Tensor, ...]

FIRST_BATCH_SEED = 1000
"""Batches of seed s come from the generator of this seed + s, so that no batch equals validation data."""

VALIDATION_SEED = 1


class ArenaTask(ABC):
    """One task. Its validation data is the same for every seed.

    Attributes:
        name, steps: its name, and the steps of a run.
        ends: last parts of the names of embeddings' and output layers' weights, which Muon leaves to AdamW.
        validation: batches for `validate`.
    """

    name: ClassVar[str]
    steps: ClassVar[int]
    ends: ClassVar[tuple[str, ...]] = ()
    validation: list[Batch]

    @abstractmethod
    def make_model(self) -> nn.Module:
        """Return a model with initial weights from torch's global generator."""

    @abstractmethod
    def batch(self, generator: Generator | None) -> Batch:
        """Return the generator's next batch; None for torch's global generator."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss on a batch."""

    @classmethod  # noqa: B027  (most tasks read no file)
    def prepare(cls, folder: Path) -> None:
        """Make the files that the task reads in `folder`, if it has any and they are missing."""

    def model(self, seed: int) -> nn.Module:
        """Return the model with the initial weights of a seed; torch's global generator stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make_model()

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield the batches of a seed without end."""
        generator = Generator().manual_seed(FIRST_BATCH_SEED + seed)
        while True:
            yield self.batch(generator)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> float:
        """Return the mean loss on the validation data."""
        total = sum(float(self.loss(model, batch)) * len(batch[0]) for batch in self.validation)
        return total / sum(len(batch[0]) for batch in self.validation)


def validation_batches(task: ArenaTask, count: int) -> list[Batch]:
    """Return `count` validation batches of a task whose data is generated."""
    generator = Generator().manual_seed(VALIDATION_SEED)
    return [task.batch(generator) for _ in range(count)]


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
