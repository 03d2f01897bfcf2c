"""kron_step_ and update_factor_ in the square-root form: from tensors to a plan of launches, and its run.

All groups go through the same stages: gradients and directions are read first, factors are written next to
last, and the second half of the two-sided product, which divides by their statistics, comes last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import triton.language as tl
from torch import Tensor

from . import entry as fields
from . import kept_plans, side_state
from .blocks import Matrices, matrices_of
from .factor_state import finish_norms
from .gram import gram
from .groups import Group, SquareRootRule
from .launch import TYPES, Plan, Work
from .product_plan import Part, Product, in_vectors
from .scaled_product import scaled_product
from .side_state import square_gradients
from .slices import SCRATCH_BYTES, slices_of
from .square_root_plan import SquareRootSide, SquareRootUpdate, scaled, squares_of


class SquareRootGroup:
    """One group's state in scratch memory, and its works by slices of blocks."""

    def __init__(self, plan: Plan, rule: SquareRootRule, group: Group) -> None:
        self.plan, self.rule, self.group = plan, rule, group
        self.whole = self.part(0, group.blocks)
        self.rows, self.cols = group.shape
        roots = (group.left_root, group.right_root)
        self.left_root, self.right_root = (root if root is None else matrices_of([root]) for root in roots)
        self.grad = matrices_of(list(group.grad)) if group.grad else None
        self.energy = self._sums(square_gradients, fields.ENERGY, fields.ENERGIES)
        self.sides = list(self._sides(self.grad)) if self.grad else []
        self.out = matrices_of(list(group.out)) if group.out else None
        self.norms = self._sums(scaled_product, fields.PARTIAL, fields.PARTIALS)

    def part(self, start: int, end: int) -> Part:
        return Part(self.plan, self.group.first_block, start, end, max(self.group.shape), self.rule)

    def _sums(self, kernel: Any, place: Any, number: Any) -> dict[int, int]:  # noqa: ANN401
        """Room for a share of every tile of the blocks, as words of an entry."""
        count = self.whole.tiles(kernel, self.rows, self.cols)
        return {place.value: self.plan.doubles(count * self.group.blocks), number.value: count}

    def _sides(self, grad: Matrices) -> Iterator[SquareRootSide]:
        coupled = self.rule.coupled
        if self.group.left:
            yield self._side(*self.group.left, grad, self.right_root if coupled else None)
        if self.group.right:
            whitening = self.left_root.transposed if self.left_root and coupled else None
            yield self._side(*self.group.right, grad.transposed, whitening)

    def _side(
        self, factor: Tensor, statistics: Tensor, unfolding: Matrices, whitening: Matrices | None
    ) -> SquareRootSide:
        d, blocks, tiles = unfolding.rows, self.group.blocks, self.whole.tiles
        bounds = tiles(gram, d, d, symmetric=True)
        across, square = tiles(scaled_product, d, unfolding.cols), tiles(scaled_product, d, d)
        words = {
            fields.STATE.value: self.plan.floats(side_state.ARRAYS.value * blocks),
            fields.BLOCKS.value: blocks,
            fields.STATISTICS.value: statistics.data_ptr(),
            **self.energy,
            fields.BOUND.value: self.plan.doubles(bounds * blocks),
            fields.BOUNDS.value: bounds,
            fields.WHITENED.value: self.plan.doubles(across * blocks),
            fields.WHITENEDS.value: across,
        }
        stretched, finished = (self.plan.doubles(count * blocks) for count in (across, square))
        return SquareRootSide(matrices_of([factor]), unfolding, whitening, words, stretched, finished)

    def scratch_of_block(self) -> int:
        """Bytes that one block's works take (an upper bound)."""
        block = self.rows * self.cols
        floats = block if self.out else 0
        for side in self.sides:
            floats += (2 if side.whitening else 1) * block + squares_of(self.rule) * side.factor.rows**2
        return 4 * floats

    def stages(self, start: int, end: int) -> Iterator[list[Work]]:
        """The works of blocks `start` to `end`, a list for each launch that the next waits for."""
        part = self.part(start, end)
        half = part.matrices(self.rows, self.cols) if self.out else None
        updates = [SquareRootUpdate(part, self.rule, side) for side in self.sides]
        first = [work for update in updates for work in update.whitened_gradients()]
        if self.grad:
            first.append(self._square_gradients(part, self.grad))
        if half:
            direction = matrices_of(list(self.group.direction))
            first.append(self._half(part, direction, self.right_root, half))
        yield first
        for works in zip(*(update.stages() for update in updates), strict=True):
            yield [work for own in works for work in own]
        if half:
            yield [self._half(part, self.left_root, half, self.out, last=True)]

    def _square_gradients(self, part: Part, grad: Matrices) -> Work:
        words = {
            fields.ROWS.value: self.rows,
            fields.COLS.value: self.cols,
            fields.TILE_COLS.value: part.tiles(square_gradients, 1, self.cols),
            fields.PARTIAL.value: self.energy[fields.ENERGY.value],
            fields.PARTIALS.value: self.energy[fields.ENERGIES.value],
        }
        constants = {"A_TYPE": TYPES[grad.dtype], "A_ORDER": grad.order}
        vector = in_vectors((self.rows, self.cols), {0: grad})
        tiles = part.tiles(square_gradients, self.rows, self.cols)
        return part.once(square_gradients, {0: grad}, words, tiles, **constants, VECTOR=vector)

    def _half(self, part: Part, a: Any, b: Any, out: Any, last: bool = False) -> Work:  # noqa: ANN401
        """D P_r, or P_l (D P_r) / rms and its norm."""
        words = {fields.STATE.value: -1, **self.norms}
        if last and self.group.left:
            words[fields.STATISTICS.value] = self.group.left[1].data_ptr()
        product = Product(scaled_product, a, b, out=out, words=words, typed="AB")
        return scaled(part, product, "rms" if last else "one", norm=last)

    def norms_of_out(self) -> list[Work]:
        words = {fields.STATE.value: -1, **self.norms}
        return [self.whole.once(finish_norms, {}, words, TYPE=tl.float64)] if self.out else []


def plan_groups(groups: list[Group], rule: SquareRootRule, scratch_bytes: int = SCRATCH_BYTES) -> Plan:
    """All launches of a call on groups of blocks that have elements."""
    plan = Plan()
    plans = [SquareRootGroup(plan, rule, group) for group in groups]
    mark = plan.mark()
    for parts in slices_of(plans, scratch_bytes):
        for stages in zip(*(group.stages(start, end) for group, start, end in parts), strict=True):
            plan.step(work for stage in stages for work in stage)
        plan.release(mark)
    plan.step(work for group in plans for work in group.norms_of_out())
    return plan


def run(groups: list[Group], rule: SquareRootRule, active: Tensor, scalars: Mapping[str, Any]) -> None:
    """Plan and launch; `scalars`: the kernels' arguments by name."""
    symbols = kept_plans.Symbols()
    symbolic = [group.symbolic(symbols) for group in groups]
    kept_plans.run((rule, *symbolic), symbols, lambda: plan_groups(symbolic, rule), active, scalars)
