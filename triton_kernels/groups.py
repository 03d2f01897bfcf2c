"""What a call of kron_step_ or update_factor_ gives of one group, and of its rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .kept_plans import Symbols


@dataclass(frozen=True)
class Rule:
    """The scalars that decide what is launched, and the architecture (tuning.py).

    Args:
        damped: whether damping enters with the update.
    """

    refine: int
    coupled: bool
    damped: bool
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

    def symbolic(self, symbols: Symbols) -> Group:
        """All that a plan may know of it, hashable."""
        of: Any = symbols.of  # symbols stand in for tensors
        roots = [root if root is None else of(root) for root in (self.left_root, self.right_root)]
        sides = [side and (of(side[0]), of(side[1])) for side in (self.left, self.right)]
        lists = [tuple(map(of, views)) for views in (self.grad, self.direction, self.out)]
        return Group(self.blocks, self.first_block, lists[0], *sides, *lists[1:], *roots)
