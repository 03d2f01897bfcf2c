"""The CUDA kernels of the square-root form on the PTX executor, against float64.

Every launch is checked for races, bounds and uninitialised reads (executor_backend.py); padding around
strided views is NaN.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from inputs import layouts, square_root
from inputs.square_root import check_overflow_in_rounding, compare, copied, given, group
from marks import slow
from tolerances import FACTOR, precision_atol

from kradagrad_ext.backends import square_root as reference
from kradagrad_ext.backends.base import FALLBACKS, RMS, WEIGHT, UpdateRule

from .executor_backend import Executor, GroupedExecutor, Planner

RULE = replace(square_root.RULE, method="products")
SHAPES = [(1, 1), (1, 7), (7, 33), (65, 40)]
LARGE = [pytest.param(GroupedExecutor, shape, marks=slow) for shape in ((129, 16), (33, 200), (256, 5))]
LARGE += [(Executor, shape) for shape in ((128, 128), (16, 128), (100, 5))]


@pytest.fixture(params=[GroupedExecutor, Executor], ids=["grouped", "resident"])
def executor(request: pytest.FixtureRequest) -> Executor:
    """Return a backend for blocks of up to 128 a side: grouped kernels, for any size, or resident ones."""
    return request.param()


def name_of(value: object) -> str:
    """Return a parameter's name in a test's id."""
    return getattr(value, "__name__", str(value))


def check(call: square_root.Given, executor: Executor) -> square_root.Given:
    """Run a call and compare it with the reference in float32 and float64."""
    rule = call.rule
    atol = max(precision_atol(rule.precision, rule.refine), FACTOR[call.groups[0].left.factor.dtype])
    return compare(call, executor, atol)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(executor: Executor, shape: tuple[int, int], coupled: bool) -> None:
    check(given([group(3, shape, "grid")], replace(RULE, coupled=coupled)), executor)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize(("make", "shape"), LARGE, ids=name_of)
def test_large_blocks_agree_with_float64(make: type[Executor], shape: tuple[int, int], coupled: bool) -> None:
    check(given([group(3, shape, "grid")], replace(RULE, coupled=coupled)), make())


def test_large_and_small_blocks_in_one_call() -> None:
    """Some blocks are resident, some wide, some use grouped kernels, some have no elements."""
    executor = Executor()
    shapes = [(130, 7), (20, 33), (0, 4), (5, 128), (2, 257), (2, 129)]
    check(given([group(2, shape) for shape in shapes], replace(RULE, coupled=True)), executor)
    kernels = Counter(name.removesuffix("_bf16x3") for name, _ in executor.launches)
    for side in (64, 128):
        assert kernels[f"resident_update_{side}"] == kernels[f"resident_precondition_{side}"] == 1
    assert kernels["wide_update"] == kernels["wide_precondition"] == 1
    assert kernels["square_root_product_128"] == 8


@pytest.mark.parametrize("damped_updates", [0.0, 10.0])
@pytest.mark.parametrize("refine", range(1, 7))
def test_every_step_of_the_iteration(executor: Executor, refine: int, damped_updates: float) -> None:
    rule = replace(RULE, refine=refine, damped_updates=damped_updates, precision="fp32")
    check(given([group(2, (20, 33))], rule), executor)


@pytest.mark.parametrize("precision", ["tf32x3", "fp32"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (GroupedExecutor, (40, 33)),
        (GroupedExecutor, (256, 3)),
        (Executor, (40, 33)),
        (Executor, (100, 3)),
    ],
    ids=name_of,
)
def test_every_precision(make: type[Executor], shape: tuple[int, int], precision: str) -> None:
    check(given([group(1, shape)], replace(RULE, precision=precision, coupled=True)), make())


@pytest.mark.parametrize("view_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_any_layout(executor: Executor, layout: str, view_dtype: torch.dtype) -> None:
    check(given([group(8, (5, 12), layout, view_dtype=view_dtype)], replace(RULE, coupled=True)), executor)


def test_a_factor_that_overflows_only_in_rounding_stays(executor: Executor) -> None:
    check_overflow_in_rounding(executor, 20, RULE)


def test_bfloat16_factors_and_roots(executor: Executor) -> None:
    stored = {"factor_dtype": torch.bfloat16, "root_dtype": torch.bfloat16}
    for refine, shape in ((1, (20, 33)), (2, (32, 24))):
        rule = replace(RULE, refine=refine, coupled=True)
        check(given([group(5, shape, "grid", **stored)], rule), executor)


def in_turns(side: int) -> list[square_root.BlockGroup]:
    """Return blocks of many kinds in sequence: what a CTA requests ahead differs from its current block."""
    groups = [
        group(5, (side, 20), "grid"),
        group(4, (7, side - 1), "experts", view_dtype=torch.bfloat16),
        group(3, (side - 2, 2), "several"),
        group(5, (8, side), root_dtype=torch.bfloat16),
        group(3, (side, side)),
    ]
    groups[0].left.statistics[1, WEIGHT] = groups[3].right.statistics[2, WEIGHT] = 0
    grad = groups[1].grads[0]
    grad[(0,) * grad.ndim] = math.nan
    return groups


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("refine", [2, pytest.param(1, marks=slow), pytest.param(3, marks=slow)])
@pytest.mark.parametrize("side", [64, pytest.param(96, marks=slow), pytest.param(128, marks=slow)])
def test_one_sm_takes_all_blocks_in_turns(side: int, refine: int, coupled: bool) -> None:
    """One SM gives the same bits as many, which take one block each."""
    call = given(in_turns(side), replace(RULE, coupled=coupled, refine=refine))
    call.scales[[0, 1, 6, 7, 8, 19]] = 0
    one, many = Executor(seed=3), Executor()
    one.multiprocessors, many.multiprocessors = 1, 100
    one.shared_limit = many.shared_limit = 227 << 10
    ours, same = check(call, one), square_root.run(many, copied(call))
    for (_, few, *_), (_, all_at_once, *_) in zip(one.planned, many.planned, strict=True):
        assert 4 * few < all_at_once
    for a, b in zip(ours.groups, same.groups, strict=True):
        for ours_side, same_side in ((a.left, b.left), (a.right, b.right)):
            assert torch.equal(ours_side.factor, same_side.factor)
            assert torch.equal(ours_side.statistics, same_side.statistics)
        assert all(map(torch.equal, a.out, b.out))
    assert torch.equal(ours.norms, same.norms)


@pytest.mark.parametrize("calls", [{"update": False}, {"precondition": False}], ids=str)
def test_one_half_of_a_step(executor: Executor, calls: dict[str, bool]) -> None:
    check(given([group(3, (9, 40))], replace(RULE, coupled=True), **calls), executor)


def several() -> list[Any]:
    return [
        group(5, (20, 7)),
        group(3, (3, 2), "several"),
        group(2, (0, 4)),
        group(0, (4, 4)),
        group(4, (16, 33), "experts"),
    ]


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("refine", [1, 3])
def test_slices_of_scratch_memory_change_nothing(refine: int, coupled: bool) -> None:
    """Several groups, some of them empty, give the same bits in one slice and in many."""
    call = given(several(), replace(RULE, refine=refine, coupled=coupled))
    whole, sliced = GroupedExecutor(), GroupedExecutor(seed=7, scratch_bytes=40_000)
    one, other = check(call, whole), square_root.run(sliced, copied(call))
    assert len(sliced.launches) > 2 * len(whole.launches)
    for a, b in zip(one.groups, other.groups, strict=True):
        for side in ("left", "right"):
            assert torch.equal(getattr(a, side).factor, getattr(b, side).factor)
            assert torch.equal(getattr(a, side).statistics, getattr(b, side).statistics)
        for view, same in zip(a.out, b.out, strict=True):
            assert torch.equal(view, same)
    assert torch.equal(one.norms, other.norms)


def test_several_groups_and_none(executor: Executor) -> None:
    check(given(several(), replace(RULE, coupled=True)), executor)


def test_one_side_alone(executor: Executor) -> None:
    """Call `update_factor_`, which ignores coupling."""
    side = square_root.trained_side(4, 20, 33, torch.float32, torch.float32)
    ours, plain = (
        replace(side, factor=side.factor.clone(), statistics=side.statistics.clone()) for _ in range(2)
    )
    unfolding, scales = layouts.transposed_grid(torch.randn(4, 20, 33)), torch.tensor([1, 0.3, 0, 1.7])
    rule = replace(RULE, coupled=True, precision="fp32")
    executor.update_factor_(ours.factor, ours.statistics, unfolding, scales, rule)
    reference.update_factor_(plain.factor, plain.statistics, unfolding, scales, rule)
    torch.testing.assert_close(ours.factor, plain.factor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.statistics, plain.statistics, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-17, 1e30])
@pytest.mark.parametrize("coupled", [False, True])
def test_gradients_of_any_scale(executor: Executor, coupled: bool, scale: float) -> None:
    """No gradient is squared unscaled: the first and the second update equal those of gradients near 1."""
    rule = replace(RULE, coupled=coupled, precision="fp32")
    usual, scaled = given([group(5, (9, 20))], rule), given([group(5, (9, 20))], rule)
    for calls, factor in ((usual, 1.0), (scaled, scale)):
        scaled_group = calls.groups[0]
        scaled_group.left.statistics.zero_()
        scaled_group.right.statistics.zero_()
        scaled_group.left.root.copy_(usual.groups[0].left.root)
        scaled_group.right.root.copy_(usual.groups[0].right.root)
        for name in ("grads", "directions"):
            getattr(scaled_group, name)[0].copy_(getattr(usual.groups[0], name)[0] * factor)
    for _ in range(2):
        square_root.run(executor, usual)
        square_root.run(executor, scaled)
    for one, other in (
        (usual.groups[0].left, scaled.groups[0].left),
        (usual.groups[0].right, scaled.groups[0].right),
    ):
        assert one.statistics[usual.active, WEIGHT].gt(0).all()
        torch.testing.assert_close(
            other.statistics[:, RMS] / scale, one.statistics[:, RMS], rtol=1e-5, atol=0
        )
        torch.testing.assert_close(
            square_root.x_in_units(other), square_root.x_in_units(one), rtol=1e-3, atol=1e-3
        )
    torch.testing.assert_close(scaled.norms, usual.norms, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, 0.0])
def test_what_is_not_finite_leaves_the_block_and_is_counted(
    executor: Executor, value: float, coupled: bool
) -> None:
    """A gradient of zeros leaves the block, too, but is not counted."""
    call = given([group(4, (6, 9))], replace(RULE, coupled=coupled))
    call.groups[0].grads[0][1] = value
    call = replace(call, scales=torch.ones(4))
    expected, ours = (square_root.run(ops, copied(call)) for ops in (reference, executor))
    for name in ("left", "right"):
        before, plain, after = (getattr(c.groups[0], name) for c in (call, expected, ours))
        assert torch.equal(after.factor[1], before.factor[1])
        assert torch.equal(after.statistics[1, :FALLBACKS], before.statistics[1, :FALLBACKS])
        assert torch.equal(after.statistics[:, FALLBACKS], plain.statistics[:, FALLBACKS])
        assert not torch.equal(after.factor[0], before.factor[0])


def kernels(
    rule: UpdateRule, shapes: list[tuple[int, int]], shared_limit: int = 163 << 10, **calls: bool
) -> Counter[str]:
    """Count the launches of each kernel in the plan of a call, by name without precision."""
    planner = Planner()
    planner.shared_limit = shared_limit
    square_root.run(planner, given([group(1, shape) for shape in shapes], rule, **calls))
    return Counter(name.removesuffix(f"_{rule.precision}") for name, *_ in planner.planned)


@pytest.mark.parametrize(("refine", "iteration"), [(1, 0), (2, 3), (3, 5), (6, 11)])
def test_launches_of_grouped_kernels(refine: int, iteration: int) -> None:
    """B, M, F R, the iteration and both halves of the product: as many for one group as for three."""
    for shapes in ([(129, 7)], [(20, 33), (7, 7), (200, 5)]):
        launches = kernels(replace(RULE, refine=refine), shapes, shared_limit=0)
        assert launches.pop("square_root_product_128") == 5 + iteration
        assert launches == dict.fromkeys(("gradient_norms", "start_sides", "finish_sides", "finish_norms"), 1)
    assert kernels(RULE, [(257, 3)], update=False) == {"square_root_product_128": 2, "finish_norms": 1}
    half = replace(RULE, precision="tf32x3")
    assert kernels(half, [(257, 3)], update=False) == {"square_root_product_64": 2, "finish_norms": 1}


def test_launches_of_resident_kernels() -> None:
    """The blocks of each side, 64, 96 or 128, take one launch for all updates and one for all products."""
    small, middle, long = [(20, 33), (64, 1), (1, 64)], [(3, 65), (96, 96)], [(97, 3), (128, 128)]
    for sides, shapes in (
        ((64,), small),
        ((96,), middle),
        ((128,), long),
        ((64, 96, 128), small + middle + long),
    ):
        updates = {f"resident_update_{side}": 1 for side in sides}
        products = {f"resident_precondition_{side}": 1 for side in sides}
        assert kernels(replace(RULE, coupled=True), shapes) == updates | products
        assert kernels(RULE, shapes, precondition=False) == updates
        assert kernels(RULE, shapes, update=False) == products
    assert kernels(RULE, [(0, 200)]) == {"resident_precondition_64": 1}


@pytest.mark.parametrize(
    ("shape", "precision", "multiprocessors", "updates", "products"),
    [
        ((128, 128), "bf16x3", 4, 4, 4),
        ((128, 16), "bf16x3", 4, 3, 4),
        ((16, 128), "bf16x3", 5, 5, 5),
        ((64, 8), "bf16x3", 4, 8, 8),
        ((64, 8), "tf32x3", 4, 4, 4),
        ((8, 200), "bf16x3", 4, 3, 4),
    ],
    ids=str,
)
def test_ctas_fill_a_gpu_and_take_both_sides(
    shape: tuple[int, int], precision: str, multiprocessors: int, updates: int, products: int
) -> None:
    """A block's sides are neighbours: each of an even number of CTAs would take left or right ones alone."""
    planner = Planner()
    planner.multiprocessors = multiprocessors
    square_root.run(planner, given([group(40, shape)], replace(RULE, precision=precision)))
    ctas = [count for _, count, *_ in planner.planned]
    assert ctas == [updates, products]


def test_shared_memory_decides_which_blocks_are_resident() -> None:
    """If a side of 96 or 128 does not fit, wide kernels take blocks of more than 64 in bf16x3."""
    launches = kernels(RULE, [(64, 64), (65, 3)], shared_limit=100 << 10)
    assert launches.keys() == {
        "resident_update_64",
        "resident_precondition_64",
        "wide_update",
        "wide_precondition",
    }
    launches = kernels(replace(RULE, precision="fp32"), [(64, 64), (65, 3)], shared_limit=100 << 10)
    assert {"resident_update_64", "resident_precondition_64", "square_root_product_128"} <= launches.keys()
    three_matrices = replace(RULE, refine=3)
    assert "resident_update_128" not in kernels(three_matrices, [(128, 128)])
    assert "resident_update_128" in kernels(three_matrices, [(128, 128)], shared_limit=227 << 10)
    assert not any(name.startswith("resident") for name in kernels(RULE, [(4, 4)], shared_limit=32 << 10))
