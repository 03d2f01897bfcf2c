"""The definition of correct results: every op of `base.py` in plain PyTorch, on any device.

Results are computed for every block and kept for the active ones. `square_root` has the ops on factors,
`scalars` has the ops on the scalars of matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kradagrad_ext.decomposed_roots import decomposed_roots
from kradagrad_ext.polar import polar_roots_

from .scalars import guard_gradients_, scale_updates_, spans_of
from .square_root import kron_step_, update_factor_

__all__ = [
    "apply_updates_",
    "available",
    "decomposed_roots",
    "guard_gradients_",
    "kron_step_",
    "name",
    "polar_roots_",
    "scale_updates_",
    "update_factor_",
    "update_moments_",
]

name = "reference"


def available(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None: the reference runs everywhere."""
    return None


def _graft_update(direction: Tensor, second_moment: Tensor | None, coefficients: Tensor) -> Tensor:
    """Return c0 d / (sqrt(c1 v) + c2), 0 where the denominator is 0; c0 d without a second moment."""
    c0, c1, c2, *_ = coefficients.unbind()
    update = c0 * direction.to(coefficients.dtype)
    if second_moment is None:
        return update
    denominator = (c1 * second_moment).sqrt() + c2
    return torch.where(denominator > 0, update / denominator, 0)


def update_moments_(
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
    nesterov: bool,
) -> None:
    """See `Backend.update_moments_`."""
    dtype = coefficients.dtype
    span_norms = (
        graft_norms.split_with_sizes([spans_of(p.numel()) for p in params]) if len(graft_norms) else None
    )
    for i, keep in enumerate(active.unbind()):
        c3, c4, decay = coefficients[i, 3], coefficients[i, 4], coefficients[i, 7]
        d = g = c3 * (grads[i].to(dtype) + decay * params[i].to(dtype))
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
        if span_norms is not None and len(span_norms[i]):
            norm = _graft_update(d, v, coefficients[i]).square().sum()
            span_norms[i].zero_()[0] = torch.where(keep, norm, 0)


def apply_updates_(
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
    nesterov: bool,
) -> None:
    """See `Backend.apply_updates_`."""
    for i, keep in enumerate(active.unbind()):
        p = old = params[i].to(coefficients.dtype)
        if residuals:
            p = _with_residual(p, residuals[i])
        u = _graft_update(directions[i], second_moments[i] if second_moments else None, coefficients[i])
        source = directions[i].to(coefficients.dtype)
        if updates[i].numel() > 0:
            scale = coefficients[i, 3]
            u = torch.where(scale.isfinite(), scale * updates[i], u)
            source = torch.where(scale.isfinite(), updates[i], source)
        u = u + coefficients[i, 8] * p
        if momenta:
            buffer = momentum * momenta[i] + u
            momenta[i].copy_(torch.where(keep, buffer, momenta[i]))
            u = u + momentum * buffer if nesterov else buffer
        largest, decay = coefficients[i, 5], coefficients[i, 9]
        p = (1 - lr * decay) * p - lr * u.clamp(-largest, largest)
        if params[i].dtype == torch.bfloat16 and not residuals:
            chosen = _rounded_by_chance(p, source, old, coefficients[i, 6])
            p = torch.where(coefficients[i, 6] > 0, chosen, p)
        if params[i].dtype == torch.bfloat16 and residuals:
            bits = p.float().view(torch.int32)
            upper = bits + 0x8000 & -0x10000
            residuals[i].copy_(torch.where(keep, (bits - upper).short(), residuals[i]))
            p = upper.view(torch.float32)
        params[i].copy_(torch.where(keep, p.to(params[i].dtype), params[i]))


def _with_residual(values: Tensor, residual: Tensor) -> Tensor:
    """Return the values with their residuals added to their float32 bits, in the values' dtype."""
    added = torch.where(values != 0, residual.int(), 0)
    return (values.float().view(torch.int32) + added).view(torch.float32).to(values.dtype)


_WORD, _LARGEST_BF16 = 0xFFFFFFFF, 0x7F7F0000


def _bits(values: Tensor) -> Tensor:
    """Return the float32 bits as int64, without sign."""
    return values.float().view(torch.int32).long() & _WORD


def _rounded_by_chance(values: Tensor, source: Tensor, old: Tensor, count: Tensor) -> Tensor:
    """Return the values rounded stochastically to neighbouring bfloat16 numbers, in their dtype.

    Values that are not finite, or might not be finite after rounding, stay unchanged.
    """
    bits = _bits(values)
    mixed = (_bits(source) ^ _bits(old) * 0x85EBCA77 ^ count.long() * 0x9E3779B9) & _WORD
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ mixed >> shift) * factor & _WORD
    mixed = mixed ^ mixed >> 16
    rounded = bits + (mixed & 0xFFFF) & 0xFFFF0000
    signed = torch.where(rounded > 0x7FFFFFFF, rounded - 0x100000000, rounded)
    chosen = signed.int().view(torch.float32).to(values.dtype)
    return torch.where((bits & 0x7FFFFFFF) < _LARGEST_BF16, chosen, values)
