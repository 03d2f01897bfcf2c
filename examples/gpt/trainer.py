"""One training run: model, optimizers, schedule and data, and how far it has come."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

from .data import Batches, Text, validation_windows
from .errors import UsageError
from .model import GPT
from .optimizers import MAX_GRADIENT_NORM, build_optimizers
from .options import Options

WARMUP_SHARE = 0.1
FINAL_LR_SHARE = 0.02
"""Warm-up's share of the steps, and what is left of the peak learning rate at the end."""

COLUMNS = ("step", "seconds", "train_loss", "val_loss", "lr", "optimizer_seconds")
"""Of a log row. Seconds are summed over the steps so far; validation and checkpoints do not count."""

Row = tuple[int, float, float, float | None, float, float]


def learning_rate_factor(steps: int) -> Callable[[int], float]:
    """Linear warm-up, then half a cosine down to `FINAL_LR_SHARE`, as a factor of the peak rate."""
    warmup = max(1, round(WARMUP_SHARE * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * (1 + math.cos(math.pi * progress)) / 2

    return factor


class Trainer:
    """State of a run; everything that `state_dict` holds decides what comes next, bit for bit."""

    def __init__(self, options: Options, text: Text) -> None:
        """Raises UsageError where the optimizer refuses its options."""
        self.options, self.digest = options, text.digest
        torch.manual_seed(options.seed)
        self.model = GPT(options.context, options.layers, options.width, options.heads)
        self.optimizers = build_optimizers(
            options.optimizer, self.model, options.learning_rate, options.block_size, options.backend
        )
        factor = learning_rate_factor(options.steps)
        self.schedulers = [LambdaLR(optimizer, factor) for optimizer in self.optimizers]
        self.batches = Batches(text.train, options.batch, options.context, options.seed)
        self.validation = validation_windows(text.validation, options.context)
        self.log: list[Row] = []

    @property
    def step(self) -> int:
        return len(self.log)

    def train_step(self) -> Row:
        """Learn from the next batch and validate if due; the new row of the log."""
        lr = self.schedulers[0].get_last_lr()[0]
        start = time.perf_counter()
        loss = self.model.loss(self.batches.next())
        loss.backward()
        if self.options.optimizer in MAX_GRADIENT_NORM:
            clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM[self.options.optimizer])
        before = time.perf_counter()
        for optimizer in self.optimizers:
            optimizer.step()
        after = time.perf_counter()
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            optimizer.zero_grad()
            scheduler.step()
        train_loss = loss.item()
        seconds, optimizer_seconds = (self.log[-1][1], self.log[-1][5]) if self.log else (0.0, 0.0)
        seconds += time.perf_counter() - start
        step = self.step + 1
        due = step % self.options.eval_every == 0 or step == self.options.steps
        val_loss = self.validate() if due else None
        self.log.append((step, seconds, train_loss, val_loss, lr, optimizer_seconds + after - before))
        return self.log[-1]

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the fixed validation windows."""
        chunks = self.validation.split(4 * self.options.batch)
        return sum(self.model.loss(chunk).item() * len(chunk) for chunk in chunks) / len(self.validation)

    def state_dict(self) -> dict[str, Any]:
        return {
            "options": dataclasses.asdict(self.options) | {"lr": self.options.learning_rate},
            "text": self.digest,
            "log": self.log,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "batches": self.batches.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UsageError if the text is not the one that the run began with."""
        if state["text"] != self.digest:
            raise UsageError("--resume: the text in --data is not the one that the run began with")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self.batches.generator.set_state(state["batches"])
        self.log = list(state["log"])
