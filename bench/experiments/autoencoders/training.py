"""One run: an optimizer of the comparison trains an autoencoder at a constant rate, in its dtype."""

from __future__ import annotations

import math
import time

import torch

from bench.arena.parameters import ModelParameters
from bench.arena.run import NOT_FINITE, OK, ArenaRun, Curve, Outcome, evaluation_steps, optimizer_bytes
from bench.experiments.autoencoders.optimizers import optimizers_of
from bench.experiments.autoencoders.tasks import AUTOENCODERS, autoencoder_of


def train(run: ArenaRun) -> Outcome:
    """Train once. The outcome's `val_loss` is the best of 25 validations; NaN if a loss was not finite."""
    task, chosen = autoencoder_of(run.task), optimizers_of(AUTOENCODERS[run.task])[run.optimizer]
    torch.manual_seed(run.seed)
    model, batches = task.model(run.seed).to(chosen.dtype), task.batches(run.seed)
    optimizers = chosen.make(ModelParameters.of(model, task.ends), run.lr, run.value)
    due = evaluation_steps(run.steps)
    curve: Curve = [(0, 0.0, task.validate(model))]
    seconds = by_optimizer = 0.0
    for step in range(1, run.steps + 1):
        start = time.process_time()
        loss = task.loss(model, next(batches))
        loss.backward()
        before = time.process_time()
        for one in optimizers:
            one.step()
        end = time.process_time()
        model.zero_grad()
        seconds, by_optimizer = seconds + end - start, by_optimizer + end - before
        if not math.isfinite(loss.item()):
            break
        if step in due:
            curve.append((step, seconds, task.validate(model)))
    finite = curve[-1][0] == run.steps and all(math.isfinite(loss) for _, _, loss in curve)
    best = min(loss for _, _, loss in curve[1:]) if finite else math.nan
    state = optimizer_bytes(optimizers, model)
    return Outcome(best, seconds, by_optimizer, state, OK if finite else NOT_FINITE, curve)
