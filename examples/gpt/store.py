"""Where a run's checkpoints are kept: in one file, or by torch.distributed.checkpoint under torchrun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import checkpoint, sharded
from .ranks import Ranks
from .trainer import Trainer


class Store:
    """The checkpoints of the run in `folder`.

    Attributes:
        saved_step: the last checkpoint's; None if there is none of this run.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.saved_step: int | None = None

    def load(self) -> dict[str, Any]:
        """The last checkpoint, under torchrun without its tensors; waits for no other rank.

        Raises UsageError.
        """
        if self.ranks.launched:
            self._path, state = sharded.load(self.folder, self.ranks)
        else:
            self._path, state = self.folder / checkpoint.NAME, checkpoint.load(self.folder)
            checkpoint.require(state, ("options", *checkpoint.EVERYTHING), self._path)
        return state

    def restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        """Take over what `load` returned; on all ranks. Raises UsageError where it does not fit."""
        restore = sharded.restore if self.ranks.launched else checkpoint.restore
        restore(trainer, self._path, state)
        self.saved_step = trainer.step

    def save(self, trainer: Trainer) -> None:
        """Replace the last checkpoint, if there was a step since; on all ranks."""
        if trainer.step == self.saved_step:
            return
        if self.ranks.launched:
            sharded.save(trainer, self.folder)
        else:
            checkpoint.save(trainer.state_dict(), self.folder)
        self.saved_step = trainer.step
