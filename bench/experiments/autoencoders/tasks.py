"""The paper's three autoencoders on data that every machine has: nothing is downloaded."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from functools import cache

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.arena.tasks.base import FIRST_BATCH_SEED, VALIDATION_SEED, ArenaTask, Batch
from bench.arena.tasks.drawn import SIDE, draw
from bench.experiments.autoencoders.faces import random_faces

BATCH = 100
TRAINING_IMAGES = 20_000

STATISTICS_SEED = 2
"""Seed of the faces that determine the mean face and the scale."""


def mirrored_network(sizes: tuple[int, ...]) -> nn.Sequential:
    """Return linear layers of these sizes and back, with ReLU between all but the code and its neighbours.

    There is no activation after the code, the middle layer, nor after the last one.
    """
    widths = (*sizes, *reversed(sizes[:-1]))
    layers: list[nn.Module] = []
    for i, (inner, outer) in enumerate(itertools.pairwise(widths), start=1):
        linear = nn.Linear(inner, outer)
        layers += [linear] if i in (len(sizes) - 1, len(widths) - 1) else [linear, nn.ReLU()]
    return nn.Sequential(*layers)


class Autoencoder(ArenaTask):
    """An autoencoder of a fixed set of images, with another set for validation.

    Attributes:
        sizes: of its layers, from the image to the code.
        block_size: of the preconditioners beside ours.
        training: images ``[N, pixels]``, from which batches are drawn with replacement.
        validation_images: the number of images of the validation data.
    """

    sizes: tuple[int, ...]
    block_size: int
    training: Tensor
    validation_images: int

    def __init__(self, training_images: int = TRAINING_IMAGES) -> None:
        self.training = self.images(training_images, Generator().manual_seed(FIRST_BATCH_SEED))
        generator = Generator().manual_seed(VALIDATION_SEED)
        self.validation = [(self.images(self.validation_images, generator),)]

    @abstractmethod
    def images(self, count: int, generator: Generator | None) -> Tensor:
        """Return the generator's next images ``[count, pixels]``, float32."""

    @abstractmethod
    def reconstruction_loss(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Return the mean loss of a batch."""

    def make_model(self) -> nn.Module:
        return mirrored_network(self.sizes)

    def batch(self, generator: Generator | None) -> Batch:
        return (self.training[torch.randint(len(self.training), (BATCH,), generator=generator)],)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss on a batch, in the dtype of the model."""
        images = batch[0].to(next(model.parameters()).dtype)
        return self.reconstruction_loss(model(images), images)


class PixelAutoencoder(Autoencoder):
    """Images in [0, 1]; the loss is the softmax cross-entropy over all pixels, as in the authors' code::

    -sum_i x_i log softmax(outputs)_i
    """

    def reconstruction_loss(self, outputs: Tensor, images: Tensor) -> Tensor:
        return F.cross_entropy(outputs, images)


class PlacedDigits(PixelAutoencoder):
    """Scikit-learn's digits in the place of MNIST: 8 x 8 enlarged to about 20 x 20 in 28 x 28.

    Each is turned by up to 15 degrees, enlarged by 0.85 to 1.15 and moved by up to two pixels. One of five
    digits is for validation; every image is of another digit or has another place.
    """

    name, steps = "digits", 600
    sizes = (SIDE * SIDE, 1000, 500, 250, 30)
    block_size = 125
    validation_images = 720
    held_out = 5
    angle, zoom, shift = math.pi / 12, 0.15, 2.0

    def __init__(self, training_images: int = TRAINING_IMAGES) -> None:
        from sklearn.datasets import load_digits

        digits = torch.from_numpy(load_digits().images).float()[:, None] / 16
        validated = torch.arange(len(digits)) % self.held_out == 0
        self.digits = digits[~validated]
        super().__init__(training_images)
        self.digits = digits[validated]
        self.validation = [(self.images(self.validation_images, Generator().manual_seed(VALIDATION_SEED)),)]

    def images(self, count: int, generator: Generator | None) -> Tensor:
        digits = self.digits[torch.randint(len(self.digits), (count,), generator=generator)]
        spread = 2 * torch.rand(4, count, generator=generator) - 1
        angle, zoom = self.angle * spread[0], (SIDE / 20) / (1 + self.zoom * spread[1])
        rows = [
            torch.stack([zoom * angle.cos(), -zoom * angle.sin(), self.shift / 10 * spread[2]], 1),
            torch.stack([zoom * angle.sin(), zoom * angle.cos(), self.shift / 10 * spread[3]], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), [count, 1, SIDE, SIDE], align_corners=False)
        placed = F.grid_sample(digits, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
        return placed.clamp(0, 1).flatten(1)


class ThreePointCurves(PixelAutoencoder):
    """Curves in the place of CURVES: each image is a curve through space from three random points."""

    name, steps = "curves", 2000
    sizes = (SIDE * SIDE, 400, 200, 100, 50, 25, 6)
    block_size = 100
    validation_images = 1000

    def images(self, count: int, generator: Generator | None) -> Tensor:
        return draw(0.1 + 0.8 * torch.rand(count, 1, 3, 2, generator=generator)).flatten(1)


class DrawnFaces(Autoencoder):
    """Drawn faces in the place of FACES; every pixel has mean 0, and their mean variance is 1.

    The loss is the mean squared error of a pixel, so that of the best constant image is 1.
    """

    name, steps = "faces", 300
    sizes = (625, 2000, 1000, 500, 30)
    block_size = 125
    validation_images = 500
    sample = 4000

    def __init__(self, training_images: int = TRAINING_IMAGES) -> None:
        sample = random_faces(self.sample, Generator().manual_seed(STATISTICS_SEED)).flatten(1)
        self.mean = sample.mean(0)
        self.scale = (sample - self.mean).square().mean().sqrt()
        super().__init__(training_images)

    def images(self, count: int, generator: Generator | None) -> Tensor:
        return (random_faces(count, generator).flatten(1) - self.mean) / self.scale

    def reconstruction_loss(self, outputs: Tensor, images: Tensor) -> Tensor:
        return F.mse_loss(outputs, images)


AUTOENCODERS: dict[str, type[Autoencoder]] = {
    task.name: task for task in (PlacedDigits, ThreePointCurves, DrawnFaces)
}


@cache
def autoencoder_of(name: str) -> Autoencoder:
    """Return the autoencoder of a name; a process makes each once."""
    return AUTOENCODERS[name]()
