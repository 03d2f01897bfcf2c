"""Grafting, units and spikes: the ops on the scalars of matrices.

Grafting takes the direction from the preconditioned update, and the length from a simpler method, per matrix.

With d the direction, v the second moment, t the number of gradients seen and e the mean of v::

    adam      d / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps rms),   v = beta2 v + (1 - beta2) g^2
    rmsprop   the same v, without its bias correction
    adagrad   the same with v = v + g^2
    sgd       d
    rms       the update scaled to a root mean square of 0.2, less where the momentum has run out
    whitened  the update unchanged: its blocks have been divided by the root mean square of their whitened
              gradients

The last two keep no second moment. Where a preconditioned update cannot be used, d gets the length of `rms`.

`eps` multiplies rms = sqrt(e), bias-corrected like v. A relative eps keeps the step unchanged when every
gradient is multiplied by a constant; an absolute eps does not.

All that is computed from a matrix's gradients is computed from the gradients divided by the matrix's unit, a
power of two near the root mean square of its first gradient. So no square overflows or underflows, whatever
the gradients' scale. If this scale changes by more than `UNITS_APART`, the matrix gets a new unit: its
moments are converted to it, exactly, and its factors restart.

Except with `sgd`, no element moves by more than `LARGEST_MOVE` times the learning rate, plus weight decay.

A spike is a gradient of more than `spike_limit` times its matrix's usual root mean square. It is scaled down
to the usual one before it is used: factors and moments would remember it for hundreds of steps. The third
spike in a row is a change of scale: the gradient is used unscaled, and the factors restart.

`guard_gradients_` and `scale_updates_` do all of this. Here they are plain PyTorch, the definition of
correct results.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS, MEAN_SQUARE, USUAL, IN_A_ROW, SPIKES, SKIPPED, FALLBACKS, RATIO, UNIT = COLUMNS = range(9)
"""Columns of the ``scalars [M, 9]``: number of gradients seen; mean of v, 0 without a second moment; running
root mean square of the gradients that are not zero; number of spikes in a row, up to the latest gradient;
number of spikes in total; number of gradients skipped because they were not finite; number of steps on which
the preconditioned update was zero or not finite and the grafting update was used instead; the factor that
gave the last preconditioned update its length, 0 before the first; and the unit of all that is computed from
the gradients, 0 (which counts as 1) before the first gradient that is not zero."""

USUAL_DECAY = 0.95
"""Decay of the running mean square behind USUAL, which starts with the first gradient."""

MOST_SPIKES = 2
"""Largest number of spikes in a row; one more gradient of that size is not a spike."""

RMS_LENGTH = 0.2
"""Root mean square of an update with `rms`, near that of Adam's updates in training."""

SPENT = 0.5
"""Share of the root mean square that noise alone leaves in a momentum; below it, updates are shorter, too."""

LARGEST_MOVE = 10.0
"""Largest move of an element over the learning rate; with momentum of updates, times 1 / (1 - beta1)."""

UNITS_APART = 2.0**40
"""A matrix whose gradients differ from its unit by more than this factor gets a new unit."""

LARGEST_SHIFT = {torch.float32: 2.0**60, torch.float64: 2.0**500}
"""Largest ratio of two units, for which the square of the factor that converts moments is finite. Moments
whose units differ by more are negligible beside each other."""

SPAN = 4096
"""Elements of a parameter whose grafting update has a separate squared norm; the last span may have fewer."""

GRADIENT_DECAY, UPDATE_DECAY, DECOUPLED_DECAY = range(7, 10)
"""Columns of the coefficients of weight decay: added to gradients, added to updates, or decoupled."""

LENGTHS = ("graft", "gradient", "rms", "whitened")
"""Lengths of a preconditioned update::

    graft      the norm of the grafting update
    gradient   the same, times the gradients' unit, and without a bound
    rms        a root mean square of `RMS_LENGTH`, less for a momentum that has run out
    whitened   unchanged: its blocks have been divided by the root mean square of their whitened gradients
"""


