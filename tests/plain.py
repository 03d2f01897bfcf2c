"""The optimizer once more, one matrix after the other, as plainly as it can be said: what steps are to be.

It takes the parameter groups of the real one, whatever has become of them, and keeps its own state in float64
by parameter: factors as the statistics S that they are inverses of, X = F F^T = S^-1. Of the options it knows
those in `KNOWN`, of parameters vectors, matrices, and matrices in a row (`batch_dims`, `split`).
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
"""Options of which it knows some values alone."""

Slices = tuple[slice | int, ...]


class PlainKrADagrad:
    """The same steps on copies of the parameters.

    Attributes:
        values: of the parameters, by parameter.  state: of every parameter, by matrix; in float64.
    """

    def __init__(self) -> None:
        self.values: dict[Tensor, Tensor] = {}
        self.state: dict[Tensor, list[dict[str, Any]]] = {}

    def step(self, param_groups: list[dict[str, Any]], numbers: list[int]) -> None:
        """Step every parameter with a gradient.

        Args:
            param_groups: of the real optimizer.  numbers: of the step, in each of them.
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
    """Where the matrices of a parameter are; a vector is one, too."""
    cuts: list[Sequence[slice | int]] = [range(shape[dim]) for dim in range(config.batch_dims)]
    for dim in range(config.batch_dims, len(shape)):
        parts = config.split if dim == config.split_dim else 1
        lengths = [shape[dim] // parts] * parts if isinstance(parts, int) else list(parts)
        ends = list(itertools.accumulate(lengths))
        cuts.append([slice(end - length, end) for end, length in zip(ends, lengths, strict=True)])
    return itertools.product(*cuts)


def blocks(matrix: Tensor, config: Config) -> Iterator[Slices]:
    """Where the blocks of a matrix are; a vector has none."""
    if matrix.ndim < 2 or not config.precondition:
        return iter(())
    size = config.block_size
    starts = (range(0, length, size) for length in matrix.shape)
    return (tuple(slice(start, start + size) for start in place) for place in itertools.product(*starts))


def step_matrix(
    value: Tensor, grad: Tensor, state: dict[str, Any], config: Config, lr: float, schedule: Schedule
) -> None:
    """One step of one matrix, whose value and state are written."""
    places = list(blocks(value, config))
    if not state:
        state.update(steps=0, energy=0.0, usual=0.0, in_a_row=0)
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
        state["energy"] = beta2 * state["energy"] + (1 - beta2) * float(grad.square().mean())
        c1 = 1 / (1 - beta2**t)
        denominator = (c1 * state["v"]).sqrt() + config.eps * math.sqrt(c1 * state["energy"])
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
    """What the gradient is multiplied by; counts it, and lets factors start anew if its scale has changed."""
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
    """Root mean square of an update with `graft` rms; `rms`: of the direction."""
    beta1 = config.betas[0]
    noise = SPENT * math.sqrt((1 - beta1) / (1 + beta1)) * state["usual"]
    return RMS_LENGTH * (min(1.0, rms / noise) if noise > 0 else 1.0)


def step_block(
    grad: Tensor, direction: Tensor, block: dict[str, Any], config: Config, schedule: Schedule
) -> Tensor:
    """Factors, roots and the preconditioned direction of a block."""
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
    """S <- decay S + weight U U^T + the damping, of both sides; `g`: root mean square of the gradient."""
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
    """(unit^2 S^-1)^(1/2)."""
    values, vectors = torch.linalg.eigh(statistics)
    return vectors * (unit / values.sqrt()) @ vectors.mT


def root_mean_square(tensor: Tensor) -> float:
    return math.sqrt(float(tensor.square().mean())) if tensor.numel() else 0.0
