"""Small calls of polar_roots_ that mutants of its kernels are run on."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from inputs.roots import RULE, root_side
from tolerances import ATOL, assert_as_accurate, precision_atol

from cuda.executor_backend import Executor
from kradagrad_ext import polar
from kradagrad_ext.backends.base import REFUSALS, RESIDUAL, WEIGHT, RootRule, RootSide, Side, Turn

from .square_root_probes import TurnsExecutor

Sides = list[RootSide]


def copied(sides: Sides, dtype: torch.dtype | None = None) -> Sides:
    """Return copies of the sides, in another dtype if one is given."""

    def copy(old: torch.Tensor) -> torch.Tensor:
        return old.to(dtype or old.dtype, copy=True)

    return [
        RootSide(
            Side(copy(side.side.factor), copy(side.side.statistics), copy(side.side.root)),
            copy(side.root_stats),
            side.active.clone(),
            side.columns,
        )
        for side in sides
    ]


@dataclass(frozen=True, eq=False)
class RootProbe:
    """One call of polar_roots_."""

    name: str
    sides: Sides
    rule: RootRule = RULE
    turn: Turn = field(default_factory=Turn)
    executor: type[Executor] = TurnsExecutor

    def run(self, backend: Any, dtype: torch.dtype | None = None) -> Sides:
        sides = copied(self.sides, dtype)
        backend.polar_roots_(sides, self.rule, self.turn)
        return sides

    @functools.cached_property
    def expected(self) -> tuple[Sides, Sides]:
        return self.run(polar), self.run(polar, torch.float64)

    def check(self, ours: Sides) -> None:
        """Raise AssertionError if a root is not accurate enough or something else was written."""
        for before, *results in zip(self.sides, ours, *self.expected, strict=True):
            after, _, exact = results
            assert torch.equal(before.side.factor.nan_to_num(), after.side.factor.nan_to_num())
            assert torch.equal(before.side.statistics, after.side.statistics)
            assert torch.equal(after.side.root, after.side.root.mT)
            dtype = after.side.root.dtype
            atol = max(ATOL[dtype], precision_atol(self.rule.precision, 1))
            for block, roots in enumerate(zip(*(result.side.root for result in results), strict=True)):
                assert_as_accurate(*roots, f"root of block {block}", atol)
            assert torch.equal(after.root_stats[:, REFUSALS].double(), exact.root_stats[:, REFUSALS])
            residuals = [result.root_stats[:, RESIDUAL].double() for result in (after, exact)]
            torch.testing.assert_close(*residuals, rtol=1e-2, atol=1e-3)
            assert torch.equal(*(residual == 0 for residual in residuals))

    def same_bits(self, one: Sides, other: Sides) -> bool:
        return all(
            torch.equal(a.root_stats, b.root_stats) and torch.equal(a.side.root, b.side.root)
            for a, b in zip(one, other, strict=True)
        )


def _spoiled(d: int) -> RootSide:
    """Return a side with blocks that are inactive, without a gradient, not finite, and zero."""
    side = root_side(6, d)
    side.active[1] = False
    side.side.statistics[2, WEIGHT] = 0
    side.side.factor[3, 0, 0] = math.nan
    side.side.factor[4] = 0
    return side


def _exact() -> RootSide:
    """Return a side of one block whose root has no error."""
    side = root_side(1, 1)
    side.side.factor[:] = 1 / polar.units(side.side.statistics, side.columns)
    return side


def _known(side: RootSide, new: Sequence[int] = ()) -> RootSide:
    """Return the same side with roots from earlier steps, except for the blocks `new`."""
    side.root_stats[:, RESIDUAL] = 0.5
    side.root_stats[list(new), RESIDUAL] = 0
    return side


def small(precision: str = "bf16x3") -> list[RootProbe]:
    """Return calls with several sides, a refused block, turns, inactive blocks, storage in bfloat16."""
    rule = replace(RULE, precision=precision)
    rough = RootRule(polar.POLYNOMIALS[8][:1], RULE.bound, precision)
    stored = (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)
    rounded = [root_side(2, d, dtypes=dtypes) for d in (33, 24) for dtypes in stored]
    last = root_side(3, 9)
    last.side.factor[2] = math.inf
    return [
        RootProbe("rough", [root_side(1, 64)], rough),
        RootProbe("several sides", [_spoiled(50), last], rule),
        RootProbe("turn 2 of 3", [_known(root_side(7, 9)), _known(root_side(4, 20), [3])], rule, Turn(2, 3)),
        RootProbe("a turn by the counter", [_known(root_side(5, 9))], rule, Turn(0, 3, torch.tensor(4))),
        RootProbe("new blocks", [_known(root_side(300, 2), [1, 266, 299]), _exact()], rule, Turn(5, 99)),
        RootProbe("bfloat16", rounded, rule),
    ]


def large(side: int) -> list[RootProbe]:
    """Return calls with a side too long for the kernel of smaller ones, and with a rough root of it."""
    rough = replace(RULE, polynomials=polar.POLYNOMIALS[8][:2])
    return [
        RootProbe("two steps", [root_side(1, side)], rough),
        RootProbe("all steps", [root_side(3, side - 3)]),
    ]


def wide() -> list[RootProbe]:
    """Return calls with more blocks than CTAs, one not finite, one inactive, turns, storage in bfloat16."""
    rough = replace(RULE, polynomials=polar.POLYNOMIALS[8][:2])
    several = root_side(4, 130)
    several.active[0::2] = False
    several.side.factor[1, 0, 0] = math.nan
    stored = root_side(2, 136, dtypes=(torch.bfloat16,) * 2)
    return [
        RootProbe("two steps", [root_side(1, 200)], rough, executor=Executor),
        RootProbe("all steps", [several], executor=Executor),
        RootProbe("a turn", [_known(stored)], turn=Turn(1, 2), executor=Executor),
    ]
