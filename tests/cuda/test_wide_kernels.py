"""The kernels for blocks of 129 to 256 a side on the PTX executor, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inputs import layouts, square_root
from inputs.roots import BOUND, error, root_side
from inputs.square_root import check_overflow_in_rounding, compare, given, group
from marks import slow, slow_after
from tolerances import FACTOR, precision_atol

from kradagrad_ext import polar
from kradagrad_ext.backends.base import RESIDUAL, RootRule, RootSide, Side, Turn

from .executor_backend import Executor, Planner

RULE = replace(square_root.RULE, method="products")
COUPLED = replace(RULE, coupled=True)


def check(call: square_root.Given, executor: Executor | None = None) -> Executor:
    """Run a call and compare it with the reference in float32 and float64."""
    executor, rule = executor or Executor(), call.rule
    atol = max(precision_atol(rule.precision, rule.refine), FACTOR[call.groups[0].left.factor.dtype])
    compare(call, executor, atol)
    assert {name.split("_")[0] for name, _ in executor.launches} == {"wide"}
    return executor


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize(("rows", "columns"), slow_after(3, [(130, 7), (20, 200), (129, 145), (256, 256)]))
def test_agrees_with_float64(rows: int, columns: int, coupled: bool) -> None:
    """There are more blocks than CTAs: each CTA takes several, in order."""
    check(given([group(5, (rows, columns), "grid")], replace(RULE, coupled=coupled)))


@pytest.mark.parametrize("damped_updates", [0.0, 10.0])
@pytest.mark.parametrize("refine", range(1, 6))
def test_every_step_of_the_iteration(refine: int, damped_updates: float) -> None:
    check(given([group(2, (130, 20))], replace(RULE, refine=refine, damped_updates=damped_updates)))


@pytest.mark.parametrize("view_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_any_layout(layout: str, view_dtype: torch.dtype) -> None:
    check(given([group(4, (12, 132), layout, view_dtype=view_dtype)], COUPLED))


def test_bfloat16_factors_and_roots() -> None:
    stored = {"factor_dtype": torch.bfloat16, "root_dtype": torch.bfloat16}
    check(given([group(3, (131, 9), "grid", **stored)], COUPLED))


def test_a_factor_that_overflows_only_in_rounding_stays() -> None:
    check_overflow_in_rounding(Executor(), 132, RULE)


@pytest.mark.parametrize("calls", [{"update": False}, {"precondition": False}], ids=str)
def test_one_half_of_a_step(calls: dict[str, bool]) -> None:
    check(given([group(3, (9, 140))], COUPLED, **calls))


def test_two_launches_whatever_the_number_of_groups() -> None:
    executor = check(given([group(2, (130, 7)), group(3, (140, 3)), group(1, (5, 129))], COUPLED))
    assert [name for name, _ in executor.launches] == ["wide_update", "wide_precondition"]


@pytest.mark.parametrize("d", slow_after(2, [129, 150, 256]))
def test_roots_agree_with_float64(d: int) -> None:
    side, executor = root_side(4, d), Executor()
    executor.polar_roots_([side], RootRule(polar.POLYNOMIALS[8], BOUND), Turn())
    assert [name for name, _ in executor.launches] == ["wide_root"]
    assert error(side) < precision_atol("bf16x3", 2)
    assert torch.equal(side.side.root, side.side.root.mT)
    assert (side.root_stats[:, 0] == 0).all()


@pytest.mark.parametrize("d", [260, pytest.param(390, marks=slow), pytest.param(520, marks=slow)])
def test_roots_of_longer_sides(d: int) -> None:
    """The same kernel takes larger matrices; sides of up to 256, 512 and 1024 have a launch each."""
    executor, sides = Executor(), [root_side(1, 132), root_side(2, d)]
    executor.polar_roots_(sides, RootRule(polar.POLYNOMIALS[6], BOUND), Turn())
    assert [name for name, _ in executor.launches] == ["wide_root", "wide_root"]
    for side in sides:
        assert error(side) < 2e-3
        assert torch.equal(side.side.root, side.side.root.mT)
        assert (side.root_stats[:, 0] == 0).all()


@slow
def test_longer_sides_in_turns() -> None:
    """One SM makes the roots of sides of several lengths in order, as accurately as many SMs."""
    executor, sides = Executor(), [root_side(1, 300), root_side(2, 260)]
    executor.multiprocessors = 1
    executor.polar_roots_(sides, RootRule(polar.POLYNOMIALS[8], BOUND), Turn())
    assert [ctas for _, ctas, *_ in executor.planned] == [1]
    assert max(map(error, sides)) < precision_atol("bf16x3", 2)


def test_memory_of_wide_roots_is_bounded() -> None:
    """At 1024 a side, a CTA takes 16 MB, and all CTAs at most 2 GB."""

    def untouched(blocks: int, d: int) -> RootSide:
        side = Side(*(torch.empty(blocks, *shape) for shape in ((d, d), (4,), (d, d))))
        return RootSide(side, torch.empty(blocks, 4), torch.ones(blocks, dtype=torch.bool), 5)

    planner = Planner()
    planner.multiprocessors = 200
    rule = RootRule(polar.POLYNOMIALS[8], BOUND)
    planner.polar_roots_([untouched(300, 257), untouched(140, 513)], rule, Turn())
    assert [(name, ctas) for name, ctas, *_ in planner.planned] == [("wide_root", 200), ("wide_root", 128)]


def test_a_bad_factor_keeps_its_root_and_turns_are_taken() -> None:
    side = root_side(5, 130, dtypes=(torch.float32, torch.bfloat16))
    side.root_stats[:, RESIDUAL] = 1  # all have roots
    side.side.factor[3] = torch.nan
    Executor().polar_roots_([side], RootRule(polar.POLYNOMIALS[8], BOUND), Turn(1, 2))
    made = (side.side.root != 7).flatten(1).any(1)
    assert made.tolist() == [True, False, False, False, True]
    assert side.root_stats[:, 0].tolist() == [0, 0, 0, 1, 0]
