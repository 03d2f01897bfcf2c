"""What a call of kron_step_ or update_factor_ gives of one group, and of its rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """The scalars that decide what is launched, and the architecture (tuning.py)."""

    factor_scale: str
    refine: int
    precision: str
    architecture: str


@dataclass(frozen=True)
class Group:
    """N blocks ``[m, n]``; lists of views hold them in one order.

    Args:
        left, right: factor and statistics, or None.
        grad: needed where there is a factor.
        direction, out, left_root, right_root: of the two-sided product, or empty and None.
    """

    blocks: int
    first_block: int
    grad: Sequence[Tensor]
    left: tuple[Tensor, Tensor] | None = None
    right: tuple[Tensor, Tensor] | None = None
    direction: Sequence[Tensor] = ()
    out: Sequence[Tensor] = ()
    left_root: Tensor | None = None
    right_root: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """m and n."""
        rows, cols = (self.grad or self.out)[0].shape[-2:]
        return rows, cols
