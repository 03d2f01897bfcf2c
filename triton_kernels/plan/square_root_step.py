"""kron_step_ and update_factor_ in the square-root form: plans of launches from tensors, and their run.

A group of small blocks is one launch (square_root_resident.py). All other groups have the same stages:
gradients and directions are read first, factors are written next to last, and the second half of the
two-sided product, which divides by their statistics, comes last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from .. import entry, side_state
from ..gram import gram
from ..scaled_product import scaled_product
from ..side_state import finish_norms, square_gradients
from . import plan_cache, tuning
from .groups import KernelGroup, StepRule
from .launch import TYPES, BlockWork, Plan
from .product import DepthRange, in_vectors
from .resident import is_in_vectors, is_resident, resident_work
from .slices import SCRATCH_BYTES, slices_of
from .square_root import SquareRootSide, SquareRootUpdate, scaled, squares_of
from .views import Matrices, matrices_of


class TwoSidedProduct:
    """V = P_l (D P_r) / rms and |V|_F^2 of a group's blocks."""

    def __init__(self, whole: DepthRange, group: KernelGroup) -> None:
        self.direction, self.out = matrices_of(list(group.direction)), matrices_of(list(group.out))
        self.left_root, self.right_root = matrices_of([group.left_root]), matrices_of([group.right_root])
        self.whole = whole
        tiles = whole.tiles(scaled_product, self.out.rows, self.out.cols)
        self.fields = {
            entry.STATISTICS.value: group.left[1].data_ptr(),
            entry.PARTIAL.value: whole.plan.doubles(tiles * group.blocks),
            entry.PARTIALS.value: tiles,
        }

    def half(self, part: DepthRange) -> Matrices:
        """Reserve scratch memory for D P_r."""
        return part.matrices(self.out.rows, self.out.cols)

    def first(self, part: DepthRange, half: Matrices) -> BlockWork:
        return scaled(part, "one", self.direction, self.right_root, half, self.fields)

    def second(self, part: DepthRange, half: Matrices) -> BlockWork:
        return scaled(part, "rms", self.left_root, half, self.out, self.fields, norm=True)

    def norms(self) -> BlockWork:
        return self.whole.per_block_work(finish_norms, {}, self.fields)


class SquareRootGroup:
    """One group's state in scratch memory, and its works by slices of blocks."""

    def __init__(self, plan: Plan, rule: StepRule, group: KernelGroup) -> None:
        self.plan, self.rule, self.group = plan, rule, group
        self.shape = tuning.shape_class(max(group.shape), is_in_vectors(group))
        self.whole = self.part(0, group.blocks)
        self.rows, self.cols = group.shape
        self.grad = matrices_of(list(group.grad)) if group.grad else None
        self.sides = list(self._sides(self.grad)) if self.grad else []
        self.product = TwoSidedProduct(self.whole, group) if group.out else None

    def part(self, start: int, end: int) -> DepthRange:
        return DepthRange(self.plan, self.group.first_block, start, end, self.shape, self.rule)

    def _sides(self, grad: Matrices) -> Iterator[SquareRootSide]:
        tiles = self.whole.tiles(square_gradients, self.rows, self.cols)
        offset = self.plan.doubles(tiles * self.group.blocks)
        self.squared_norm = {entry.SQUARED_NORM.value: offset, entry.SQUARED_NORMS.value: tiles}
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
        fields = {
            entry.STATE.value: self.plan.floats(side_state.ARRAYS.value * blocks),
            entry.BLOCKS.value: blocks,
            entry.STATISTICS.value: statistics.data_ptr(),
            **self.squared_norm,
            entry.BOUND.value: self.plan.doubles(bounds * blocks),
            entry.BOUNDS.value: bounds,
            entry.WHITENED.value: self.plan.doubles(across * blocks),
            entry.WHITENEDS.value: across,
        }
        stretched, finished = (self.plan.doubles(count * blocks) for count in (across, square))
        return SquareRootSide(matrices_of([factor]), unfolding, whitening, fields, stretched, finished)

    def scratch_of_block(self) -> int:
        """Return an upper bound of the bytes that one block's works take."""
        block = self.rows * self.cols
        floats = block if self.product else 0
        for side in self.sides:
            floats += (2 if side.whitening else 1) * block + squares_of(self.rule) * side.factor.rows**2
        return 4 * floats

    def stages(self, start: int, end: int) -> Iterator[list[BlockWork]]:
        """Yield the works of blocks `start` to before `end` in stages, each waiting for the one before."""
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
            yield [work for works_of_side in works for work in works_of_side]
        if product:
            yield [product.second(part, half)]

    def _square_gradients(self, part: DepthRange, grad: Matrices) -> BlockWork:
        fields = {
            entry.ROWS.value: self.rows,
            entry.COLS.value: self.cols,
            entry.TILE_COLS.value: part.tiles(square_gradients, 1, self.cols),
            entry.PARTIAL.value: self.squared_norm[entry.SQUARED_NORM.value],
            entry.PARTIALS.value: self.squared_norm[entry.SQUARED_NORMS.value],
        }
        constants = {"A_TYPE": TYPES[grad.dtype], "A_ORDER": grad.order}
        vector = in_vectors((self.rows, self.cols), {0: grad})
        tiles = part.tiles(square_gradients, self.rows, self.cols)
        return part.per_block_work(square_gradients, {0: grad}, fields, tiles, **constants, VECTOR=vector)


def plan_groups(groups: list[KernelGroup], rule: StepRule, scratch_bytes: int = SCRATCH_BYTES) -> Plan:
    """Plan all launches of a call on groups of blocks that have elements."""
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


def run(groups: list[KernelGroup], rule: StepRule, scales: Tensor, scalars: Mapping[str, Any]) -> None:
    """Plan and launch a call; `scalars`: the kernels' arguments by name."""
    specs = plan_cache.SymbolicTensors()
    group_specs = [group.spec(specs) for group in groups]
    plan_cache.run((rule, *group_specs), specs, lambda: plan_groups(group_specs, rule), scales, scalars)
