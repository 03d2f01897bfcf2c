"""The definition of correct: every op of `base.py` in plain PyTorch, on any device.

Written to be read next to the paper (Mei, Moreno, Walters, UAI 2023); X, A, N, C, S are its letters.
Results are computed for every block and kept for the active ones, so nothing here looks at a value on the
host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import FALLBACK_REFINE, PRECISIONS
from .downdate import exact_downdate, identity_like, krad_downdate, unit_of

name = "reference"


def available(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """None: the reference runs everywhere."""
    return None


def _gather(views: list[Tensor], dtype: torch.dtype) -> Tensor:
    """A list of block views [*, m, n] as one batch [N, m, n]."""
    return torch.cat([view.reshape(math.prod(view.shape[:-2]), *view.shape[-2:]) for view in views]).to(dtype)


def _looking_is_free(device: torch.device) -> bool:
    return device.type == "cpu"


def _downdate(factor: Tensor, a: Tensor, factor_scale: str, refine: int) -> tuple[Tensor, Tensor, Tensor]:
    """One chunk of the update: the new factors, which blocks took it as asked, and which took any."""
    if factor_scale != "exact":
        updated, succeeded = krad_downdate(factor, a, factor_scale, refine)
        return torch.where(succeeded[:, None, None], updated, factor), succeeded, succeeded
    updated, succeeded = exact_downdate(factor, a)
    if _looking_is_free(factor.device) and bool(succeeded.all()):
        return updated, succeeded, succeeded
    fallback, finite = krad_downdate(factor, a, "frobenius", FALLBACK_REFINE)
    fallback = torch.where(finite[:, None, None], fallback, factor)
    return torch.where(succeeded[:, None, None], updated, fallback), succeeded, succeeded | finite


def update_factor_(
    factor: Tensor,
    statistics: Tensor,
    unfolding: list[Tensor],
    active: Tensor,
    decay: float,
    weight: float,
    damping: float,
    factor_scale: str,
    refine: int,
    precision: str,
) -> None:
    """See `Backend.update_factor_`."""
    _check_precision("update_factor_", precision)
    a = _gather(unfolding, factor.dtype) if unfolding else factor[:, :, :0]
    if factor.numel() == 0 or a.numel() == 0:
        return
    mean, fallbacks = statistics.unbind(-1)
    x, unit, usable = factor, torch.ones_like(mean)[:, None, None], torch.ones_like(active)
    if damping > 0:
        x, new_mean, unit, started = _track_mean(factor, mean, a, decay, damping)
        active = active & ~(new_mean <= 0)
        usable = new_mean.isfinite() & started
        mean.copy_(torch.where(active & usable, new_mean, mean))
    d, k = a.shape[-2:]
    whole = factor_scale != "exact" and refine == 0
    a = a * (math.sqrt(weight) * unit)
    x, succeeded, changed = x / decay / unit.square(), usable, torch.zeros_like(active)
    for chunk in torch.split(a, k if whole else max(d, 64), -1):
        x, chunk_succeeded, chunk_changed = _downdate(x, chunk, factor_scale, refine)
        succeeded = succeeded & chunk_succeeded
        changed = changed | chunk_changed
    factor.copy_(torch.where((active & usable & changed)[:, None, None], x * unit.square(), factor))
    fallbacks.add_(active & ~succeeded)


def _track_mean(
    factor: Tensor, mean: Tensor, a: Tensor, decay: float, damping: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X, started where this is the first gradient; the new mean of tr(S) / d; the unit; which X started."""
    scale = a.square().sum((-2, -1)) / a.shape[-2]
    first = mean == 0
    diagonal = 1 / (damping * scale)
    start = torch.where(identity_like(factor) > 0, diagonal[:, None, None], 0)
    x = torch.where((first & (scale > 0))[:, None, None], start, factor)
    new_mean = torch.where(first, scale, decay * mean + (1 - decay) * scale)
    unit = unit_of(damping * torch.where(first, scale, mean))
    return x, new_mean, unit, ~first | diagonal.isfinite()


def kron_step_(
    left: list[Tensor],
    right: list[Tensor],
    left_statistics: list[Tensor],
    right_statistics: list[Tensor],
    out: list[Tensor],
    norms: Tensor,
    grad: list[Tensor],
    direction: list[Tensor],
    left_root: list[Tensor],
    right_root: list[Tensor],
    active: Tensor,
    decay: float,
    weight: float,
    damping: float,
    factor_scale: str,
    refine: int,
    precision: str,
    update: bool,
) -> None:
    """See `Backend.kron_step_`."""
    _check_precision("kron_step_", precision)
    rule = (decay, weight, damping, factor_scale, refine, precision)
    sizes = [len(factor) for factor in left]
    actives, norms_of = torch.split(active, sizes), torch.split(norms, sizes)
    # All lists are cut before anything is written.
    grads = by_group("grad", grad, sizes) if update else []
    directions = by_group("direction", direction, sizes) if out else []
    results = by_group("out", out, sizes) if out else []
    for i, views in enumerate(grads):
        transposed = [view.mT for view in views]
        update_factor_(left[i], left_statistics[i], views, actives[i], *rule)
        update_factor_(right[i], right_statistics[i], transposed, actives[i], *rule)
    for i, (own, written) in enumerate(zip(directions, results, strict=True)):
        _two_sided(left_root[i], right_root[i], own, written, norms_of[i], actives[i])


