"""kron_step_ and update_factor_ in the square-root form: from tensors to a plan of launches, and its run.

Groups of small blocks are one launch (square_root_resident.py). All others go through the same stages:
gradients and directions are read first, factors are written next to last, and the second half of the
two-sided product, which divides by their statistics, comes last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from . import entry as fields
from . import kept_plans, side_state, tuning
from .blocks import Matrices, matrices_of
from .gram import gram
from .groups import Group, Rule
from .launch import TYPES, Plan, Work
from .product_plan import Part, in_vectors
from .scaled_product import scaled_product
from .side_state import finish_norms, square_gradients
from .slices import SCRATCH_BYTES, slices_of
from .square_root_plan import SquareRootSide, SquareRootUpdate, scaled, squares_of
from .square_root_resident_plan import is_in_vectors, is_resident, resident_work


class TwoSidedProduct:
    """V = P_l (D P_r) / rms and |V|_F^2 of a group's blocks."""

    def __init__(self, whole: Part, group: Group) -> None:
        self.direction, self.out = matrices_of(list(group.direction)), matrices_of(list(group.out))
        self.left_root, self.right_root = matrices_of([group.left_root]), matrices_of([group.right_root])
        self.whole = whole
        tiles = whole.tiles(scaled_product, self.out.rows, self.out.cols)
        self.words = {
            fields.STATISTICS.value: group.left[1].data_ptr(),
            fields.PARTIAL.value: whole.plan.doubles(tiles * group.blocks),
            fields.PARTIALS.value: tiles,
        }

    def half(self, part: Part) -> Matrices:
        """Scratch memory for D P_r."""
        return part.matrices(self.out.rows, self.out.cols)

    def first(self, part: Part, half: Matrices) -> Work:
        return scaled(part, "one", self.direction, self.right_root, half, self.words)

    def second(self, part: Part, half: Matrices) -> Work:
        return scaled(part, "rms", self.left_root, half, self.out, self.words, norm=True)

    def norms(self) -> Work:
        return self.whole.once(finish_norms, {}, self.words)


class SquareRootGroup:
    """One group's state in scratch memory, and its works by slices of blocks."""

    def __init__(self, plan: Plan, rule: Rule, group: Group) -> None:
        self.plan, self.rule, self.group = plan, rule, group
        self.shape = tuning.shape_class(max(group.shape), is_in_vectors(group))
        self.whole = self.part(0, group.blocks)
        self.rows, self.cols = group.shape
        self.grad = matrices_of(list(group.grad)) if group.grad else None
        self.sides = list(self._sides(self.grad)) if self.grad else []
        self.product = TwoSidedProduct(self.whole, group) if group.out else None

    def part(self, start: int, end: int) -> Part:
        return Part(self.plan, self.group.first_block, start, end, self.shape, self.rule)

    def _sides(self, grad: Matrices) -> Iterator[SquareRootSide]:
        tiles = self.whole.tiles(square_gradients, self.rows, self.cols)
        place = self.plan.doubles(tiles * self.group.blocks)
        self.energy = {fields.ENERGY.value: place, fields.ENERGIES.value: tiles}
        roots, coupled = (self.group.left_root, self.group.right_root), self.rule.coupled
        left, right = (matrices_of([root]) if coupled else None for root in roots)
        yield self._side(*self.group.left, grad, right)
        if self.group.right:
            yield self._side(*self.group.right, grad.transposed, left and left.transposed)

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
        floats = block if self.product else 0
        for side in self.sides:
            floats += (2 if side.whitening else 1) * block + squares_of(self.rule) * side.factor.rows**2
        return 4 * floats

    def stages(self, start: int, end: int) -> Iterator[list[Work]]:
        """The works of blocks `start` to `end`, a list for each launch that the next waits for."""
        part, product = self.part(start, end), self.product
        updates = [SquareRootUpdate(part, self.rule, side) for side in self.sides]
        first = [work for update in updates for work in update.whitened_gradients()]
        if self.grad:
            first.append(self._square_gradients(part, self.grad))
        if product:
            half = product.half(part)
            first.append(product.first(part, half))
        yield first
        for works in zip(*(update.stages() for update in updates), strict=True):
            yield [work for own in works for work in own]
        if product:
            yield [product.second(part, half)]

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


def plan_groups(groups: list[Group], rule: Rule, scratch_bytes: int = SCRATCH_BYTES) -> Plan:
    """All launches of a call on groups of blocks that have elements."""
    plan = Plan()
    plan.step(resident_work(group, rule) for group in groups if is_resident(group, rule))
    plans = [SquareRootGroup(plan, rule, group) for group in groups if not is_resident(group, rule)]
    mark = plan.mark()
    for parts in slices_of(plans, scratch_bytes):
        for stages in zip(*(group.stages(start, end) for group, start, end in parts), strict=True):
            plan.step(work for stage in stages for work in stage)
        plan.release(mark)
    plan.step(group.product.norms() for group in plans if group.product)
    return plan


def run(groups: list[Group], rule: Rule, scales: Tensor, scalars: Mapping[str, Any]) -> None:
    """Plan and launch; `scalars`: the kernels' arguments by name."""
    symbols = kept_plans.Symbols()
    symbolic = [group.symbolic(symbols) for group in groups]
    kept_plans.run((rule, *symbolic), symbols, lambda: plan_groups(symbolic, rule), scales, scalars)
