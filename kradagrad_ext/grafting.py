"""Grafting: the preconditioned update gives the direction, a simpler method the length, per parameter.

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
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import OWN_LENGTHS, Config

STEPS, ENERGY, SKIPPED, FALLBACKS, RATIO = COLUMNS = range(5)
"""Columns of a bucket's ``scalars [P, 5]``: gradients seen; mean of v, or without one the mean square of the
last gradient that was not zero; gradients skipped because they were not finite; steps on which the
preconditioned update was not finite and the graft's was taken; and the factor that gave the last
preconditioned update its length, 0 before the first."""


RMS_LENGTH = 0.2
"""Root mean square of an update with `rms`, near that of Adam's in training."""

SPENT = 0.5
"""Of what noise alone leaves of gradients in a momentum: less than that, and the update is shorter, too."""


def has_second_moment(config: Config) -> bool:
    """Whether the grafting method keeps a second moment."""
    return config.graft in ("adam", "rmsprop", "adagrad")


def second_moment_rule(config: Config) -> tuple[float, float]:
    """(decay, weight) of v = decay v + weight g^2."""
    return (1.0, 1.0) if config.graft == "adagrad" else (config.betas[1], 1 - config.betas[1])


def _bias_correction(beta: float, steps: Tensor) -> Tensor:
    """1 - beta^steps without cancellation in float32; 1 for beta = 0 and for a parameter not yet seen."""
    if beta == 0:
        return torch.ones_like(steps)
    return -torch.expm1(steps.clamp_min(1) * math.log(beta))


def observe_(
    scalars: Tensor, gradient_norms: Tensor, numel: Tensor, present: Tensor, config: Config
) -> Tensor:
    """The non-finite guard, on the device: count, and tell which parameters take part in this step.

    Args:
        scalars: ``[P, 5]``, updated in place.
        gradient_norms: |g|_F^2 ``[P]``; not finite where any element is not.
        numel: elements of each parameter ``[P]``, at least 1.
        present: ``[P]`` bool, false for parameters without a gradient on this step.

    Returns:
        `active` ``[P]`` bool.
    """
    finite = gradient_norms.isfinite()
    active = present & finite
    scalars[:, STEPS] += active
    scalars[:, SKIPPED] += present & ~finite
    if config.graft in OWN_LENGTHS:
        seen = active & (gradient_norms > 0)
        scalars[:, ENERGY] = torch.where(seen, gradient_norms / numel, scalars[:, ENERGY])
    elif has_second_moment(config):
        decay, weight = second_moment_rule(config)
        energy = decay * scalars[:, ENERGY] + weight * gradient_norms / numel
        scalars[:, ENERGY] = torch.where(active, energy, scalars[:, ENERGY])
    return active


def _share_left(scalars: Tensor, mean_square: Tensor, config: Config) -> Tensor:
    """1, and less for a momentum that has run out; `mean_square`: of the direction, ``[P]``."""
    beta1 = config.betas[0]
    noise = SPENT * math.sqrt((1 - beta1) / (1 + beta1)) * scalars[:, ENERGY].sqrt()
    return torch.where(noise > 0, mean_square.sqrt() / noise, 1).clamp_max(1)


def coefficients(scalars: Tensor, config: Config) -> Tensor:
    """``[P, 4]``: c0, c1, c2 of graft = c0 d / (sqrt(c1 v) + c2), and c3, the update's scale, still NaN."""
    steps, energy = scalars[:, STEPS], scalars[:, ENERGY]
    c0 = c1 = torch.ones_like(steps)
    if config.momentum_on == "gradient":
        c0 = 1 / _bias_correction(config.betas[0], steps + config.nesterov)
    if config.graft == "adam":
        c1 = 1 / _bias_correction(config.betas[1], steps)
    c2 = config.eps * (c1 * energy).sqrt()
    return torch.stack((c0, c1, c2, torch.full_like(steps, math.nan)), 1)


def scale_(
    coefficients: Tensor,
    scalars: Tensor,
    graft_norms: Tensor,
    update_norms: Tensor,
    numel: Tensor,
    preconditioned: Tensor,
    config: Config,
) -> None:
    """Column c3: the factor that gives every preconditioned update its length.

    c3 stays NaN for an update that is zero or not finite: the write then takes the graft itself.

    Args:
        coefficients: ``[P, 4]``; c0 with `rms` and `whitened` becomes what gives the graft its length.
        scalars: ``[P, 5]``; steps without an update are counted, the factor is kept.
        graft_norms, update_norms: squared norms ``[P]``.  numel: elements ``[P]``, at least 1.
        preconditioned: ``[P]`` bool.
    """
    scale = (graft_norms / update_norms).sqrt()
    if config.graft in OWN_LENGTHS:
        length = RMS_LENGTH * numel.sqrt() * _share_left(scalars, graft_norms / numel, config)
        scale = coefficients[:, 0].clone() if config.graft == "whitened" else length / update_norms.sqrt()
        of_graft = torch.where(graft_norms > 0, length / graft_norms.sqrt(), 0)
        coefficients[:, 0] = coefficients[:, 0] * of_graft
    sound = preconditioned & update_norms.isfinite() & (update_norms > 0) & scale.isfinite()
    coefficients[:, 3] = torch.where(sound, scale, math.nan)
    scalars[:, FALLBACKS] += preconditioned & ~sound & (graft_norms > 0)
    scalars[:, RATIO] = torch.where(sound, scale, scalars[:, RATIO])
