"""The arena's tasks with torch's generators as the figures in docs/tuning.md need them.

- ``text``: the example's byte-level transformer on the Python standard library's sources; nats a byte.
- ``curves``: a deep autoencoder of curves of 28 x 28 pixels, 784-400-200-100-50-25-6 and back; cross-entropy
  an image, in nats.
- ``images``: a small vision transformer that classifies sixteen kinds of drawn figures; nats.

`bench.arena.tasks` defines them. Here one generator, torch's global one, makes initial weights and images;
the arena has one for each.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from bench.arena.tasks.base import ArenaTask, trainable
from bench.arena.tasks.drawn import Curves, Images
from bench.arena.tasks.text import CodeText

Parameters = list[nn.Parameter]


class TrainingTask:
    """A model, its data and its loss, for one seed.

    Attributes:
        steps: default number of steps of a run.
        precondition_ends: default for the preconditioning of embeddings and output layers.
    """

    steps: int
    precondition_ends = True
    kind: type[ArenaTask]
    generator: Generator | None = None

    def __init__(self, seed: int) -> None:
        self._task = self.make_task()
        torch.manual_seed(seed)
        self.model = self._task.make_model()

    def make_task(self) -> ArenaTask:
        return self.kind()

    def parameters(self) -> tuple[Parameters, Parameters, Parameters]:
        """Return inner matrices; embeddings and output layers; vectors."""
        named = trainable(self.model)
        ends = [p for end in self._task.ends for name, p in named if name.endswith(end)]
        matrices = [p for name, p in named if p.dim() > 1 and not name.endswith(self._task.ends)]
        return matrices, ends, [p for _, p in named if p.dim() < 2]

    def loss(self) -> Tensor:
        """Return the loss on the next batch."""
        return self._task.loss(self.model, self._task.batch(self.generator))

    def validate(self) -> float:
        """Return the mean loss on the fixed validation data."""
        return self._task.validate(self.model)


class TextTask(TrainingTask):
    """The task ``text``, with 16 windows of 128 bytes a step."""

    steps, precondition_ends, kind = 300, False, CodeText

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.generator = Generator().manual_seed(seed)

    def make_task(self) -> ArenaTask:
        return CodeText(stride=1)


class CurvesTask(TrainingTask):
    """The task ``curves``, with one curve an image."""

    steps, kind = 400, Curves


class ImagesTask(TrainingTask):
    """The task ``images``: a kind is three curves; an image shifts their control points and adds noise."""

    steps, kind = 200, Images

    def make_task(self) -> ArenaTask:
        return Images(batches=4)


TASKS: dict[str, type[TrainingTask]] = {"text": TextTask, "curves": CurvesTask, "images": ImagesTask}
