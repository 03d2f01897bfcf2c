"""The definition of correct results of the ops on factors: `update_factor_`, `kron_step_` in plain PyTorch.

Notation of `base`: F with X = F F^T, U an unfolding, H = decay I + B B^T + ..., B = sqrt(weight) F^T U.
Results are computed for every block and kept for the active ones, those with a scale above 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kradagrad_ext.block_views import gather, squared_norms, with_blocks
from kradagrad_ext.linalg import identity_like, symmetric

from .base import FALLBACKS, RMS, WEIGHT, WHITENED, BlockGroup, UpdateRule


@dataclass(frozen=True)
class _Gradients:
    """The unfoldings of one side's blocks.

    Attributes:
        unfolding: U ``[N, d, k]``, with the norm of the gradients.
        squared_norm: |U|_F^2 ``[N]``, float64.
        stretch: factor ``[N]``, float64, of the squared norm that coupling caused; 1 without coupling.
    """

    unfolding: Tensor
    squared_norm: Tensor
    stretch: Tensor

    @classmethod
    def plain(cls, unfolding: Tensor) -> _Gradients:
        norm = squared_norms(unfolding)
        return cls(unfolding, norm, torch.ones_like(norm))

    @classmethod
    def whitened_on_the_other_side(cls, product: Tensor, squared_norm: Tensor) -> _Gradients:
        """Return a product with the other side's root, scaled to the gradient's norm, or zero if it is."""
        stretch = squared_norms(product) / squared_norm
        scale = torch.where(stretch > 0, stretch.rsqrt(), 0)
        return cls(product * scale[:, None, None].to(product.dtype), squared_norm * (stretch > 0), stretch)


def update_factor_(
    factor: Tensor, statistics: Tensor, unfolding: Sequence[Tensor], scales: Tensor, rule: UpdateRule
) -> None:
    """See `Backend.update_factor_`."""
    if factor.numel() > 0 and sum(view.numel() for view in unfolding) > 0:
        u = _scaled(gather(unfolding, 2, statistics.dtype), scales)
        _update(factor, statistics, _Gradients.plain(u), scales > 0, rule)


def kron_step_(
    groups: Sequence[BlockGroup],
    scales: Tensor,
    norms: Tensor,
    rule: UpdateRule,
    *,
    update: bool,
    precondition: bool,
) -> None:
    """See `Backend.kron_step_`."""
    sizes = [len(group.left.factor) for group in groups]
    scales_by_group, norms_by_group = torch.split(scales, sizes), torch.split(norms, sizes)
    for group, group_scales, group_norms in zip(groups, scales_by_group, norms_by_group, strict=True):
        if group.left.factor.shape[-1] == 0 or group.right.factor.shape[-1] == 0:
            if precondition:
                group_norms.zero_()
            continue
        if update and len(group_scales) > 0:
            _update_both(group, group_scales, rule)
        if precondition and len(group_scales) > 0:
            _precondition(group, group_scales > 0, group_norms)


def _scaled(blocks: Tensor, scales: Tensor) -> Tensor:
    """Return each block times its scale; 0 where the scale is 0, whatever the block contains."""
    return torch.where((scales > 0)[:, None, None], scales[:, None, None] * blocks, 0)


def _update_both(group: BlockGroup, scales: Tensor, rule: UpdateRule) -> None:
    left, right = group.left, group.right
    g = _scaled(gather(group.grads, 2, left.statistics.dtype), scales)
    pairs = [(left, _Gradients.plain(g)), (right, _Gradients.plain(g.mT))]
    if rule.coupled:
        norm = squared_norms(g)
        products = (g @ right.root.to(g.dtype), (left.root.to(g.dtype) @ g).mT)
        pairs = [
            (side, _Gradients.whitened_on_the_other_side(product, norm))
            for side, product in zip((left, right), products, strict=True)
        ]
    for side, gradients in pairs:
        _update(side.factor, side.statistics, gradients, scales > 0, rule)


def _precondition(group: BlockGroup, active: Tensor, norms: Tensor) -> None:
    left, right = group.left, group.right
    d, rms = gather(group.directions, 2, norms.dtype), left.statistics[:, RMS]
    half = d @ right.root.to(d.dtype)
    half = torch.where((rms > 0)[:, None, None], half / rms[:, None, None], 0)
    product = left.root.to(d.dtype) @ half
    for view, blocks in with_blocks(group.out, 2):
        is_active = active[blocks].reshape(*view.shape[:-2], 1, 1)
        view.copy_(torch.where(is_active, product[blocks].reshape(view.shape), view))
    norms.copy_(torch.where(active, squared_norms(product).to(norms.dtype), 0))


def _update(
    factor: Tensor, statistics: Tensor, gradients: _Gradients, active: Tensor, rule: UpdateRule
) -> None:
    """Update one side, from unfoldings that have elements."""
    u, (d, k) = gradients.unfolding, gradients.unfolding.shape[-2:]
    weight, rms = _new_statistics(statistics, gradients.squared_norm / (d * k), rule)
    start = 1 / (rms * math.sqrt(rule.prior * k))
    f = factor.to(u.dtype)
    f = torch.where(statistics[:, WEIGHT, None, None] > 0, f, start[:, None, None] * identity_like(f))
    b = math.sqrt(rule.weight) * (f.mT @ u)
    damping_root = math.sqrt(rule.damped_updates * rule.weight * rule.damping * k) * rms[:, None, None] * f
    updated, fell_back = _times_inverse_root(f, b, damping_root, rule)
    updated = updated.to(factor.dtype)
    finite = rms.isfinite() & updated.isfinite().all(-1).all(-1)
    whitened = statistics[:, WEIGHT] * squared_norms(b) / (rule.weight * d) * gradients.stretch
    has_gradient = active & (gradients.squared_norm != 0)
    changed = has_gradient & finite
    factor.copy_(torch.where(changed[:, None, None], updated, factor))
    for column, new in ((RMS, rms), (WEIGHT, weight), (WHITENED, whitened)):
        old = statistics[:, column]
        old.copy_(torch.where(changed, new.to(old.dtype), old))
    statistics[:, FALLBACKS] += has_gradient & (fell_back | ~finite)


def _new_statistics(statistics: Tensor, mean_square: Tensor, rule: UpdateRule) -> tuple[Tensor, Tensor]:
    """Return w' and rms' ``[N]`` in the statistics' dtype.

    The mean is computed in float64, in which no square overflows or underflows.
    """
    old = statistics.double()
    weight = rule.decay * old[:, WEIGHT] + rule.weight
    total = rule.decay * old[:, WEIGHT] * old[:, RMS].square() + rule.weight * mean_square
    return weight.to(statistics.dtype), (total / weight).sqrt().to(statistics.dtype)


def _times_inverse_root(
    f: Tensor, b: Tensor, damping_root: Tensor, rule: UpdateRule
) -> tuple[Tensor, Tensor]:
    """Return F R, R R^T = H^-1 or above it, H = decay I + B B^T + C^T C; and ``[N]`` where Cholesky failed.

    Args:
        f: F ``[N, d, d]``.  b: B ``[N, d, k]``.  damping_root: C ``[N, d, d]``.
    """
    h = rule.decay * identity_like(f) + b @ b.mT + damping_root.mT @ damping_root
    failed = torch.zeros_like(h[:, 0, 0], dtype=torch.bool)
    if rule.method == "products":
        return f @ inverse_root_by_products(h, rule.decay, rule.refine), failed
    lower, info = torch.linalg.cholesky_ex(h)
    failed = (info != 0) & h.isfinite().all(-1).all(-1)
    if bool(failed.any()):
        decayed = math.sqrt(rule.decay) * identity_like(f).expand_as(f)[failed]
        rows = torch.cat([decayed, b.mT[failed], damping_root[failed]], -2)
        lower[failed] = torch.linalg.qr(rows, mode="r").R.mT
    return torch.linalg.solve_triangular(lower, f.mT, upper=False).mT, failed


def inverse_root_by_products(h: Tensor, decay: float, refine: int) -> Tensor:
    """Return R = q(H), near H^(-1/2) and never below it: q(decay)^2 decay = 1 and q(h)^2 h >= 1 up to |H|.

    With t = decay + |H - decay I|_F, which no eigenvalue of H exceeds, this is the coupled Newton-Schulz
    iteration on H / t, Y -> (H / t)^(1/2) and Z -> (H / t)^(-1/2), scaled by the minimax polynomial for
    eigenvalues between decay / t and 1 (Chen and Chow, 2014)::

        T = a I - b Z Y,  Y <- Y T,  Z <- T Z,    a = 1.5 s,  b = 0.5 s^3,  s^2 = 3 / (1 + f + f^2)

    f is the image of sqrt(decay / t) after the steps so far: f <- min(1, f (a - b f^2)). The product of all
    a - b f^2 is the image of decay under Z, by which Z is scaled back (docs/concepts.md, the ranges of
    q^2 h).

    Args:
        h: ``[N, d, d]``, symmetric, no eigenvalue below `decay`.
        refine: steps of the iteration; ``3 (refine - 1)`` products of symmetric matrices that commute.
    """
    identity = identity_like(h)
    size = squared_norms(h - decay * identity).sqrt()[:, None, None]
    t = decay + size
    floor, at_decay = (decay / t).sqrt(), torch.ones_like(t)
    y, z = h / t.to(h.dtype), identity
    for step in range(refine):
        s = (3 / (1 + floor + floor.square())).sqrt()
        a, b = 1.5 * s, 0.5 * s**3
        power = y if step == 0 else symmetric(z @ y)
        polynomial = a.to(h.dtype) * identity - b.to(h.dtype) * power
        z = polynomial if step == 0 else symmetric(polynomial @ z)
        if step + 1 < refine:
            y = symmetric(y @ polynomial)
        shrunk = a - b * floor.square()
        at_decay, floor = at_decay * shrunk, (floor * shrunk).clamp_max(1)
    return z * (1 / (math.sqrt(decay) * at_decay)).to(h.dtype)
