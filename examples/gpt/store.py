"""Storage of a run's checkpoints: one file, or torch.distributed.checkpoint under torchrun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import checkpoint, sharded
from .ranks import Ranks
from .trainer import Trainer


class Store:
    """The checkpoints of the run in `folder`.

    Attributes:
        saved_step: step of this run's last checkpoint; None before the first one.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.saved_step: int | None = None

    def load(self) -> dict[str, Any]:
        """Return the last checkpoint, under torchrun without its tensors; do not wait for other ranks.

        Raise UsageError if it is missing or damaged.
        """
        if self.ranks.launched:
            self._path, state = sharded.load(self.folder, self.ranks)
        else:
            self._path, state = self.folder / checkpoint.NAME, checkpoint.load(self.folder)
            checkpoint.require(state, ("options", *checkpoint.EVERYTHING), self._path)
        return state

    def restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        """Restore a state that `load` returned; on all ranks. Raise UsageError if it does not fit."""
        restore = sharded.restore if self.ranks.launched else checkpoint.restore
        restore(trainer, self._path, state)
        self.saved_step = trainer.step

    def save(self, trainer: Trainer) -> None:
        """Replace the last checkpoint, unless no step was taken since; on all ranks."""
        if trainer.step == self.saved_step:
            return
        if self.ranks.launched:
            sharded.save(trainer, self.folder)
        else:
            checkpoint.save(trainer.state_dict(), self.folder)
        self.saved_step = trainer.step
