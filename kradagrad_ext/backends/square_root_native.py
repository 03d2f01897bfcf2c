"""The ops on factors in the square-root form, in C++; values are flattened into the schema here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import native, square_root
from .base import BlockGroup, UpdateRule


def update_factor_(
    factor: Tensor, statistics: Tensor, unfolding: Sequence[Tensor], active: Tensor, rule: UpdateRule
) -> None:
    """See `SquareRootOps.update_factor_`. On CUDA, whose kernels have no Cholesky, that is torch's."""
    if rule.method == "cholesky" and statistics.device.type == "cuda":
        square_root.update_factor_(factor, statistics, unfolding, active, rule)
        return
    native.op("square_root_update_")(factor, statistics, list(unfolding), active, *_flat(rule))


def kron_step_(
    groups: Sequence[BlockGroup],
    active: Tensor,
    norms: Tensor,
    rule: UpdateRule,
    *,
    update: bool,
    precondition: bool,
) -> None:
    """See `SquareRootOps.kron_step_`; updates by Cholesky as in `update_factor_`."""
    if update and rule.method == "cholesky" and norms.device.type == "cuda":
        square_root.kron_step_(groups, active, norms, rule, update=update, precondition=precondition)
        return
    rooted = groups if precondition or (update and rule.coupled) else ()
    written = groups if precondition else ()
    native.op("square_root_step_")(
        [group.left.factor for group in groups],
        [group.right.factor for group in groups],
        [group.left.statistics for group in groups],
        [group.right.statistics for group in groups],
        [view for group in written for view in group.out],
        norms,
        [view for group in groups for view in group.grads] if update else [],
        [view for group in written for view in group.directions],
        [group.left.root for group in rooted],
        [group.right.root for group in rooted],
        active,
        *_flat(rule),
        update,
        precondition,
    )


def _flat(rule: UpdateRule) -> tuple[object, ...]:
    """The rule in the schema's order."""
    return (
        rule.decay,
        rule.weight,
        rule.damping,
        rule.damped_updates,
        rule.method,
        rule.refine,
        rule.precision,
        rule.coupled,
    )
