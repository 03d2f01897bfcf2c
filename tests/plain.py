"""A plain second implementation of the optimizer, matrix by matrix, as the expected result of its steps.

It reads the real optimizer's parameter groups at every step, and keeps separate state in float64 for each
parameter: the statistics S in place of factors, X = F F^T = S^-1. It supports the option values in `KNOWN`,
and parameters that are vectors, matrices, or several matrices (`batch_dims`, `split`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kradagrad_ext.backends.scalars import LARGEST_MOVE, MOST_SPIKES, RMS_LENGTH, SPENT, USUAL_DECAY
from kradagrad_ext.config import PRIOR, Config
from kradagrad_ext.schedule import Schedule

KNOWN = {
    "graft": ("adam", "rms"),
    "coupling": ("kl", "none"),
    "momentum_on": ("gradient",),
    "nesterov": (True,),
}
"""Options with the only values that it supports."""

Slices = tuple[slice | int, ...]


class PlainKrADagrad:
    """An optimizer that takes the same steps on copies of the parameters.

    Attributes:
        values: the copies, by parameter.  state: the states of each parameter's matrices, in float64.
    """

    def __init__(self) -> None:
        self.values: dict[Tensor, Tensor] = {}
        self.state: dict[Tensor, list[dict[str, Any]]] = {}

    def step(self, param_groups: list[dict[str, Any]], numbers: list[int]) -> None:
        """Step every parameter with a gradient.

        Args:
            param_groups: those of the real optimizer.  numbers: the step's number in each group.
        """
        for group, number in zip(param_groups, numbers, strict=True):
            config = Config.of(group)
            assert all(getattr(config, option) in values for option, values in KNOWN.items())
            for p in group["params"]:
                if p.grad is not None:
                    self._step_parameter(p, config, float(group["lr"]), Schedule(number))

    def _step_parameter(self, p: Tensor, config: Config, lr: float, schedule: Schedule) -> None:
        value = self.values[p]
        pieces = list(matrices(tuple(p.shape), config))
        states = self.state.setdefault(p, [{} for _ in pieces])
        for where, state in zip(pieces, states, strict=True):
            step_matrix(value[where], p.grad.double()[where], state, config, lr, schedule)


def matrices(shape: tuple[int, ...], config: Config) -> Iterator[Slices]:
    """Yield the slices of a parameter's matrices; a vector counts as one."""
    cuts: list[Sequence[slice | int]] = [range(shape[dim]) for dim in range(config.batch_dims)]
    for dim in range(config.batch_dims, len(shape)):
        parts = config.split if dim == config.split_dim else 1
        lengths = [shape[dim] // parts] * parts if isinstance(parts, int) else list(parts)
        ends = list(itertools.accumulate(lengths))
        cuts.append([slice(end - length, end) for end, length in zip(ends, lengths, strict=True)])
    return itertools.product(*cuts)


def blocks(matrix: Tensor, config: Config) -> Iterator[Slices]:
    """Yield the slices of a matrix's blocks; a vector has none."""
    if matrix.ndim < 2 or not config.precondition:
        return iter(())
    size = config.block_size
    starts = (range(0, length, size) for length in matrix.shape)
    return (tuple(slice(start, start + size) for start in place) for place in itertools.product(*starts))


def step_matrix(
    value: Tensor, grad: Tensor, state: dict[str, Any], config: Config, lr: float, schedule: Schedule
) -> None:
    """Take one step of one matrix; write its value and state."""
    places = list(blocks(value, config))
    if not state:
        state.update(steps=0, mean_square=0.0, usual=0.0, in_a_row=0)
        state.update(m=torch.zeros_like(value), v=torch.zeros_like(value), blocks=[{} for _ in places])
    if not grad.isfinite().all():
        return
    scale = guard(state, grad, config)
    grad = scale * grad
    (beta1, beta2), t = config.betas, state["steps"]
    state["m"] = beta1 * state["m"] + (1 - beta1) * grad
    direction = beta1 * state["m"] + (1 - beta1) * grad
    corrected = direction / (1 - beta1 ** (t + 1))
    if config.for_blocks(bool(places)).graft == "adam":
        state["v"] = beta2 * state["v"] + (1 - beta2) * grad.square()
        state["mean_square"] = beta2 * state["mean_square"] + (1 - beta2) * float(grad.square().mean())
        c1 = 1 / (1 - beta2**t)
        denominator = (c1 * state["v"]).sqrt() + config.eps * math.sqrt(c1 * state["mean_square"])
        graft = torch.where(denominator > 0, corrected / denominator, 0)
    else:
        rms = root_mean_square(corrected)
        graft = corrected / rms * length_of(rms, state, config) if rms > 0 else corrected
    update = torch.zeros_like(value)
    for where, block in zip(places, state["blocks"], strict=True):
        update[where] = step_block(grad[where], direction[where], block, config, schedule)
    norm = float(update.norm())
    if norm > 0 and schedule.preconditions(config):
        update *= float(graft.norm()) / norm
    else:
        update = graft
    update = update.clamp(-LARGEST_MOVE, LARGEST_MOVE)
    value.copy_((1 - lr * config.weight_decay) * value - lr * update)


def guard(state: dict[str, Any], grad: Tensor, config: Config) -> float:
    """Return what multiplies the gradient; count it, and restart the factors if its scale has changed."""
    rms, usual = root_mean_square(grad), state["usual"]
    is_large = usual > 0 and rms > config.spike_limit * usual
    is_spike = is_large and state["in_a_row"] < MOST_SPIKES
    restarts = is_large and not is_spike
    state["steps"] += 1
    state["in_a_row"] = state["in_a_row"] + 1 if is_spike else 0
    if restarts:
        for block in state["blocks"]:
            block["w"] = 0.0
            block["is_rooted"] = False
    if rms > 0:
        counted = min(rms, config.spike_limit * usual)
        mean = math.sqrt(USUAL_DECAY * usual**2 + (1 - USUAL_DECAY) * counted**2)
        state["usual"] = mean if usual > 0 and not restarts else rms
    return usual / rms if is_spike else 1.0


def length_of(rms: float, state: dict[str, Any], config: Config) -> float:
    """Return the root mean square of an update with `graft` rms; `rms` is that of the direction."""
    beta1 = config.betas[0]
    noise = SPENT * math.sqrt((1 - beta1) / (1 + beta1)) * state["usual"]
    return RMS_LENGTH * (min(1.0, rms / noise) if noise > 0 else 1.0)


def step_block(
    grad: Tensor, direction: Tensor, block: dict[str, Any], config: Config, schedule: Schedule
) -> Tensor:
    """Update the factors and roots of a block, and return its preconditioned direction."""
    if not block:
        eyes = [torch.eye(d, dtype=grad.dtype) for d in grad.shape]
        block.update(w=0.0, rms=0.0, is_rooted=False, statistics=eyes, roots=eyes)
    left, right = block["roots"]
    if (schedule.factors_due(config) or block["w"] == 0) and float(grad.square().sum()) > 0:
        unfoldings = (grad, grad.mT)
        if config.coupling == "kl":
            unfoldings = tuple(u * grad.norm() / u.norm() for u in (grad @ right, (left @ grad).mT))
        update_statistics(unfoldings, root_mean_square(grad), block, config, schedule)
    is_due = schedule.turn(config, in_turns=False) is not None or not block["is_rooted"]
    if is_due and block["w"] > 0:
        sides = zip(block["statistics"], (grad.shape[1], grad.shape[0]), strict=True)
        block["roots"] = [root_of(s, math.sqrt(block["w"] * k) * block["rms"]) for s, k in sides]
        block["is_rooted"] = True
    left, right = block["roots"]
    return left @ direction @ right / block["rms"] if block["rms"] > 0 else torch.zeros_like(grad)


def update_statistics(
    unfoldings: tuple[Tensor, ...], g: float, block: dict[str, Any], config: Config, schedule: Schedule
) -> None:
    """Update S <- decay S + weight U U^T + damping of both sides; `g`: root mean square of the gradient."""
    decay, weight = config.factor_decay, 1 - config.factor_decay
    w = decay * block["w"] + weight
    rms = math.sqrt((decay * block["w"] * block["rms"] ** 2 + weight * g**2) / w)
    statistics = []
    for u, s in zip(unfoldings, block["statistics"], strict=True):
        d, k = u.shape
        eye = torch.eye(d, dtype=u.dtype)
        old = s if block["w"] > 0 else max(PRIOR, config.damping) * k * rms**2 * eye
        damping = schedule.damped_updates(config, False) * weight * config.damping * k * rms**2
        statistics.append(decay * old + weight * u @ u.mT + damping * eye)
    block.update(w=w, rms=rms, statistics=statistics)


def root_of(statistics: Tensor, unit: float) -> Tensor:
    """Return (unit^2 S^-1)^(1/2)."""
    values, vectors = torch.linalg.eigh(statistics)
    return vectors * (unit / values.sqrt()) @ vectors.mT


def root_mean_square(tensor: Tensor) -> float:
    return math.sqrt(float(tensor.square().mean())) if tensor.numel() else 0.0
