"""Options of parameter groups that are no named arguments of `KrADagrad`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TypedDict

from .config import OPTIONS


class GroupOptions(TypedDict, total=False):
    """Options that belong to a parameter group's shapes, and those that few users change.

    They are keys of parameter groups. As keywords of `KrADagrad` they apply to all parameters.

    Shapes:
        precondition: False leaves the group's parameters to the grafting method.
        precondition_1d: precondition vectors, too.
        merge_dims: multiply neighbouring small dims before cutting blocks.
        batch_dims: number of leading dims that count matrices: 1 for experts' weights ``[experts, m, n]``.
        split, split_dim: the parts of one dim, as a number of equal parts or the length of each; for example
            queries, keys and values in one matrix. No block crosses from one part into the next.

    Seldom changed:
        exponent: power 1/p of the inverse statistics on every mode; None is 1/2 for matrices and vectors,
            1/k for blocks of k modes.
        start_step: first step that is preconditioned; earlier steps take the grafting method's update.
        momentum_on: ``gradient`` (average, then precondition) or ``update`` (the paper's order: heavy-ball
            momentum of the finished update).
        decoupled_weight_decay: False adds the decay before the momentum.
        refine: number of iteration steps, 1 to 6, that bring an update by products close to the exact one.
        precision: of float32 products on tensor cores: ``bf16x3``, ``tf32x3`` or ``fp32``.
    """

    precondition: bool
    precondition_1d: bool
    merge_dims: bool
    batch_dims: int
    split: int | Sequence[int]
    split_dim: int
    exponent: float | None
    start_step: int
    momentum_on: str
    decoupled_weight_decay: bool
    refine: int
    precision: str


GROUP_DEFAULTS = GroupOptions(
    precondition=True,
    precondition_1d=False,
    merge_dims=True,
    batch_dims=0,
    split=1,
    split_dim=0,
    exponent=None,
    start_step=1,
    momentum_on="gradient",
    decoupled_weight_decay=True,
    refine=2,
    precision="bf16x3",
)


def check_group_options(options: Mapping[str, object]) -> None:
    """Raise TypeError for a keyword that is no option of `GroupOptions`."""
    for name in options:
        if name not in GROUP_DEFAULTS:
            near = difflib.get_close_matches(name, ("lr", *OPTIONS), n=1)
            raise TypeError(
                f"KrADagrad: keywords must be options, got `{name}`"
                + "".join(f"; is `{meant}` meant?" for meant in near)
            )
