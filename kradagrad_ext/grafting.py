"""Grafting: the preconditioned update gives the direction, a simpler method the length, per matrix.

With d the direction, v the second moment, t the number of gradients seen and e the mean of v::

    adam      d / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps rms),   v = beta2 v + (1 - beta2) g^2
    rmsprop   the same v, without its bias correction
    adagrad   the same with v = v + g^2
    sgd       d
    rms       the update scaled to a root mean square of 0.2, less where the momentum has run out
    whitened  the update as it is: its blocks have been divided by the root mean square of their whitened
              gradients

The last two keep no second moment; where no preconditioned update can be taken, d gets the length of `rms`.

`eps` multiplies rms = sqrt(e), bias-corrected like v: a relative eps keeps the step unchanged when every
gradient is multiplied by a constant, which an absolute one does not.

Everything that is made of a matrix's gradients is made of them over a unit of the matrix's own, a power of
two near the root mean square of its first gradient, so that no square over- or underflows whatever the
gradients' scale. If that changes by more than `UNITS_APART`, the matrix gets a new unit: moments are brought
to it, exactly, and factors start anew.

But for `sgd`, no element moves by more than `LARGEST_MOVE` times the learning rate, beside weight decay.

A spike, a gradient of more than `spike_limit` times its matrix's usual root mean square, is scaled down to
the usual one before anything is made of it: factors and moments would remember it for hundreds of steps. The
third one in a row is a change of scale: it is taken as it is, and the factors start anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import OWN_LENGTHS, Config

STEPS, ENERGY, USUAL, IN_A_ROW, SPIKES, SKIPPED, FALLBACKS, RATIO, UNIT = COLUMNS = range(9)
"""Columns of a bucket's ``scalars [M, 9]``: gradients seen; mean of v, 0 without one; running root mean
square of the gradients that are not zero; spikes in a row, up to the latest gradient; spikes in all;
gradients skipped because they were not finite; steps on which the preconditioned update was not finite and
the graft's was taken; the factor that gave the last preconditioned update its length, 0 before the first; and
the unit of all that is made of the gradients, 0 (it is 1) before the first one that is not zero."""

USUAL_DECAY = 0.95
"""Of the running mean square behind USUAL, which the first gradient starts."""

MOST_SPIKES = 2
"""In a row; one more of that size is no spike."""

RMS_LENGTH = 0.2
"""Root mean square of an update with `rms`, near that of Adam's in training."""

SPENT = 0.5
"""Of what noise alone leaves of gradients in a momentum: less than that, and the update is shorter, too."""

LARGEST_MOVE = 10.0
"""Of an element, over the learning rate; with momentum of the updates, so many times 1 / (1 - beta1)."""

UNITS_APART = 2.0**40
"""A matrix whose gradients differ from its unit by more than this factor gets a new unit."""

LARGEST_SHIFT = {torch.float32: 2.0**60, torch.float64: 2.0**500}
"""How far apart two units may be, so that the square of what brings moments from one to the other is finite.
Moments that lie farther apart are nothing beside each other."""


def has_second_moment(config: Config) -> bool:
    """Whether the grafting method keeps a second moment."""
    return config.graft in ("adam", "rmsprop", "adagrad")


def second_moment_rule(config: Config) -> tuple[float, float]:
    """(decay, weight) of v = decay v + weight g^2."""
    return (1.0, 1.0) if config.graft == "adagrad" else (config.betas[1], 1 - config.betas[1])


def _bias_correction(beta: float, steps: Tensor) -> Tensor:
    """1 / (1 - beta^steps) without cancellation in float32; 1 for beta = 0.  `steps`: at least 1."""
    if beta == 0:
        return torch.ones_like(steps)
    return (steps * math.log(beta)).expm1_().reciprocal_().neg_()