@dataclass(frozen=True, kw_only=True)
class ScalarRule:
    """The numbers of `guard_gradients_` and `scale_updates_`, in the order of the native ops' schemas.

    Attributes:
        spike_limit: a gradient of more than this times its usual root mean square is a spike; > 1.
        beta1: decay of the momentum, in [0, 1).
        averaged: True if the momentum is a mean of gradients, whose bias c0 corrects; else it is of updates.
        nesterov: True if that mean looks one step ahead.
        bias2: decay of the mean v whose bias c1 corrects; 0 if it has none.
        decay2, weight2: those of the second moment v; 1 and 0 without one.
        eps: relative to the root of v's mean, >= 0.
        decayed: the column of weight decay, `GRADIENT_DECAY` to `DECOUPLED_DECAY`.
        by_chance: True if parameters are rounded stochastically.
        length: one of `LENGTHS`.
    """

    spike_limit: float
    beta1: float
    averaged: bool
    nesterov: bool
    bias2: float
    decay2: float
    weight2: float
    eps: float
    decayed: int
    by_chance: bool
    length: str

    @functools.cached_property
    def values(self) -> tuple[float | str, ...]:
        """The values of all attributes, in order."""
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    @property
    def keeps_grafts(self) -> bool:
        """True if `scale_updates_` leaves the lengths of grafting updates unchanged."""
        return self.averaged and self.length == "graft"

    @property
    def largest(self) -> float:
        """Largest element of an update; infinite if lengths are those of gradients."""
        if self.length == "gradient":
            return math.inf
        return LARGEST_MOVE if self.averaged else LARGEST_MOVE / (1 - self.beta1)


def guard_gradients_(
    scalars: Tensor,
    coefficients: Tensor,
    active: Tensor,
    restarts: Tensor,
    norms: Tensor,
    numel: Tensor,
    present: Tensor,
    weight_decay: Tensor,
    rule: ScalarRule,
) -> None:
    """See `Backend.guard_gradients_`."""
    column = scalars.unbind(1)
    active.copy_(present & (norms < math.inf))
    rms, usual = (norms / numel.double().sqrt()).to(scalars.dtype), column[USUAL]
    largest, is_known = rule.spike_limit * usual, usual > 0
    is_large = active & is_known & (rms > largest)
    is_spike = is_large & (column[IN_A_ROW] < MOST_SPIKES)
    restarts.copy_(is_large ^ is_spike)
    usual_before = usual.clone()
    column[STEPS].add_(active)
    column[SPIKES].add_(is_spike)
    column[SKIPPED].add_(present ^ active)
    column[IN_A_ROW].add_(is_spike).masked_fill_(active ^ is_spike, 0)
    # Spikes are clipped, not left out: frequent ones raise USUAL until they are no spikes.
    counted = torch.minimum(rms, largest)
    mean = torch.hypot(math.sqrt(USUAL_DECAY) * usual, math.sqrt(1 - USUAL_DECAY) * counted)
    latest = torch.where(is_known ^ restarts, mean, rms)
    usual.copy_(torch.where(active & (rms > 0), latest, usual))
    shifts, is_new = _renew_units_(scalars, active, weight_decay, rule)
    restarts |= is_new
    unit = _units(scalars)
    scales = torch.where(active, torch.where(is_spike, usual_before / unit / rms, 1 / unit), 0)
    mean_square = rule.decay2 * column[MEAN_SQUARE] + rule.weight2 * (scales * rms).square()
    column[MEAN_SQUARE].copy_(torch.where(active, mean_square, column[MEAN_SQUARE]))
    _write_coefficients(coefficients, scalars, scales, shifts, weight_decay, rule)


def _units(scalars: Tensor) -> Tensor:
    """Return the units ``[M]``, 1 for a matrix without one yet."""
    return torch.where(scalars[:, UNIT] > 0, scalars[:, UNIT], 1)


def _renew_units_(
    scalars: Tensor, active: Tensor, weight_decay: Tensor, rule: ScalarRule
) -> tuple[Tensor, Tensor]:
    """Set the units of matrices that have none, or one too far from their gradients.

    Returns:
        The factors that convert the matrices' moments, and True for matrices with a new unit; ``[M]`` each.
    """
    old, limits = _units(scalars), torch.finfo(scalars.dtype)
    size = torch.maximum(scalars[:, USUAL], scalars[:, MEAN_SQUARE].sqrt() * old)
    if rule.decayed == GRADIENT_DECAY:  # which moments contain, too
        size = torch.where(size > 0, torch.maximum(size, weight_decay / UNITS_APART), 0)
    bounded = size.clamp(limits.tiny, 1 / limits.tiny)
    unit = bounded / torch.frexp(bounded).mantissa / 2
    shifts = old / unit
    is_near = (scalars[:, UNIT] > 0) & (shifts < UNITS_APART) & (shifts > 1 / UNITS_APART)
    is_new = active & (size > 0) & ~is_near
    scalars[:, UNIT] = torch.where(is_new, unit, scalars[:, UNIT])
    largest = LARGEST_SHIFT[size.dtype]
    shifts = torch.where(is_new, shifts.clamp_(1 / largest, largest), 1)
    scalars[:, MEAN_SQUARE] *= shifts.square()
    return shifts, is_new


