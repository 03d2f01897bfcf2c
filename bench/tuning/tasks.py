"""Training tasks for the comparison of options: text, drawn curves and images, without any download.

- ``text``: the example's byte-level transformer on the Python standard library's sources; nats a byte.
- ``curves``: a deep autoencoder of curves of 28 x 28 pixels, 784-400-200-100-50-25-6 and back; cross-entropy
  an image, in nats.
- ``images``: a small vision transformer that classifies sixteen kinds of drawn figures; nats.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol

import torch
from gpt.data import Batches, load_text, validation_windows
from gpt.model import GPT, next_byte_loss
from gpt.optimizers import split_parameters
from gpt.options import Options
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 28
"""Side of an image, in pixels."""

POINTS = 48
"""Number of points of a curve, each a soft dot."""

DOT = 0.8
"""Width of a dot, in pixels."""

Parameters = list[nn.Parameter]


class TrainingTask(Protocol):
    """A model, its data and its loss, for one seed.

    Attributes:
        steps: default number of steps of a run.
        precondition_ends: default for the preconditioning of embeddings and output layers.
    """

    steps: int
    precondition_ends: bool
    model: nn.Module

    def parameters(self) -> tuple[Parameters, Parameters, Parameters]:
        """Return inner matrices; embeddings and output layers; vectors."""

    def loss(self) -> Tensor:
        """Return the loss on the next batch."""

    def validate(self) -> float:
        """Return the mean loss on the fixed validation data."""


class TextTask:
    """The task ``text``, with 16 windows of 128 bytes a step."""

    steps, precondition_ends = 300, False

    def __init__(self, seed: int) -> None:
        options = Options(out="", optimizer="adamw", steps=self.steps, seed=seed)
        text = load_text(options.data, options.context)
        torch.manual_seed(seed)
        self.model = GPT(options.context, options.layers, options.width, options.heads)
        self._batches = Batches(text.train, options.batch, options.context, seed)
        self._validation = validation_windows(text.validation, options.context).split(4 * options.batch)

    def parameters(self) -> tuple[Parameters, Parameters, Parameters]:
        return split_parameters(self.model)

    def loss(self) -> Tensor:
        return next_byte_loss(self.model, self._batches.next())

    @torch.no_grad()
    def validate(self) -> float:
        total = sum(float(next_byte_loss(self.model, chunk)) * len(chunk) for chunk in self._validation)
        return total / sum(map(len, self._validation))


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


class _Images:
    """A task with batches of drawn images."""

    steps: int
    precondition_ends = True
    batch: int
    model: nn.Module

    def __init__(
        self,
        make: Callable[[int], tuple[Tensor, Tensor]],
        measure: Callable[[Tensor, Tensor], Tensor],
        seed: int,
    ) -> None:
        """Set the source of images and targets (`make(count)`) and the loss (`measure(outputs, targets)`)."""
        self._make, self._measure = make, measure
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self._validation = [make(256) for _ in range(4)]
        torch.manual_seed(seed)

    def _loss_on(self, images: Tensor, targets: Tensor) -> Tensor:
        return self._measure(self.model(images), targets)

    def loss(self) -> Tensor:
        return self._loss_on(*self._make(self.batch))

    @torch.no_grad()
    def validate(self) -> float:
        return sum(float(self._loss_on(*chunk)) for chunk in self._validation) / len(self._validation)


class Curves(_Images):
    """The task ``curves``, with one curve an image."""

    steps, batch = 400, 256
    sizes = (SIDE * SIDE, 400, 200, 100, 50, 25, 6)

    def __init__(self, seed: int) -> None:
        super().__init__(self._curves, cross_entropy_an_image, seed)
        sizes = (*self.sizes, *reversed(self.sizes[:-1]))
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(sizes):
            linear = nn.Linear(inner, outer)
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [linear] if outer in (self.sizes[0], self.sizes[-1]) else [linear, nn.Tanh()]
        self.model = nn.Sequential(*layers)

    @staticmethod
    def _curves(count: int) -> tuple[Tensor, Tensor]:
        images = draw(0.1 + 0.8 * torch.rand(count, 1, 3, 2)).flatten(1)
        return images, images

    def parameters(self) -> tuple[Parameters, Parameters, Parameters]:
        matrices = [p for p in self.model.parameters() if p.dim() == 2]
        return matrices[:-1], matrices[-1:], [p for p in self.model.parameters() if p.dim() < 2]


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


class Images(_Images):
    """The task ``images``: a kind is three curves; an image shifts their control points and adds noise."""

    steps, batch = 200, 128
    kinds, curves = 16, 3

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._corners = 0.15 + 0.7 * torch.rand(self.kinds, self.curves, 3, 2, generator=generator)
        super().__init__(self._figures, F.cross_entropy, seed)
        self.model = VisionTransformer(96, 4, 3, self.kinds)

    def _figures(self, count: int) -> tuple[Tensor, Tensor]:
        kinds = torch.randint(self.kinds, (count,))
        shift = 0.1 * torch.randn(count, 1, 1, 2)
        corners = self._corners[kinds] + shift + 0.08 * torch.randn(count, self.curves, 3, 2)
        return draw(corners) + 0.3 * torch.randn(count, SIDE, SIDE), kinds

    def parameters(self) -> tuple[Parameters, Parameters, Parameters]:
        model = self.model
        assert isinstance(model, VisionTransformer)
        matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
        ends = [model.patches.weight, model.positions, model.head.weight]
        return matrices, ends, [p for p in model.parameters() if p.dim() < 2]


TASKS: dict[str, type[TextTask | Curves | Images]] = {"text": TextTask, "curves": Curves, "images": Images}
