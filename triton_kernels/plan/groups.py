"""The arguments of kron_step_ and update_factor_: the tensors of one group, and the rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .plan_cache import SymbolicTensors


@dataclass(frozen=True)
class StepRule:
    """The scalars that determine the launches, and the architecture (tuning.py).

    Args:
        damped: True if damping is added with the update.
    """

    refine: int
    coupled: bool
    damped: bool
    precision: str
    architecture: str


@dataclass(frozen=True)
class KernelGroup:
    """The tensors of N blocks ``[m, n]``; all lists of views contain the blocks in one order.

    Args:
        left, right: factor and statistics, or None.
        grad: required if there is a factor.
        direction, out, left_root, right_root: tensors of the two-sided product, or empty and None.
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
        """The sizes m and n."""
        rows, cols = (self.grad or self.out)[0].shape[-2:]
        return rows, cols

    def spec(self, specs: SymbolicTensors) -> KernelGroup:
        """Return everything that a plan may know of the group, hashable."""
        of: Any = specs.of  # specs stand in for tensors
        roots = [root if root is None else of(root) for root in (self.left_root, self.right_root)]
        sides = [side and (of(side[0]), of(side[1])) for side in (self.left, self.right)]
        lists = [tuple(map(of, views)) for views in (self.grad, self.direction, self.out)]
        return KernelGroup(self.blocks, self.first_block, lists[0], *sides, *lists[1:], *roots)