def _check_precision(op: str, precision: str) -> None:
    if precision not in PRECISIONS:
        expected = f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
        raise RuntimeError(f"{op}: `precision` must be {expected}, got {precision}")


def by_group(name: str, views: list[Tensor], sizes: list[int]) -> list[list[Tensor]]:
    """A list of block views cut into the groups' own; views of no blocks are passed over.

    Raises:
        RuntimeError: a view holds blocks of two groups, or the list too few or too many.
    """
    rest = [(view, math.prod(view.shape[:-2])) for view in reversed(views)]
    rest = [(view, blocks) for view, blocks in rest if blocks > 0]
    groups = []
    for i, size in enumerate(sizes):
        own: list[Tensor] = []
        held = 0
        while held < size and rest:
            view, blocks = rest.pop()
            own.append(view)
            held += blocks
        if held != size:
            expected = f"views of {size} blocks for group {i}"
            raise RuntimeError(f"kron_step_: `{name}` must be {expected}, got {held} blocks")
        groups.append(own)
    if rest:
        raise RuntimeError(f"kron_step_: `{name}` must be views of the groups' blocks, got {len(rest)} more")
    return groups


def _two_sided(
    left_root: Tensor,
    right_root: Tensor,
    direction: list[Tensor],
    out: list[Tensor],
    norms: Tensor,
    active: Tensor,
) -> None:
    """P = left_root D right_root and its norms, for the active blocks of one group."""
    if not direction:
        return
    blocks = _gather(direction, norms.dtype)
    product = left_root.to(norms.dtype) @ blocks @ right_root.to(norms.dtype)
    norms.copy_(torch.where(active, product.square().sum((-2, -1)), 0))
    start = 0
    for view in out:
        grid = view.shape[:-2]
        end = start + math.prod(grid)
        keep = active[start:end].reshape(*grid, 1, 1)
        view.copy_(torch.where(keep, product[start:end].reshape(view.shape), view))
        start = end


def precondition(blocks: Tensor, roots: list[Tensor]) -> Tensor:
    """See `Backend.precondition`."""
    product = blocks.clone()
    for mode, root in enumerate(roots, start=1):
        if root.numel() > 0:
            unfolded = product.movedim(mode, 1)
            moved = root.to(blocks.dtype) @ unfolded.reshape(*unfolded.shape[:2], -1)
            product = moved.reshape(unfolded.shape).movedim(1, mode)
    return product.contiguous()


def _graft_update(direction: Tensor, second_moment: Tensor | None, coefficients: Tensor) -> Tensor:
    """c0 d / (sqrt(c1 v) + c2), 0 where the denominator is 0; c0 d without a second moment."""
    c0, c1, c2, _ = coefficients.unbind()
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
        g = grads[i].to(dtype)
        if l2 != 0:
            g = g + l2 * params[i].to(dtype)
        d = g
        if momenta:
            d = beta1 * momenta[i] + (1 - beta1) * g
            momenta[i].copy_(torch.where(keep, d, momenta[i]))
            if nesterov:
                d = beta1 * d + (1 - beta1) * g
        if directions:
            directions[i].copy_(torch.where(keep, d, directions[i]))
        v = None
        if second_moments:
            v = beta2 * second_moments[i] + weight2 * g.square()
            second_moments[i].copy_(torch.where(keep, v, second_moments[i]))
        norm = _graft_update(d, v, coefficients[i]).square().sum()
        graft_norms[i] = torch.where(keep, norm, 0)


def parameter_step_(
    params: list[Tensor],
    momenta: list[Tensor],
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
        u = _graft_update(directions[i], second_moments[i] if second_moments else None, coefficients[i])
        if updates[i].numel() > 0:
            scale = coefficients[i, 3]
            u = torch.where(scale.isfinite(), scale * updates[i], u)
        u = u + l2 * p
        if momenta:
            buffer = momentum * momenta[i] + u
            momenta[i].copy_(torch.where(keep, buffer, momenta[i]))
            u = u + momentum * buffer if nesterov else buffer
        p = (1 - lr * decay) * p - lr * u
        params[i].copy_(torch.where(keep, p.to(params[i].dtype), params[i]))


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """See `Backend.eigh`."""
    values, vectors = torch.linalg.eigh(matrices)
    return values, vectors
