"""One run: a rival trains a task's model for one seed."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from gpt.trainer import learning_rate_factor
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from bench.arena.parameters import ModelParameters
from bench.arena.rivals import RIVALS, Rival
from bench.arena.tasks.base import ArenaTask, trainable
from bench.arena.tasks.registry import task_of

WARMUP_SHARE = 0.05
MAX_GRADIENT_NORM = 1.0
POINTS = 25
"""Validations of a run after the one before its first step."""

OK, NOT_FINITE = "ok", "not finite"

Curve = list[tuple[int, float, float]]
"""Steps, seconds and validation loss."""


@dataclass(frozen=True)
class ArenaRun:
    """What determines a run."""

    task: str
    optimizer: str
    lr: float
    value: float
    steps: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What a run measured; `seconds` are CPU seconds of the loop without validation."""

    val_loss: float
    seconds: float
    optimizer_seconds: float
    state_bytes: int
    status: str
    curve: Curve


def rate_factor(rival: Rival, steps: int) -> Callable[[int], float]:
    """Return the factor of the peak rate: linear warm-up, then half a cosine to 0, or constant."""
    return learning_rate_factor(steps, WARMUP_SHARE, final_share=1.0 if rival.averages else 0.0)


def evaluation_steps(steps: int) -> set[int]:
    return {round(steps * point / POINTS) for point in range(1, POINTS + 1)} - {0}


def tensors_in(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Yield every tensor in nested containers and objects; each object once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors_in(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module):
        yield from tensors_in(vars(value), seen)


class ScheduledOptimizers:
    """A rival's optimizers on one model, stepped together under the schedule."""

    def __init__(self, rival: Rival, task: ArenaTask, model: nn.Module, run: ArenaRun) -> None:
        self.rival, self.model = rival, model
        self.parameters = ModelParameters.of(model, task.ends)
        self.optimizers: list[Optimizer] = rival.make(self.parameters, run.lr, run.value)
        self._factor = rate_factor(rival, run.steps)
        self._rates = [[group["lr"] for group in one.param_groups] for one in self.optimizers]
        self.switch("train")

    def switch(self, mode: str) -> None:
        """Give an optimizer that averages its iterates the weights for ``train`` or for ``eval``."""
        for one in self.optimizers:
            if self.rival.averages:
                getattr(one, mode)()

    def step(self, number: int) -> None:
        factor = self._factor(number)
        self.parameters.share_gradients()
        for one, rates in zip(self.optimizers, self._rates, strict=True):
            for group, rate in zip(one.param_groups, rates, strict=True):
                group["lr"] = factor * rate
            one.step()
        self.model.zero_grad()

    def state_bytes(self) -> int:
        return optimizer_bytes(self.optimizers, self.model)


def optimizer_bytes(optimizers: Sequence[Optimizer], model: nn.Module) -> int:
    """Return the bytes of the optimizers' state, without those of the model and its gradients."""
    known = {
        t.untyped_storage().data_ptr() for _, p in trainable(model) for t in (p, p.grad) if t is not None
    }
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for one in optimizers
        for tensor in tensors_in(dict(one.state), set())
    }
    return sum(size for pointer, size in storages.items() if pointer not in known)


def train(run: ArenaRun) -> Outcome:
    """Train once and return what was measured."""
    return train_on(task_of(run.task), RIVALS[run.optimizer], run)


def train_on(task: ArenaTask, rival: Rival, run: ArenaRun) -> Outcome:
    """Train a task's model. A loss that is not finite ends the run."""
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):  # PSGD draws from each of them
        seed(run.seed)
    model, batches = task.model(run.seed), task.batches(run.seed)
    optimizers = ScheduledOptimizers(rival, task, model, run)
    parameters: list[Any] = [p for _, p in trainable(model)]
    due = evaluation_steps(run.steps)
    curve: Curve = [(0, 0.0, task.validate(model))]
    seconds = by_optimizer = 0.0
    for step in range(run.steps):
        start = time.process_time()
        loss = task.loss(model, next(batches))
        loss.backward()
        clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        before = time.process_time()
        optimizers.step(step)
        end = time.process_time()
        seconds, by_optimizer = seconds + end - start, by_optimizer + end - before
        if not math.isfinite(loss.item()):
            break
        if step + 1 in due:
            optimizers.switch("eval")
            curve.append((step + 1, seconds, task.validate(model)))
            optimizers.switch("train")
    final = curve[-1][2] if curve[-1][0] == run.steps else math.nan
    status = OK if math.isfinite(final) else NOT_FINITE
    return Outcome(final, seconds, by_optimizer, optimizers.state_bytes(), status, curve)
