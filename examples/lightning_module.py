"""Train a small classifier with Lightning: schedule, accumulation, checkpoints, bfloat16, several ranks.

Inputs are random, and their classes are those that another random network tells: nothing is downloaded. Needs
lightning and tensorboard, the extra ``integrations``.

    python examples/lightning_module.py --out runs/lightning
    python examples/lightning_module.py --out runs/lightning --resume
    python examples/lightning_module.py --out runs/two --ranks 2
    tensorboard --logdir runs/lightning

A run that was stopped goes on from its last checkpoint with ``--resume`` and the options that it had, bit for
bit. On several ranks, each one has the optimizer's state and work for a share of the blocks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, random_split

from kradagrad_ext import KrADagrad, Reading, param_groups

INPUTS, CLASSES, EXAMPLES = 64, 10, 8192
LAST = "checkpoints/last.ckpt"
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


class Data(lightning.LightningDataModule):
    """Correlated inputs, and their classes.

    The order of the training examples follows from seed and epoch alone, so that a resumed run goes on in it.
    """

    def __init__(self, batch: int, seed: int) -> None:
        super().__init__()
        self.batch, self.seed = batch, seed
        inputs = torch.randn(EXAMPLES, INPUTS) @ torch.randn(INPUTS, INPUTS) / INPUTS**0.5
        with torch.no_grad():
            told = nn.Sequential(nn.Linear(INPUTS, 32), nn.Tanh(), nn.Linear(32, CLASSES))(inputs)
        self.examples, self.held_out = random_split(TensorDataset(inputs, told.argmax(1)), [0.9, 0.1])

    def train_dataloader(self) -> DataLoader:
        ranks = {"num_replicas": self.trainer.world_size, "rank": self.trainer.global_rank}
        sampler = DistributedSampler(self.examples, **ranks, seed=self.seed, drop_last=True)
        return DataLoader(self.examples, self.batch, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out, len(self.held_out))


class Classifier(lightning.LightningModule):
    """A network of two layers."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Linear(INPUTS, 128), nn.ReLU(), nn.Linear(128, CLASSES))

    def configure_optimizers(self) -> dict[str, Any]:
        """Lightning asks for these when its ranks have met, so that there is a group to share the work in."""
        group = dist.group.WORLD if dist.is_initialized() else None
        groups = param_groups(self, show=print if self.global_rank == 0 else None)
        optimizer = KrADagrad(groups, lr=self.hparams.lr, weight_decay=0.01, process_group=group)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.hparams.lr,
            total_steps=self.trainer.estimated_stepping_batches,
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, targets = batch
        loss = cross_entropy(self.network(inputs), targets)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        inputs, targets = batch
        self.log("val_loss", cross_entropy(self.network(inputs), targets), prog_bar=True, sync_dist=True)


class Health(lightning.Callback):
    """Logs the optimizer's diagnostics beside the loss, without holding up a step.

    Whenever Lightning logs, the reading before is written if it has arrived, and another one is started. On
    several ranks it is that of the blocks of the first one.
    """

    def __init__(self) -> None:
        self._started = 0
        self._pending: Reading | None = None

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: ANN401
        step = trainer.global_step
        due = step % trainer.log_every_n_steps == 0 and step != self._started  # a step takes several batches
        if due and (self._pending is None or self._pending.ready()):
            self._write(trainer)
            self._started, self._pending = step, Reading(trainer.optimizers[0])

    def on_train_end(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: lightning.Trainer) -> None:
        if self._pending is not None and trainer.is_global_zero:
            trainer.logger.log_metrics(self._pending.metrics(), self._started)
        self._pending = None


def make_trainer(given: argparse.Namespace) -> lightning.Trainer:
    checkpoints = ModelCheckpoint((given.out / LAST).parent, save_last=True, save_on_train_epoch_end=True)
    return lightning.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=given.ranks,
        strategy="ddp" if given.ranks > 1 else "auto",
        precision=given.precision,
        max_epochs=given.epochs,
        accumulate_grad_batches=given.accumulate,
        log_every_n_steps=10,
        use_distributed_sampler=False,
        logger=TensorBoardLogger(given.out, name="", version=""),
        callbacks=[checkpoints, LearningRateMonitor("step"), Health()],
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256, help="examples of a step, on every rank")
    parser.add_argument("--accumulate", type=int, default=2, help="parts that a batch is worked off in")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16-mixed")
    parser.add_argument("--lr", type=float, default=1e-2, help="the largest learning rate")
    parser.add_argument("--ranks", type=int, default=1, help="processes, or GPUs where there are any")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/lightning"), help="of checkpoints and logs")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    given = parser.parse_args(arguments)
    for option in ("epochs", "batch", "accumulate", "ranks"):
        if getattr(given, option) < 1:
            parser.error(f"--{option}: must be at least 1, got {getattr(given, option)}")
    if given.batch % given.accumulate:
        parser.error(f"--accumulate: must divide --batch {given.batch}, got {given.accumulate}")
    saved = (given.out / LAST).exists()
    if given.resume and not saved:
        parser.error(f"--resume: {given.out} holds no checkpoint")
    if saved and not given.resume:
        parser.error(f"--out: {given.out} holds another run's checkpoint; use --resume, or remove it")
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    lightning.seed_everything(given.seed)
    data = Data(given.batch // given.accumulate, given.seed)
    model = Classifier(given.lr)
    trainer = make_trainer(given)
    trainer.fit(model, data, ckpt_path=str(given.out / LAST) if given.resume else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
