"""Train a small classifier with Lightning: schedule, accumulation, checkpoints, bfloat16, several ranks.

Inputs are random, and another random network determines their classes. Nothing is downloaded. The extra
``integrations`` installs lightning and tensorboard.

    python examples/lightning_module.py --out runs/lightning
    python examples/lightning_module.py --out runs/lightning --resume
    python examples/lightning_module.py --out runs/two --ranks 2
    tensorboard --logdir runs/lightning

With ``--resume`` and the same options, a stopped run continues from its last checkpoint bit for bit. On
several ranks, each rank has the optimizer's state and work of a share of the blocks.
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

from kradagrad_ext import AsyncDiagnostics, KrADagrad, param_groups

INPUTS, CLASSES, EXAMPLES = 64, 10, 8192
LAST = "checkpoints/last.ckpt"
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


class Data(lightning.LightningDataModule):
    """Correlated inputs and their classes.

    The order of the training examples depends only on seed and epoch, so that a resumed run continues in it.
    """

    def __init__(self, batch: int, seed: int) -> None:
        super().__init__()
        self.batch, self.seed = batch, seed
        inputs = torch.randn(EXAMPLES, INPUTS) @ torch.randn(INPUTS, INPUTS) / INPUTS**0.5
        with torch.no_grad():
            scores = nn.Sequential(nn.Linear(INPUTS, 32), nn.Tanh(), nn.Linear(32, CLASSES))(inputs)
        self.examples, self.held_out = random_split(TensorDataset(inputs, scores.argmax(1)), [0.9, 0.1])

    def train_dataloader(self) -> DataLoader:
        ranks = {"num_replicas": self.trainer.world_size, "rank": self.trainer.global_rank}
        sampler = DistributedSampler(self.examples, **ranks, seed=self.seed, drop_last=True)
        return DataLoader(self.examples, self.batch, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out, len(self.held_out))


class Classifier(lightning.LightningModule):
    """A classifier with two layers."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Linear(INPUTS, 128), nn.ReLU(), nn.Linear(128, CLASSES))

    def configure_optimizers(self) -> dict[str, Any]:
        """Make optimizer and schedule. Lightning calls this with the process group of its ranks started."""
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
    """A callback that logs the optimizer's diagnostics with the loss, without delaying a step.

    Whenever Lightning logs, the callback writes the last reading if it has arrived, and starts the next. On
    several ranks, the reading is that of the first rank's blocks.
    """

    def __init__(self) -> None:
        self._started = 0
        self._pending: AsyncDiagnostics | None = None

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: ANN401
        step = trainer.global_step
        due = step % trainer.log_every_n_steps == 0 and step != self._started  # a step takes several batches
        if due and (self._pending is None or self._pending.ready()):
            self._write(trainer)
            self._started, self._pending = step, AsyncDiagnostics(trainer.optimizers[0])

    def on_train_end(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: lightning.Trainer) -> None:
        if self._pending is not None and trainer.is_global_zero:
            trainer.logger.log_metrics(self._pending.metrics(), self._started)
        self._pending = None


def make_trainer(options: argparse.Namespace) -> lightning.Trainer:
    checkpoints = ModelCheckpoint((options.out / LAST).parent, save_last=True, save_on_train_epoch_end=True)
    return lightning.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=options.ranks,
        strategy="ddp" if options.ranks > 1 else "auto",
        precision=options.precision,
        max_epochs=options.epochs,
        accumulate_grad_batches=options.accumulate,
        log_every_n_steps=10,
        use_distributed_sampler=False,
        logger=TensorBoardLogger(options.out, name="", version=""),
        callbacks=[checkpoints, LearningRateMonitor("step"), Health()],
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256, help="examples per step on every rank")
    parser.add_argument(
        "--accumulate", type=int, default=2, help="parts of a batch, with accumulated gradients"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16-mixed")
    parser.add_argument("--lr", type=float, default=1e-2, help="peak learning rate")
    parser.add_argument(
        "--ranks", type=int, default=1, help="number of processes, or of GPUs if there are any"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/lightning"), help="folder of checkpoints and logs"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --out")
    options = parser.parse_args(arguments)
    for option in ("epochs", "batch", "accumulate", "ranks"):
        if getattr(options, option) < 1:
            parser.error(f"--{option}: must be at least 1, got {getattr(options, option)}")
    if options.batch % options.accumulate:
        parser.error(f"--accumulate: must divide --batch {options.batch}, got {options.accumulate}")
    saved = (options.out / LAST).exists()
    if options.resume and not saved:
        parser.error(f"--resume: {options.out} holds no checkpoint")
    if saved and not options.resume:
        parser.error(f"--out: {options.out} holds another run's checkpoint; use --resume, or remove it")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    lightning.seed_everything(options.seed)
    data = Data(options.batch // options.accumulate, options.seed)
    model = Classifier(options.lr)
    trainer = make_trainer(options)
    trainer.fit(model, data, ckpt_path=str(options.out / LAST) if options.resume else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