def _write_coefficients(
    coefficients: Tensor,
    scalars: Tensor,
    scales: Tensor,
    shifts: Tensor,
    weight_decay: Tensor,
    rule: ScalarRule,
) -> None:
    steps = scalars[:, STEPS].clamp_min(1)  # a matrix without gradients may have any finite coefficients
    c0 = _without_bias(rule.beta1 if rule.averaged else 0, steps + rule.nesterov)
    c1 = _without_bias(rule.bias2, steps)
    c2 = rule.eps * (c1 * scalars[:, MEAN_SQUARE]).sqrt()
    seeds = scalars[:, STEPS] if rule.by_chance else torch.zeros_like(steps)
    columns = (c0, c1, c2, scales, shifts, torch.full_like(steps, rule.largest), seeds)
    coefficients[:, :7] = torch.stack(columns, 1)
    coefficients[:, GRADIENT_DECAY:] = 0
    coefficients[:, rule.decayed] = weight_decay


def _without_bias(beta: float, steps: Tensor) -> Tensor:
    """Return 1 / (1 - beta^steps) without cancellation in float32; 1 for beta = 0.  `steps`: at least 1."""
    if beta == 0:
        return torch.ones_like(steps)
    return (steps * math.log(beta)).expm1_().reciprocal_().neg_()


def spans_of(numel: int) -> int:
    """Return the number of spans of a parameter of `numel` elements."""
    return -(-numel // SPAN)


def sums_of(values: Tensor, offsets: Tensor) -> Tensor:
    """Return the sums ``[M]`` float64 of the values from each of the ``[M + 1]`` offsets to the next."""
    return torch.segment_reduce(values.double(), "sum", offsets=offsets, initial=0)


def scale_updates_(
    coefficients: Tensor,
    scalars: Tensor,
    graft_norms: Tensor,
    graft_offsets: Tensor,
    update_norms: Tensor,
    update_order: Tensor,
    update_offsets: Tensor,
    numel: Tensor,
    preconditioned: Tensor,
    rule: ScalarRule,
) -> None:
    """See `Backend.scale_updates_`."""
    graft_norms = sums_of(graft_norms, graft_offsets).to(scalars.dtype)
    update_norms = sums_of(update_norms[update_order], update_offsets).to(scalars.dtype)
    c0, unit = coefficients[:, 0].clone(), _units(scalars)
    graft_scale = c0 if rule.averaged else c0 * coefficients[:, 3]
    if rule.length in ("rms", "whitened"):
        rms = (graft_norms / numel).sqrt()
        length = RMS_LENGTH * _share_left(scalars, rms, rule.beta1)
        scale = c0 if rule.length == "whitened" else length / (update_norms / numel).sqrt()
        graft_scale = graft_scale * torch.where(rms > 0, length / rms, 0)
    else:
        scale = graft_norms.sqrt() / update_norms.sqrt()
    if rule.length == "gradient":
        scale, graft_scale = scale * unit, graft_scale * unit
    sound = preconditioned & (update_norms > 0) & (update_norms < math.inf) & (scale < math.inf)
    coefficients[:, 0], coefficients[:, 3] = graft_scale, torch.where(sound, scale, math.nan)
    scalars[:, FALLBACKS] += (preconditioned ^ sound) & (graft_norms > 0)
    scalars[:, RATIO] = torch.where(sound, scale, scalars[:, RATIO])


def _share_left(scalars: Tensor, rms: Tensor, beta1: float) -> Tensor:
    """Return 1, or less for a momentum that has run out, ``[M]``; `rms`: that of the directions."""
    noise = SPENT * math.sqrt((1 - beta1) / (1 + beta1)) * scalars[:, USUAL] / scalars[:, UNIT]
    return torch.where(noise > 0, rms / noise, 1).clamp_max_(1)
