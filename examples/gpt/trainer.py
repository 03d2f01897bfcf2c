"""One training run: model, optimizers, schedule, data and progress."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

from .data import Batches, Text, validation_windows
from .errors import UsageError
from .model import GPT, next_byte_loss
from .optimizers import MAX_GRADIENT_NORM, build_optimizers
from .options import Options
from .ranks import Moment, Ranks, seconds

WARMUP_SHARE = 0.1
FINAL_LR_SHARE = 0.02
"""Warm-up's share of the steps, and the final share of the peak learning rate."""

COLUMNS = ("step", "seconds", "train_loss", "val_loss", "lr", "optimizer_seconds")
"""Columns of the log. Seconds are sums over the steps so far, without validation and checkpoints."""

Row = tuple[int, float, float, float | None, float, float]


def learning_rate_factor(
    steps: int, warmup_share: float = WARMUP_SHARE, final_share: float = FINAL_LR_SHARE
) -> Callable[[int], float]:
    """Return the factor of the peak rate: linear warm-up, then half a cosine down to `final_share`."""
    warmup = max(1, round(warmup_share * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return final_share + (1 - final_share) * (1 + math.cos(math.pi * progress)) / 2

    return factor


class Trainer:
    """State of a run; `state_dict` determines the rest of the run bit for bit.

    Every rank trains on its rows of the same batch, so the number of ranks changes only rounding.
    """

    def __init__(self, options: Options, text: Text, ranks: Ranks) -> None:
        """Build the run. Raise UsageError if the optimizer refuses its options."""
        self.options, self.digest, self.ranks = options, text.digest, ranks
        torch.manual_seed(options.seed)
        self.model = GPT(options.context, options.layers, options.width, options.heads)
        self.model.to(ranks.device, getattr(torch, options.dtype))
        if options.parallel == "fsdp":
            ranks.shard(self.model)
        replicated = options.parallel == "ddp"
        with ranks.together():
            self.optimizers = build_optimizers(
                options.optimizer,
                self.model,
                options.learning_rate,
                options.of_kradagrad,
                dist.group.WORLD if replicated else None,
            )
        self.network = self._replicate() if replicated else self.model
        factor = learning_rate_factor(options.steps)
        self.schedulers = [LambdaLR(optimizer, factor) for optimizer in self.optimizers]
        self.batches = Batches(text.train, options.batch, options.context, options.seed)
        self.validation = validation_windows(text.validation, options.context)
        self.log: list[Row] = []
        self._in_flight: list[tuple[Tensor, float, list[Moment]]] = []

    def _replicate(self) -> nn.Module:
        network = DistributedDataParallel(self.model)
        # The order of the first backward pass determines DDP's buckets, and with more than two ranks the
        # buckets determine rounding. After one pass, a resumed run has the same sums as an unbroken one.
        windows = torch.zeros(1, self.options.context + 1, dtype=torch.int64, device=self.ranks.device)
        next_byte_loss(network, windows).backward()
        self.model.zero_grad()
        return network

    @property
    def step(self) -> int:
        return len(self.log) + len(self._in_flight)

    def train_step(self) -> list[Row]:
        """Train on the next batch, validate if due, and return the new rows of the log.

        On a GPU, rows come several at a time.
        """
        lr = self.schedulers[0].get_last_lr()[0]
        moments = [self.ranks.moment()]
        loss = next_byte_loss(self.network, self.ranks.share(self.batches.next()))
        loss.backward()
        if self.options.optimizer in MAX_GRADIENT_NORM:
            clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM[self.options.optimizer])
        moments.append(self.ranks.moment())
        for optimizer in self.optimizers:
            optimizer.step()
        moments.append(self.ranks.moment())
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            optimizer.zero_grad()
            scheduler.step()
        if self.ranks.steps_in_flight == 1:
            loss = torch.tensor(loss.item(), dtype=loss.dtype)  # waits within the measured time
        self._in_flight.append((loss.detach(), lr, [*moments, self.ranks.moment()]))
        if self.step % self.options.eval_every == 0 or self.step == self.options.steps:
            return self.settle(validate=True)
        return self.settle() if len(self._in_flight) >= self.ranks.steps_in_flight else []

    def settle(self, validate: bool = False) -> list[Row]:
        """Wait for the steps in flight and return their rows; on all ranks, which sum up losses."""
        first = len(self.log)
        for loss, lr, (start, before, after, end) in self._in_flight:
            train_loss = self.ranks.sum(loss.item()) / self.ranks.world
            spent, by_optimizer = (self.log[-1][1], self.log[-1][5]) if self.log else (0.0, 0.0)
            spent, by_optimizer = spent + seconds(start, end), by_optimizer + seconds(before, after)
            self.log.append((len(self.log) + 1, spent, train_loss, None, lr, by_optimizer))
        self._in_flight.clear()
        if validate:
            step, spent, train_loss, _, lr, by_optimizer = self.log[-1]
            self.log[-1] = (step, spent, train_loss, self.validate(), lr, by_optimizer)
        return self.log[first:]

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean loss over the fixed validation windows, which the ranks share."""
        shares = [self.ranks.share(chunk) for chunk in self.validation.split(4 * self.options.batch)]
        return self.ranks.sum(sum(map(self._total_loss, shares))) / len(self.validation)

    def _total_loss(self, windows: Tensor) -> float:
        loss = next_byte_loss(self.network, windows)  # also without rows: other ranks wait for this one
        return loss.item() * len(windows) if len(windows) else 0.0

    def progress(self) -> dict[str, Any]:
        """Return all state except the tensors of model and optimizers, which may be shards."""
        return {
            "options": dataclasses.asdict(self.options) | {"lr": self.options.learning_rate},
            "text": self.digest,
            "log": self.log,
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "batches": self.batches.generator.get_state(),
        }

    def state_dict(self) -> dict[str, Any]:
        return self.progress() | {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    @property
    def loaders(self) -> dict[str, Callable[[Any], object]]:
        """Functions that restore each part of a state, except the options."""
        return {
            "text": self._check_text,
            "log": self._load_log,
            "schedulers": lambda saved: _load_all(self.schedulers, saved),
            "batches": self.batches.generator.set_state,
            "model": self.model.load_state_dict,
            "optimizers": self._load_optimizers,
        }

    def _check_text(self, digest: str) -> None:
        if digest != self.digest:
            raise UsageError("--resume: the text in --data is not the one that the run began with")

    def _load_log(self, log: Sequence[Row]) -> None:
        steps = [row[0] for row in log if len(row) == len(COLUMNS)]
        if steps != list(range(1, len(log) + 1)) or len(log) > self.options.steps:
            raise ValueError(f"it must have a row for each of at most {self.options.steps} steps")
        self.log = list(log)

    def _load_optimizers(self, saved: Sequence[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers, saved, strict=True):
            for current, group in zip(optimizer.param_groups, state["param_groups"], strict=True):
                # torch would accept the options of another optimizer.
                if unknown := sorted(group.keys() - current.keys()):
                    raise ValueError(f"{type(optimizer).__name__} has no option `{unknown[0]}`")
        _load_all(self.optimizers, saved)


def _load_all(objects: Sequence[Any], saved: Sequence[Any]) -> None:
    for one, state in zip(objects, saved, strict=True):
        one.load_state_dict(state)