@dataclass(frozen=True)
class Guard:
    """What the gradients of a step are taken for, ``[M]``.

    Attributes:
        scales: what each one is multiplied by: 0 for a matrix that takes no part, else 1 over its unit, and
            less than that for a spike.
        shifts: what moments are multiplied by, where units are new.
        restarts: bool, whose scale has changed so much that what factors hold of them is worth nothing.
    """

    scales: Tensor
    shifts: Tensor
    restarts: Tensor

    @property
    def active(self) -> Tensor:
        """``[M]`` bool, which matrices take part."""
        return self.scales > 0

    def __getitem__(self, rows: Tensor) -> Guard:
        return Guard(self.scales[rows], self.shifts[rows], self.restarts[rows])


def observe_(
    scalars: Tensor, gradient_norms: Tensor, numel: Tensor, present: Tensor, config: Config
) -> Guard:
    """Guard against gradients that are not finite, and spikes, on the device, and count them.

    Args:
        scalars: ``[M, 9]``, updated in place.
        gradient_norms: |g|_F ``[M]`` float64; not finite where any element is not.
        numel: elements of each matrix ``[M]``, at least 1.
        present: ``[M]`` bool, false for matrices without a gradient on this step.
    """
    column = scalars.unbind(1)
    finite = gradient_norms < math.inf
    active = present & finite
    rms, usual = (gradient_norms / numel.sqrt()).to(scalars.dtype), column[USUAL]
    largest, is_known = config.spike_limit * usual, usual > 0
    is_large = active & is_known & (rms > largest)
    is_spike = is_large & (column[IN_A_ROW] < MOST_SPIKES)
    restarts = is_large ^ is_spike
    usual_before = usual.clone()
    column[STEPS].add_(active)
    column[SPIKES].add_(is_spike)
    column[SKIPPED].add_(present ^ active)
    column[IN_A_ROW].add_(is_spike).masked_fill_(active ^ is_spike, 0)
    counted = torch.minimum(rms, largest)  # so that what comes often is a spike no more
    mean = torch.hypot(math.sqrt(USUAL_DECAY) * usual, math.sqrt(1 - USUAL_DECAY) * counted)
    latest = torch.where(is_known ^ restarts, mean, rms)
    usual.copy_(torch.where(active & (rms > 0), latest, usual))
    shifts, is_new = _renew_units_(column, active, config)
    unit = _units(column)
    scales = torch.where(is_spike, usual_before / unit / rms, 1 / unit)
    if has_second_moment(config):
        decay, weight = second_moment_rule(config)
        taken = scales * rms
        energy = torch.addcmul(decay * column[ENERGY], taken, taken, value=weight)
        column[ENERGY].copy_(torch.where(active, energy, column[ENERGY]))
    return Guard(torch.where(active, scales, 0), shifts, restarts | is_new)


def _units(column: Sequence[Tensor]) -> Tensor:
    """``[M]``, 1 for a matrix that has none yet."""
    return torch.where(column[UNIT] > 0, column[UNIT], 1)


