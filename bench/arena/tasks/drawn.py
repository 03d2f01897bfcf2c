"""Drawn curves and figures: a deep autoencoder, a small vision transformer and a convolutional network."""

from __future__ import annotations

import itertools
from abc import abstractmethod

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.arena.tasks.base import VALIDATION_SEED, ArenaTask, Batch

SIDE = 28
"""Side of an image, in pixels."""

POINTS = 48
"""Number of points of a curve, each a soft dot."""

DOT = 0.8
"""Width of a dot, in pixels."""

VALIDATION_IMAGES = 256
"""Images of a validation batch."""


def draw(points: Tensor) -> Tensor:
    """Draw images ``[N, 28, 28]`` in [0, 1] of quadratic Bezier curves.

    Args:
        points: ``[N, curves, 3, 2]``, the control points of each curve, in [0, 1] across the image.
    """
    t = torch.linspace(0, 1, POINTS)[:, None]
    a, b, c = (SIDE * points[:, :, i, None] for i in range(3))
    dots = ((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c).flatten(1, 2)  # [N, curves * POINTS, 2]
    pixels = torch.arange(SIDE) + 0.5
    near = [torch.exp(-(((pixels - dots[..., i, None]) / DOT) ** 2) / 2) for i in range(2)]
    return torch.einsum("npx,npy->nxy", *near).clamp_max(1)


def cross_entropy_an_image(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of pixels ``[N, pixels]``, summed over an image, mean over images."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


class DrawnTask(ArenaTask):
    """A task with batches of drawn images."""

    batch_size: int

    def __init__(self, batches: int = 4) -> None:
        """Draw `batches` batches for validation."""
        generator = Generator().manual_seed(VALIDATION_SEED)
        self.validation = [self.draw_batch(VALIDATION_IMAGES, generator) for _ in range(batches)]

    @abstractmethod
    def draw_batch(self, count: int, generator: Generator | None) -> Batch:
        """Return images and targets."""

    def batch(self, generator: Generator | None) -> Batch:
        return self.draw_batch(self.batch_size, generator)


class Curves(DrawnTask):
    """An autoencoder 784-400-200-100-50-25-6 and back, of one curve an image; cross-entropy an image."""

    name, steps = "curves", 600
    batch_size = 256
    sizes = (SIDE * SIDE, 400, 200, 100, 50, 25, 6)
    ends = ("21.weight",)

    def draw_batch(self, count: int, generator: Generator | None) -> Batch:
        images = draw(0.1 + 0.8 * torch.rand(count, 1, 3, 2, generator=generator)).flatten(1)
        return images, images

    def make_model(self) -> nn.Module:
        sizes = (*self.sizes, *reversed(self.sizes[:-1]))
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(sizes):
            linear = nn.Linear(inner, outer)
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [linear] if outer in (self.sizes[0], self.sizes[-1]) else [linear, nn.Tanh()]
        return nn.Sequential(*layers)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        images, targets = batch
        return cross_entropy_an_image(model(images), targets)


class VisionTransformer(nn.Module):
    """A classifier of patches of 4 x 4 by the mean of their tokens: ``[B, 28, 28] -> [B, classes]``."""

    def __init__(self, width: int, heads: int, layers: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Linear(16, width)
        self.positions = nn.Parameter(0.02 * torch.randn(49, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unflatten(1, (7, 4)).unflatten(3, (7, 4)).permute(0, 1, 3, 2, 4).flatten(3)
        tokens = self.patches(patches.flatten(1, 2)) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class FigureTask(DrawnTask):
    """Classification of figures: a kind is three curves; an image shifts their points and adds noise."""

    batch_size = 128
    kinds, curves = 16, 3

    def __init__(self, batches: int = 2) -> None:
        generator = Generator().manual_seed(0)
        self.corners = 0.15 + 0.7 * torch.rand(self.kinds, self.curves, 3, 2, generator=generator)
        super().__init__(batches)

    def draw_batch(self, count: int, generator: Generator | None) -> Batch:
        kinds = torch.randint(self.kinds, (count,), generator=generator)
        shift = 0.1 * torch.randn(count, 1, 1, 2, generator=generator)
        corners = self.corners[kinds] + shift
        corners = corners + 0.08 * torch.randn(count, self.curves, 3, 2, generator=generator)
        return draw(corners) + 0.3 * torch.randn(count, SIDE, SIDE, generator=generator), kinds

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        images, kinds = batch
        return F.cross_entropy(model(images), kinds)


class Images(FigureTask):
    """A small vision transformer."""

    name, steps = "images", 200
    ends = ("patches.weight", "positions", "head.weight")

    def make_model(self) -> nn.Module:
        return VisionTransformer(96, 4, 3, self.kinds)


class ConvNet(nn.Module):
    """Four convolutions with group norms, then the mean over pixels: ``[B, 28, 28] -> [B, classes]``."""

    channels = (1, 32, 64, 96, 96)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(inner, outer, 3, stride=1 + (i > 0), padding=1),
                    nn.GroupNorm(8, outer),
                    nn.ReLU(),
                )
                for i, (inner, outer) in enumerate(itertools.pairwise(self.channels))
            )
        )
        self.head = nn.Linear(self.channels[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images[:, None]).mean((2, 3)))


class Convolutions(FigureTask):
    """A convolutional network."""

    name, steps = "convolutions", 200
    ends = ("0.0.weight", "head.weight")

    def make_model(self) -> nn.Module:
        return ConvNet(self.kinds)
