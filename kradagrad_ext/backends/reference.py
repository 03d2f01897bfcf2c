"""The definition of correct: every op of `base.py` in plain PyTorch, on any device.

Results are computed for every block, kept for the active ones. `square_root` has the ops on factors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kradagrad_ext.decomposed_roots import decomposed_roots
from kradagrad_ext.polar import polar_roots_

from .square_root import kron_step_, update_factor_

__all__ = [
    "accumulate_",
    "available",
    "decomposed_roots",
    "kron_step_",
    "name",
    "parameter_step_",
    "polar_roots_",
    "update_factor_",
]

name = "reference"


def available(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """None: the reference runs everywhere."""
    return None


def _graft_update(direction: Tensor, second_moment: Tensor | None, coefficients: Tensor) -> Tensor:
    """c0 d / (sqrt(c1 v) + c2), 0 where the denominator is 0; c0 d without a second moment."""
    c0, c1, c2, *_ = coefficients.unbind()
    update = c0 * direction.to(coefficients.dtype)
    if second_moment is None:
        return update
    denominator = (c1 * second_moment).sqrt() + c2
    return torch.where(denominator > 0, update / denominator, 0)


def accumulate_(
    momenta: list[Tensor],
    second_moments: list[Tensor],
    directions: list[Tensor],
    graft_norms: Tensor,
    grads: list[Tensor],
    params: list[Tensor],
    coefficients: Tensor,
    active: Tensor,
    beta1: float,
    beta2: float,
    weight2: float,
    l2: float,
    nesterov: bool,
) -> None:
    """See `Backend.accumulate_`."""
    dtype = coefficients.dtype
    for i, keep in enumerate(active.unbind()):
        c3, c4 = coefficients[i, 3], coefficients[i, 4]
        g = grads[i].to(dtype)
        if l2 != 0:
            g = g + l2 * params[i].to(dtype)
        d = g = c3 * g
        if momenta:
            d = beta1 * c4 * momenta[i] + (1 - beta1) * g
            momenta[i].copy_(torch.where(keep, d, momenta[i]))
            if nesterov:
                d = beta1 * d + (1 - beta1) * g
        if directions:
            directions[i].copy_(torch.where(keep, d, directions[i]))
        v = None
        if second_moments:
            v = beta2 * c4.square() * second_moments[i] + weight2 * g.square()
            second_moments[i].copy_(torch.where(keep, v, second_moments[i]))
        norm = _graft_update(d, v, coefficients[i]).square().sum()
        graft_norms[i] = torch.where(keep, norm, 0)


def parameter_step_(
    params: list[Tensor],
    momenta: list[Tensor],
    residuals: list[Tensor],
    updates: list[Tensor],
    directions: list[Tensor],
    second_moments: list[Tensor],
    coefficients: Tensor,
    active: Tensor,
    lr: Tensor,
    momentum: float,
    decay: float,
    l2: float,
    nesterov: bool,
) -> None:
    """See `Backend.parameter_step_`."""
    for i, keep in enumerate(active.unbind()):
        p = params[i].to(coefficients.dtype)
        if residuals:
            p = p + residuals[i].to(p.dtype)
        u = _graft_update(directions[i], second_moments[i] if second_moments else None, coefficients[i])
        if updates[i].numel() > 0:
            scale = coefficients[i, 3]
            u = torch.where(scale.isfinite(), scale * updates[i], u)
        u = u + l2 * p
        if momenta:
            buffer = momentum * momenta[i] + u
            momenta[i].copy_(torch.where(keep, buffer, momenta[i]))
            u = u + momentum * buffer if nesterov else buffer
        largest = coefficients[i, 5]
        p = (1 - lr * decay) * p - lr * u.clamp(-largest, largest)
        if params[i].dtype == torch.bfloat16 and not residuals:
            p = torch.where(coefficients[i, 6] > 0, _rounded_by_chance(p, coefficients[i, 6]), p)
        stored = p.to(params[i].dtype)
        params[i].copy_(torch.where(keep, stored, params[i]))
        if residuals:
            residual = (p - stored.to(p.dtype)).to(residuals[i].dtype)
            residuals[i].copy_(torch.where(keep, residual, residuals[i]))


_WORD, _GOLDEN, _LARGEST_BF16 = 0xFFFFFFFF, 0x9E3779B9, 0x7F7F0000


def _rounded_by_chance(values: Tensor, count: Tensor) -> Tensor:
    """Values that are bfloat16 numbers, those next to the given ones, in their dtype.

    What is not finite, or might no longer be, stays.
    """
    bits = values.float().view(torch.int32).long() & _WORD
    mixed = bits ^ (count.long() * _GOLDEN & _WORD)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ mixed >> shift) * factor & _WORD
    mixed = mixed ^ mixed >> 16
    rounded = bits + (mixed & 0xFFFF) & 0xFFFF0000
    signed = torch.where(rounded > 0x7FFFFFFF, rounded - 0x100000000, rounded)
    chosen = signed.int().view(torch.float32).to(values.dtype)
    return torch.where((bits & 0x7FFFFFFF) < _LARGEST_BF16, chosen, values)