def _renew_units_(column: Sequence[Tensor], active: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Give matrices a unit that have none, or one that is too far from their gradients.

    Returns:
        What their moments are to be multiplied by, and which of them have a new unit; ``[M]``.
    """
    old, size = _units(column), column[USUAL]
    if has_second_moment(config):  # which may forget more slowly
        size = torch.maximum(size, column[ENERGY].sqrt() * old)
    limits = torch.finfo(size.dtype)
    added, *_ = config.weight_decays
    if isinstance(added, Tensor) or added > 0:  # of which moments are made, too
        size = torch.where(size > 0, torch.maximum(size, _of_all(added, size) / UNITS_APART), 0)
    unit = (size / torch.frexp(size).mantissa / 2).clamp_(limits.tiny, 1 / limits.tiny)
    shifts = old / unit
    is_near = (column[UNIT] > 0) & (shifts < UNITS_APART) & (shifts > 1 / UNITS_APART)
    is_new = active & (size > 0) & ~is_near
    column[UNIT].copy_(torch.where(is_new, unit, column[UNIT]))
    largest = LARGEST_SHIFT[size.dtype]
    shifts = torch.where(is_new, shifts.clamp_(1 / largest, largest), 1)
    if has_second_moment(config):
        column[ENERGY].mul_(shifts.square())
    return shifts, is_new


def _share_left(scalars: Tensor, rms: Tensor, config: Config) -> Tensor:
    """1, and less for a momentum that has run out; `rms`: of the direction, ``[M]``."""
    beta1 = config.betas[0]
    noise = SPENT * math.sqrt((1 - beta1) / (1 + beta1)) * scalars[:, USUAL] / scalars[:, UNIT]
    return torch.where(noise > 0, rms / noise, 1).clamp_max_(1)


def coefficients(scalars: Tensor, guard: Guard, config: Config) -> Tensor:
    """``[M, 10]``, see `backends.base.COEFFICIENTS`; c3 is the gradient's scale.

    Args:
        scalars: ``[M, 9]``.
    """
    column = scalars.unbind(1)
    steps = column[STEPS].clamp_min(1)  # of a matrix that is not yet seen, anything finite
    c0 = c1 = torch.ones_like(steps)
    if config.momentum_on == "gradient":
        c0 = _bias_correction(config.betas[0], steps + 1 if config.nesterov else steps)
    if config.graft == "adam":
        c1 = _bias_correction(config.betas[1], steps)
    c2 = (c1 * column[ENERGY]).sqrt_().mul_(config.eps)
    largest, zero = torch.full_like(c0, _largest_update(config)), torch.zeros_like(c0)
    chance = column[STEPS] if config.rounding == "stochastic" else zero
    own = (c0, c1, c2, guard.scales, guard.shifts, largest, chance)
    return torch.stack((*own, *(_of_all(decay, zero) for decay in config.weight_decays)), 1)


def _of_all(value: float | Tensor, zero: Tensor) -> Tensor:
    """A number, or a tensor of one, for every matrix."""
    if isinstance(value, Tensor):
        return value.detach().to(zero, non_blocking=True).expand_as(zero)
    return torch.full_like(zero, value) if value else zero


def _largest_update(config: Config) -> float:
    """Of an element, as it is written: infinite where lengths are the gradients' own."""
    if config.graft == "sgd":
        return math.inf
    return LARGEST_MOVE if config.momentum_on == "gradient" else LARGEST_MOVE / (1 - config.betas[0])


def scale_(
    coefficients: Tensor,
    scalars: Tensor,
    graft_norms: Tensor,
    update_norms: Tensor,
    numel: Tensor,
    preconditioned: Tensor,
    config: Config,
) -> None:
    """Make column c3, until now the gradient's scale, the one that gives a preconditioned update its length.

    It is NaN for an update that is zero or not finite: the write then takes the graft itself.

    Args:
        coefficients: ``[M, 10]``; c0 becomes what gives the graft its length with `rms`, `whitened` and
            `sgd`, and takes in the gradient's scale where directions are the gradients as they are.
        scalars: ``[M, 9]``; steps without an update are counted, the factor is kept.
        graft_norms, update_norms: squared norms ``[M]``.  numel: elements ``[M]``, at least 1.
        preconditioned: ``[M]`` bool.
    """
    corrected = coefficients[:, 0].clone()
    if config.momentum_on == "update":
        coefficients[:, 0] *= coefficients[:, 3]
    if config.graft in OWN_LENGTHS:
        rms = (graft_norms / numel).sqrt_()
        length = RMS_LENGTH * _share_left(scalars, rms, config)
        whitened = config.graft == "whitened"
        scale = corrected if whitened else length / (update_norms / numel).sqrt_()
        coefficients[:, 0] *= torch.where(rms > 0, length / rms, 0)
    else:
        scale = (graft_norms / update_norms).sqrt_()
    if config.graft == "sgd":
        unit = _units(scalars.unbind(1))
        scale, coefficients[:, 0] = scale * unit, coefficients[:, 0] * unit
    sound = preconditioned & (update_norms > 0) & (update_norms < math.inf) & (scale < math.inf)
    coefficients[:, 3] = torch.where(sound, scale, math.nan)
    column = scalars.unbind(1)
    column[FALLBACKS].add_((preconditioned ^ sound) & (graft_norms > 0))
    column[RATIO].copy_(torch.where(sound, scale, column[RATIO]))
