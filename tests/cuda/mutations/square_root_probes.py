"""Small calls of kron_step_ in the square-root form; mutants of its kernels are run on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from inputs import layouts, square_root
from inputs.square_root import Given, copied, given, group
from tolerances import FACTOR, assert_as_accurate, precision_atol
from torch import Tensor

from cuda.executor_backend import Executor, GroupedExecutor
from kradagrad_ext.backends import square_root as reference
from kradagrad_ext.backends.base import Side, UpdateRule

RULE = replace(square_root.RULE, method="products")


@dataclass(frozen=True, eq=False)
class SquareRootProbe:
    """One call of kron_step_."""

    name: str
    call: Given
    executor: type[Executor]

    def run(self, backend: Any) -> Given:
        return square_root.run(backend, copied(self.call))

    def check(self, ours: Given) -> None:
        """Raise AssertionError if a result is not accurate enough or something else was written.

        The matrices are such that errors do not grow from step to step.
        """
        atol = max(precision_atol(self.call.rule.precision, 1), FACTOR[self.call.groups[0].left.factor.dtype])
        square_root.check(self.call, ours, atol)

    def same_bits(self, one: Given, other: Given) -> bool:
        pairs = [(one.norms, other.norms)]
        for a, b in zip(one.groups, other.groups, strict=True):
            for side, same in ((a.left, b.left), (a.right, b.right)):
                pairs += [(side.factor, same.factor), (side.statistics, same.statistics)]
            pairs += zip(a.out, b.out, strict=True)
        return all(torch.equal(first.nan_to_num(), second.nan_to_num()) for first, second in pairs)


@dataclass(frozen=True, eq=False)
class OneSideProbe:
    """A call of update_factor_, with an odd number of work items, which kron_step_ never has."""

    name: str
    side: Side
    unfolding: list[Tensor]
    scales: Tensor
    rule: UpdateRule
    executor = Executor

    def run(self, backend: Any, dtype: torch.dtype = torch.float32) -> Side:
        side = Side(
            self.side.factor.to(dtype, copy=True), self.side.statistics.to(dtype, copy=True), self.side.root
        )
        unfolding = [layouts.copied(view, dtype) for view in self.unfolding]
        backend.update_factor_(side.factor, side.statistics, unfolding, self.scales.to(dtype), self.rule)
        return side

    def check(self, ours: Side) -> None:
        """Raise AssertionError if X or a column of the statistics is not accurate enough."""
        results = ours, self.run(reference), self.run(reference, torch.float64)
        atol = precision_atol(self.rule.precision, self.rule.refine)
        assert_as_accurate(*(square_root.x_in_units(side) for side in results), "X", atol)
        for column in range(4):
            assert_as_accurate(*(side.statistics[:, column] for side in results), f"column {column}", atol)

    def same_bits(self, one: Side, other: Side) -> bool:
        return torch.equal(one.factor, other.factor) and torch.equal(one.statistics, other.statistics)


@dataclass(frozen=True, eq=False)
class OverflowProbe:
    """A call in which new elements of a factor are finite in float32 but not in bfloat16."""

    name: str
    executor = Executor

    def run(self, backend: Any) -> bool:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                square_root.check_overflow_in_rounding(backend, 20, RULE)
            except AssertionError:
                return False
        return True

    def check(self, ours: bool) -> None:
        assert ours

    def same_bits(self, one: bool, other: bool) -> bool:
        return one == other


RULES = {
    "three steps, coupled": replace(RULE, refine=3, coupled=True),
    "one step": replace(RULE, refine=1),
    "two steps, undamped": replace(RULE, damped_updates=0.0),
}


def make(executor: type[Executor], side: int, precision: str = "bf16x3") -> list[SquareRootProbe]:
    """Return calls with several tiles and groups.

    Blocks are before their first gradient, without one, not finite, or inactive.
    """
    calls = {}
    rules = {name: replace(rule, precision=precision) for name, rule in RULES.items()}
    for name, rule in rules.items():
        groups = [group(7, (side, 20), "grid"), group(5, (9, 33), "experts", view_dtype=torch.bfloat16)]
        calls[name] = given(groups, rule)
        _spoil(calls[name])
    tiny = given([group(5, (9, 20))], rules["three steps, coupled"])
    for half in (tiny.groups[0].left, tiny.groups[0].right):
        half.statistics.zero_()
    for view in (*tiny.groups[0].grads, *tiny.groups[0].directions):
        view.mul_(1e-30)
    calls["gradients of 1e-30"] = tiny
    calls["no update"] = given(
        [group(5, (9, 20), "several"), group(3, (9, 33), "wide_rows")],
        replace(RULE, precision=precision),
        update=False,
    )
    return [SquareRootProbe(name, call, executor) for name, call in calls.items()]


def one_side() -> OneSideProbe:
    """Return a call with strong damping, so that a new factor has weight.

    The gradient is zero in the second block, not finite in the last one, and in the one before that much
    smaller than in the block beside it.
    """
    side = square_root.trained_side(7, 20, 33, torch.float32, torch.float32)
    gradients = torch.randn(7, 20, 33)
    gradients[1], gradients[6] = 0, math.nan
    gradients[5] *= 1e-25
    scales = torch.tensor([1, 0.3, 0, 1.7, 1, 1, 1])
    rule = replace(RULES["one step"], damped_updates=1e4)
    return OneSideProbe("one side", side, layouts.transposed_grid(gradients), scales, rule)


class TurnsExecutor(Executor):
    """The executor on a GPU of one multiprocessor, which holds two CTAs of small blocks or one of others.

    Each CTA takes several work items, of either kind.
    """

    multiprocessors = 1
    shared_limit = 227 << 10


def grouped() -> list[SquareRootProbe]:
    """Return calls in the precision with small tiles, so that there are several tiles."""
    return make(GroupedExecutor, 70, "tf32x3")


def resident() -> list[SquareRootProbe]:
    """Return calls for resident kernels.

    They have factors and roots in bfloat16, whose rows are aligned or not; gradients of zeros and of 1e12;
    blocks that fill all tiles of a row or of a column; and a single block, which fills all tiles.
    """
    stored = {"factor_dtype": torch.bfloat16, "root_dtype": torch.bfloat16}
    rounded = given(
        [group(5, (20, 33), **stored), group(5, (32, 24), **stored), group(2, (64, 64))], RULES["one step"]
    )
    rounded.groups[1].grads[0][2] = 0  # other blocks follow
    edges = given([group(1, (28, 64)), group(1, (64, 28))], RULES["one step"])
    large = [group(6, (64, 64), root_dtype=torch.bfloat16), group(4, (60, 60))]
    large[0].grads[0][1] = 0
    large[1].grads[0][1] = 0
    copied_roots = given(large, replace(RULES["one step"], coupled=True))
    damped = replace(RULE, coupled=True, damped_updates=1e4)
    spike = given([group(2, (20, 9))], RULE, precondition=False)
    spike.groups[0].grads[0].mul_(1e12)
    return [
        *make(TurnsExecutor, 50),
        one_side(),
        OverflowProbe("overflow in rounding"),
        SquareRootProbe("bfloat16", rounded, TurnsExecutor),
        SquareRootProbe("full rows or columns", edges, Executor),
        SquareRootProbe("roots that are copied, of either dtype", copied_roots, TurnsExecutor),
        SquareRootProbe("a spike", spike, Executor),
        SquareRootProbe("one block, much damped", given([group(1, (64, 64))], damped), Executor),
    ]


def long(side: int) -> list[SquareRootProbe]:
    """Return calls with blocks of one long side, left or right, whose last tile is ragged or full.

    One block has a gradient of zeros, and others follow it.
    """
    calls = {}
    for name, rule in RULES.items():
        groups = [group(3, (side - 3, 9), "grid"), group(2, (20, side), view_dtype=torch.bfloat16)]
        groups[0].grads[0][0, 1] = 0
        calls[name] = given(groups, rule)
    return [SquareRootProbe(name, call, TurnsExecutor) for name, call in calls.items()]


def wide() -> list[SquareRootProbe]:
    """Return calls with blocks of more than 128 a side, which outnumber the CTAs.

    Some gradients are zero or not finite, some tensors are in bfloat16.
    """
    stored = {"factor_dtype": torch.bfloat16, "root_dtype": torch.bfloat16}
    usual = [group(3, (131, 9), "grid"), group(1, (20, 150), view_dtype=torch.bfloat16)]
    usual[0].grads[0][0, 1] = math.nan
    usual[0].grads[0][0, 2] = 0
    usual[0].left.statistics[1] = 0
    usual[1].left.factor[0, 0, 0] = math.nan
    rounded = [group(1, (9, 131), "wide_rows", **stored), group(1, (136, 8), view_dtype=torch.bfloat16)]
    rounded[0].left.statistics[0] = 0
    calls = {
        "three steps, coupled": given(usual, RULES["three steps, coupled"]),
        "one step": given(rounded, RULES["one step"]),
        "two steps, undamped": given([group(1, (130, 131))], RULES["two steps, undamped"]),
    }
    calls["three steps, coupled"].scales.copy_(torch.tensor([0, 1, 1.7, 1]))
    return [SquareRootProbe(name, call, Executor) for name, call in calls.items()]


def _spoil(call: Given) -> None:
    """Set one gradient of each group to zero, and NaN in one gradient, in all of one, and in a factor."""
    blocks = call.groups[0].grads[0]
    flat = [blocks[i, j] for i in range(blocks.shape[0]) for j in range(blocks.shape[1])]
    flat[4].zero_()
    flat[1][3, 2] = math.nan
    flat[3].fill_(math.nan)
    call.groups[0].left.factor[5, 0, 0] = math.nan
    next(iter(call.groups[1].grads))[0, 0, 1].zero_()
