"""kron_step_ and update_factor_: from tensors to a plan of launches, and its run.

A plan depends on the rule and on the tensors' dtypes, shapes, strides and alignment. The latest ones are kept
with their tables on the device (kept_plans.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from . import entry as fields
from . import kept_plans, tuning
from .blocks import Matrices, matrices_of
from .factor_plan import Side, SideUpdate, chunk_of
from .factor_product import factor_product
from .factor_state import finish_factors, finish_norms, start_factors
from .grouped_product import grouped_product
from .groups import Group, Rule
from .launch import TYPES, Plan, Work
from .product_plan import Part, Product
from .resident_plan import is_resident, resident_work
from .slices import SCRATCH_BYTES, slices_of


class GroupPlan:
    """One group's state in scratch memory, and its works by slices of blocks."""

    def __init__(self, plan: Plan, rule: Rule, group: Group, damped: bool) -> None:
        self.plan, self.rule, self.group = plan, rule, group
        self.damped = damped
        self.grad = matrices_of(group.grad) if group.grad else None
        self.two_sided = bool(group.out)
        whole = self.part(0, group.blocks)
        self.sides = list(self._sides(whole))
        self.norm = -1
        if self.two_sided:
            self.out, self.direction = matrices_of(group.out), matrices_of(group.direction)
            self.norms = whole.tiles(grouped_product, self.out.rows, self.out.cols)
            self.norm = plan.floats(self.norms * group.blocks)

    def part(self, start: int, end: int) -> Part:
        return Part(self.plan, self.group.first_block, start, end, max(self.group.shape), self.rule)

    def _sides(self, whole: Part) -> Iterator[Side]:
        """|G|_F^2 must be known before X changes.

        It comes from the first product of a side that takes all columns at once, which of two sides the
        longer one does, or from start_factors.
        """
        held = [side for side in (self.group.left, self.group.right) if side]
        unfoldings = [self.grad] if self.group.left else []
        unfoldings += [self.grad.transposed] if self.group.right else []
        longest = max(unfoldings, key=lambda unfolding: unfolding.rows, default=None)
        energy = self._energy(longest, whole) if longest and self.damped else {}
        for side, unfolding in zip(held, unfoldings, strict=True):
            yield self._side(*side, unfolding, energy, sums=unfolding is longest and self.damped, whole=whole)

    def _energy(self, a: Matrices, whole: Part) -> dict[int, int]:
        """Where the shares of |A|_F^2 are, as words of an entry."""
        at_once = chunk_of(a.rows, a.cols, self.rule) == a.cols
        shares = whole.tiles(factor_product, a.rows, a.cols) if at_once else 1
        place = self.plan.floats(shares * self.group.blocks)
        return {fields.ENERGY.value: place, fields.ENERGIES.value: shares}

    def _side(
        self,
        factor: Tensor,
        statistics: Tensor,
        unfolding: Matrices,
        energy: Mapping[int, int],
        sums: bool,
        whole: Part,
    ) -> Side:
        d, k, blocks = unfolding.rows, unfolding.cols, self.group.blocks
        chunk = chunk_of(d, k, self.rule)
        shapes = [(d, d, False), (chunk, chunk, True)]
        most = max(whole.tiles(grouped_product, *shape) for shape in shapes)
        pending = self.plan.floats((-(-k // chunk) + 1) * blocks)
        state = {
            fields.PENDING.value: pending,
            fields.FAILED.value: self.plan.floats(blocks),
            fields.BOUND.value: self.plan.floats(max(most, whole.tiles(factor_product, d, chunk)) * blocks),
            fields.D.value: d,
            fields.STATISTICS.value: statistics.data_ptr(),
            fields.BLOCKS.value: blocks,
            fields.CHUNKS.value: -(-k // chunk),
        }
        return Side(matrices_of([factor]), unfolding, {**state, **energy}, pending, blocks, chunk, sums)

    def starts(self) -> list[Work]:
        whole, works = self.part(0, self.group.blocks), []
        for side in self.sides:
            a = side.unfolding
            words = side.state | {fields.ROWS.value: a.rows, fields.COLS.value: a.cols}
            words |= {} if side.sums else {fields.ENERGY.value: -1}
            works.append(whole.once(start_factors, {0: a, 3: side.factor}, words, TYPE=TYPES[a.dtype]))
        return works

    def finishes(self) -> tuple[list[Work], list[Work]]:
        whole = self.part(0, self.group.blocks)
        books = [whole.once(finish_factors, {}, side.state) for side in self.sides]
        words = {fields.PENDING.value: -1}
        if not self.two_sided:
            return books, []
        words |= {fields.PARTIAL.value: self.norm, fields.PARTIALS.value: self.norms}
        return books, [whole.once(finish_norms, {}, words, TYPE=TYPES[torch.float32])]

    def scratch_of_block(self) -> int:
        """Bytes that one block's works take (an upper bound)."""
        floats = self.out.rows * self.out.cols if self.two_sided else 0
        for side in self.sides:
            d, chunk = side.factor.rows, side.chunk
            floats += 2 * d * chunk + 5 * max(d, chunk) ** 2
        return 4 * floats

    def stages(self, start: int, end: int) -> list[Iterator[list[Work]]]:
        """The works of blocks `start` to `end`: sequences that do not depend on each other."""
        part = self.part(start, end)
        sequences = [SideUpdate(part, self.rule, side).stages() for side in self.sides]
        return [*sequences, *([self._two_sided(part)] if self.two_sided else [])]

    def _two_sided(self, part: Part) -> Iterator[list[Work]]:
        """W = left_root D;  P = W right_root."""
        left, right = matrices_of([self.group.left_root]), matrices_of([self.group.right_root])
        half = part.matrices(self.out.rows, self.out.cols)
        words = {fields.PENDING.value: -1}
        options = {"WEIGHTED": False, "SYMMETRIC": False}
        first = Product(grouped_product, left, self.direction, out=half, words=words, typed="AB")
        yield [part.work(first, **options, NORM=False)]
        words |= {fields.PARTIAL.value: self.norm, fields.PARTIALS.value: self.norms}
        second = Product(grouped_product, half, right, out=self.out, words=words, typed="AB")
        yield [part.work(second, **options, NORM=True)]


def plan_groups(groups: list[Group], rule: Rule, damped: bool, scratch_bytes: int = SCRATCH_BYTES) -> Plan:
    """All launches of a call."""
    plan = Plan()
    present = [group for group in groups if group.blocks and (group.grad or group.out)]
    plan.step(resident_work(group, rule) for group in present if is_resident(group, rule))
    plans = [GroupPlan(plan, rule, group, damped) for group in present if not is_resident(group, rule)]
    plan.step(work for group in plans for work in group.starts())
    mark = plan.mark()
    for parts in slices_of(plans, scratch_bytes):
        sequences = [stage for group, start, end in parts for stage in group.stages(start, end)]
        for stages in itertools.zip_longest(*sequences, fillvalue=()):
            plan.step(work for stage in stages for work in stage)
        plan.release(mark)
    for works in zip(*(group.finishes() for group in plans), strict=True):
        plan.step(work for own in works for work in own)
    return plan


def run(
    groups: list[Group],
    update: tuple[str, int, str],
    active: Tensor,
    decay: float,
    weight: float,
    damping: float,
    norms: Tensor | None = None,
) -> None:
    """Plan and launch; `update`: factor_scale, refine and precision."""
    (scale, refine, precision), architecture = update, tuning.architecture_of(active.device)
    rule = Rule(scale, refine, tuning.served(precision, architecture), architecture)
    symbols = kept_plans.Symbols()
    own, damped = [group.symbolic(symbols) for group in groups], damping > 0
    scalars = {"decay": decay, "weight": weight, "damping": damping, "norms": norms}
    key = (rule, damped, *own)
    kept_plans.run(key, symbols, lambda: plan_groups(own, rule, damped), active, scalars)
