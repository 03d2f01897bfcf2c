"""Health of an optimizer's factors and roots. Counting costs a step nothing; reading waits for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from .grafting import FALLBACKS, SKIPPED
from .roots import REFUSALS


def _total(tensors: Iterable[Tensor]) -> int:
    return int(sum((tensor.sum().double().cpu() for tensor in tensors), torch.zeros((), dtype=torch.float64)))


def _held(items: Iterable[tuple[str, Tensor]], prefix: str) -> Iterable[Tensor]:
    """What this rank holds of the tensors whose key begins so: of a sharded one, some pieces."""
    return [part for key, t in items if key.startswith(prefix) for part in getattr(t, "parts", [t])]


def report(optimizer: Optimizer) -> list[dict[str, int]]:
    """Counts since the start of training, one dict for every parameter group.

    Of a sharded optimizer, the last two are of this rank's blocks.

    Returns:
        ``steps``: of the group. ``non_finite_gradients``: gradients skipped because they held NaN or Inf,
        over all parameters. ``graft_fallbacks``: preconditioned updates that were zero or not finite, so
        that the grafting method's was taken. ``factor_fallbacks``: exact factor updates whose Cholesky
        failed. ``roots_kept``: refreshes of a block's root that failed their check.
    """
    reports = []
    for group in optimizer.param_groups:
        states = [optimizer.state[p] for p in group["params"] if optimizer.state.get(p)]
        items = [item for state in states for item in state.items()]
        reports.append(
            {
                "steps": group["step"],
                "non_finite_gradients": _total(state["scalars"][SKIPPED] for state in states),
                "graft_fallbacks": _total(state["scalars"][FALLBACKS] for state in states),
                "factor_fallbacks": _total(t[..., 1] for t in _held(items, "statistics_")),
                "roots_kept": _total(t[..., REFUSALS] for t in _held(items, "checks_")),
            }
        )
    return reports
