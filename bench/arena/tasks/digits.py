"""A denoising autoencoder of scikit-learn's handwritten digits."""

from __future__ import annotations

import itertools

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.arena.tasks.base import VALIDATION_SEED, ArenaTask, Batch

SIDE = 8
NOISE = 0.2
HELD_OUT = 5
"""One of so many digits is for validation."""


class Digits(ArenaTask):
    """64-512-256-128-16 and back: 8 x 8 digits from noisy, shifted ones; cross-entropy an image.

    Noise and shifts are new in every batch, so that a fast optimizer gains and does not overfit.
    """

    name, steps = "digits", 1000
    batch_size = 512
    sizes = (SIDE * SIDE, 512, 256, 128, 16)
    ends = ("14.weight",)

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        images = torch.from_numpy(load_digits().images).float() / 16
        held_out = torch.arange(len(images)) % HELD_OUT == 0
        self.images = images[~held_out]
        self.validation = [self._noisy(images[held_out], Generator().manual_seed(VALIDATION_SEED))]

    @staticmethod
    def _noisy(images: Tensor, generator: Generator | None) -> Batch:
        """Return noisy images and targets ``[N, 64]``, both shifted by up to one pixel."""
        padded = F.pad(images, (1, 1, 1, 1))
        shifts = torch.randint(3, (2, len(images), 1), generator=generator)
        rows, columns = torch.arange(SIDE) + shifts[0], torch.arange(SIDE) + shifts[1]
        shifted = padded[torch.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
        targets = shifted.flatten(1)
        return targets + NOISE * torch.randn(targets.shape, generator=generator), targets

    def make_model(self) -> nn.Module:
        sizes = (*self.sizes, *reversed(self.sizes[:-1]))
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(sizes):
            layers += [nn.Linear(inner, outer), nn.GELU()]
        return nn.Sequential(*layers[:-1])

    def batch(self, generator: Generator | None) -> Batch:
        chosen = torch.randint(len(self.images), (self.batch_size,), generator=generator)
        return self._noisy(self.images[chosen], generator)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        noisy, targets = batch
        cross_entropy = F.binary_cross_entropy_with_logits(model(noisy), targets, reduction="sum")
        return cross_entropy / len(targets)
