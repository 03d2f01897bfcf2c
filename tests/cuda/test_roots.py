"""resident_root on the PTX executor, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from inputs.roots import BOUND, RULE, error, root_side
from marks import slow
from tolerances import precision_atol

from kradagrad_ext import polar
from kradagrad_ext.backends import native
from kradagrad_ext.backends.base import PRECISIONS, REFUSALS, RESIDUAL, WEIGHT, RootRule, RootSide, Turn

from . import toolchain
from .executor_backend import Executor


@pytest.mark.parametrize("d", [1, 7, 16, 33, 64, 65, 96, 100, 128])
def test_agrees_with_float64(d: int) -> None:
    side = root_side(3 if d <= 64 else 1, d)
    Executor().polar_roots_([side], RULE, Turn())
    assert error(side) < precision_atol("bf16x3", 2)
    assert (side.root_stats[:, RESIDUAL] < 1e-3).all()
    assert (side.root_stats[:, REFUSALS] == 0).all()
    assert torch.equal(side.side.root, side.side.root.mT)


@pytest.mark.parametrize("precision", ["tf32x3", "fp32"])
@pytest.mark.parametrize("d", [40, 100])
def test_every_precision(d: int, precision: str) -> None:
    side = root_side(1, d)
    Executor().polar_roots_([side], RootRule(polar.POLYNOMIALS[8], BOUND, precision), Turn())
    assert error(side) < 2e-5


def test_stored_in_bfloat16() -> None:
    side = root_side(2, 20, dtypes=(torch.bfloat16, torch.bfloat16))
    Executor().polar_roots_([side], RULE, Turn())
    assert error(side) < 2**-8


def test_turns_and_blocks_that_take_no_part() -> None:
    """Three of seven blocks take each turn, cyclically; inactive ones and ones without a gradient stay."""
    side = root_side(7, 9)
    side.root_stats[:, RESIDUAL] = 1
    side.active[6] = False
    side.side.statistics[0, WEIGHT] = 0
    Executor().polar_roots_([side], RULE, Turn(2, 3))
    assert made_of(side) == [1]
    other = root_side(7, 9)
    other.root_stats[:, RESIDUAL] = 1
    Executor().polar_roots_([other], RULE, Turn(0, 3, torch.tensor(4)))
    assert made_of(other) == [0, 5, 6]


@pytest.mark.parametrize("turns", [0, 3, 100])
@pytest.mark.parametrize("multiprocessors", [1, 100])
def test_blocks_without_a_root_are_due_in_any_case(multiprocessors: int, turns: int) -> None:
    """Except inactive ones and ones without a gradient. There are more blocks than a warp checks at once."""
    sides, same = ([root_side(90, 5), root_side(3, 7)] for _ in range(2))
    for side in (*sides, *same):
        side.root_stats[:, RESIDUAL] = 1
        side.root_stats[[2, -1], RESIDUAL] = 0
    for first in (sides[0], same[0]):
        first.root_stats[[40, 70, 80], RESIDUAL] = 0
        first.active[70] = False
        first.side.statistics[80, WEIGHT] = 0
    executor = Executor()
    executor.multiprocessors = multiprocessors
    executor.polar_roots_(sides, RULE, Turn(4, turns))
    polar.polar_roots_(same, RULE, Turn(4, turns))
    for side, like in zip(sides, same, strict=True):
        assert made_of(side) == made_of(like)
        assert {2, len(side.active) - 1} <= set(made_of(side))
        assert torch.equal(side.root_stats == 0, like.root_stats == 0)
    assert made_of(sides[0]) != list(range(90))


def made_of(side: RootSide) -> list[int]:
    """Return the numbers of the blocks whose roots were made."""
    return (side.side.root != 7).flatten(1).any(1).nonzero().flatten().tolist()


def test_a_residual_of_zero_differs_from_no_root() -> None:
    """F = I in its unit: P is I without an error, and its residual is stored as a small positive number."""
    side = root_side(1, 1)
    side.side.factor[:] = 1 / polar.units(side.side.statistics, side.columns)
    Executor().polar_roots_([side], RULE, Turn())
    assert 0 < side.root_stats[0, RESIDUAL] < 1e-6


@pytest.mark.parametrize("longest", [64, pytest.param(96, marks=slow), pytest.param(128, marks=slow)])
def test_one_sm_makes_all_roots_in_turns(longest: int) -> None:
    """One SM gives the same bits as many, which make one root each; the next factor is requested ahead."""
    calls = []
    for multiprocessors in (1, 100):
        torch.manual_seed(0)
        sides = [root_side(5, longest), root_side(3, longest - 1), root_side(6, longest - 4)]
        sides[0].active[[0, 4]] = False
        sides[1].side.factor[1] = math.nan
        executor = Executor(seed=multiprocessors)
        executor.multiprocessors = multiprocessors
        executor.polar_roots_(sides, RULE, Turn())
        ((_, ctas, *_),) = executor.planned
        calls.append((ctas, sides))
    (few, ours), (many, same) = calls
    assert 3 * few < many
    assert error(ours[2]) < precision_atol("bf16x3", 2)
    for a, b in zip(ours, same, strict=True):
        assert torch.equal(a.side.root, b.side.root)
        assert torch.equal(a.root_stats, b.root_stats)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_python_knows_which_sides_fit(precision: str) -> None:
    """Python and the plans agree for any amount of shared memory."""
    for kilobytes in range(256):
        for shared in (kilobytes << 10, (kilobytes << 10) - 1):
            planned = toolchain.plans().longest_root_side(precision, shared)
            assert native._root_side_within(shared, precision) == planned, shared


@pytest.mark.parametrize("what", [0.0, math.nan, math.inf])
def test_bad_factors_are_refused(what: float) -> None:
    side = root_side(3, 20)
    side.side.factor[1] = what
    Executor().polar_roots_([side], RULE, Turn())
    assert (side.side.root[1] == 7).all()
    assert side.root_stats[:, REFUSALS].tolist() == [0, 1, 0]
    assert side.root_stats[1, RESIDUAL] == math.inf


def test_a_rough_root_is_refused() -> None:
    side = root_side(1, 20)
    Executor().polar_roots_([side], RootRule(polar.POLYNOMIALS[8][:1], BOUND), Turn())
    assert (side.side.root == 7).all()
    assert side.root_stats[0, REFUSALS] == 1
    assert BOUND < side.root_stats[0, RESIDUAL] < math.inf


def test_one_launch_a_size() -> None:
    executor = Executor()
    sides = [root_side(2, 20), root_side(1, 64), root_side(1, 70), root_side(1, 100), root_side(0, 8)]
    executor.polar_roots_(sides, RULE, Turn())
    assert [name for name, _ in executor.launches] == [
        f"resident_root_{side}_bf16x3" for side in (64, 96, 128)
    ]
    for side in sides:
        assert error(side) < precision_atol("bf16x3", 2)


@pytest.mark.parametrize("d", [64, 96, 128])
def test_least_traffic(d: int) -> None:
    """Read F once and write P once; the second read of F, for the residual, hits the L2 cache."""
    executor, least = Executor(), 2 * d**2 * 4
    executor.polar_roots_([root_side(2, d)], RULE, Turn())
    ((_, launch),) = executor.launches
    counters = launch.counters
    assert counters.footprint_read_bytes + counters.footprint_write_bytes < 1.01 * 2 * least
    assert 32 * (counters.global_read_sectors + counters.global_write_sectors) < 1.55 * 2 * least
