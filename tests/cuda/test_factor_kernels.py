"""The CUDA kernels of kron_step_ and update_factor_ on the PTX executor, against float64.

Every launch is checked for races, bounds and uninitialised reads (executor_backend.py); padding around
strided views is NaN.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import test_kron_step
import test_update_factor
import torch
from marks import slow_after
from test_kron_step import SCALARS, compare, inputs, merged, run
from tolerances import assert_as_accurate, precision_atol

from kradagrad_ext.backends import reference

from .executor_backend import Executor, Planner

RESIDENT = [(1, 1), (1, 7), (7, 33), (33, 33), (65, 17), (16, 128), (100, 40), (128, 128)]
GROUPED = [(129, 33), (7, 200), (130, 140), (300, 72), (256, 256)]

RULES: list[dict[str, Any]] = [
    {"update": False},
    {"factor_scale": "trace"},
    {"factor_scale": "trace_dim", "refine": 1},
    {"factor_scale": "product"},
    {"factor_scale": "frobenius"},
    {"factor_scale": "frobenius", "refine": 2},
    {"factor_scale": "schatten4"},
    {"factor_scale": "schatten4", "refine": 3},
    {"factor_scale": "frobenius", "refine": 4},
]
DEFAULT = {"factor_scale": "frobenius", "refine": 2}
CORNERS = [(33, 33), (100, 40), (130, 140)]


def check(given: SimpleNamespace, executor: Executor | None = None, **options: Any) -> SimpleNamespace:
    """Run a call on the executor and compare it with the reference in float32 and float64."""
    ours = run(executor or Executor(), given, **options)
    plain, exact = run(reference, given, **options), run(reference, given, torch.float64, **options)
    atol = precision_atol(options.get("precision", "bf16x3"), options.get("refine", 0))
    compare(ours, plain, exact, atol)
    cases.assert_same_padding(ours.out, given.out)
    return ours


def same_bits(one: SimpleNamespace, other: SimpleNamespace) -> None:
    for name in vars(one):
        values, others = getattr(one, name), getattr(other, name)
        for a, b in zip(values, others, strict=True) if isinstance(values, list) else [(values, others)]:
            assert torch.equal(a, b), name


@pytest.mark.parametrize(("layout", "dtype"), [("strided", torch.float32), ("strided", torch.bfloat16)])
@pytest.mark.parametrize(("rows", "columns"), RESIDENT + GROUPED)
def test_shapes(rows: int, columns: int, layout: str, dtype: torch.dtype) -> None:
    given = inputs(3, rows, columns, dtype, layout)
    ours = check(given, **DEFAULT)
    for factor, before in ((ours.left[0], given.left[0]), (ours.right[0], given.right[0])):
        assert torch.equal(factor, factor.mT), "the factor must be symmetric to the bit"
        assert torch.equal(factor[2], before[2]), "an inactive block must stay"
    assert ours.norms[2] == 0


@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [*CORNERS, (40, 200)])
def test_rules(rows: int, columns: int, options: dict[str, Any]) -> None:
    check(inputs(2, rows, columns, torch.float32, "strided"), **options)


@pytest.mark.parametrize("precision", ["tf32x3", "bf16x6", "fp32"])
@pytest.mark.parametrize(("rows", "columns"), slow_after(3, [*CORNERS, (256, 40)]))
@pytest.mark.parametrize("dtype", slow_after(1, [torch.float32, torch.bfloat16]))
def test_precisions(rows: int, columns: int, precision: str, dtype: torch.dtype) -> None:
    check(inputs(2, rows, columns, dtype), precision=precision, **DEFAULT)


@pytest.mark.parametrize(("rows", "columns"), CORNERS)
def test_transposed_views_are_read_in_place(rows: int, columns: int) -> None:
    given = inputs(2, rows, columns, torch.float32)
    for name in ("grad", "direction", "out"):
        transposed = [view.mT.contiguous().mT for view in getattr(given, name)]
        setattr(given, name, transposed)
    check(given, **DEFAULT)


@pytest.mark.parametrize(("rows", "columns"), CORNERS)
def test_bfloat16_roots(rows: int, columns: int) -> None:
    given = inputs(2, rows, columns, torch.float32)
    given.left_root = [root.bfloat16() for root in given.left_root]
    given.right_root = [root.bfloat16() for root in given.right_root]
    ours = run(Executor(), given, update=False)
    given.left_root = [root.float() for root in given.left_root]
    given.right_root = [root.float() for root in given.right_root]
    plain, exact = run(reference, given, update=False), run(reference, given, torch.float64, update=False)
    compare(ours, plain, exact, precision_atol("bf16x3", 0))


@pytest.mark.parametrize(("rows", "columns"), [(40, 24), (130, 24)])
def test_blocks_more_than_two_to_the_31_elements_apart(rows: int, columns: int) -> None:
    """In gigabytes of address space, of which little is touched."""
    near = inputs(2, rows, columns, torch.float32)
    expected = run(Executor(), near, **DEFAULT)
    far = cases.copied(near)
    for name in ("grad", "direction", "out"):
        setattr(far, name, [far_apart(view) for view in getattr(far, name)])
    Executor(races=False).kron_step_(*vars(far).values(), *(SCALARS | DEFAULT).values())
    same_bits(far, expected)


def far_apart(blocks: torch.Tensor) -> torch.Tensor:
    """The same blocks, 2^31 elements and a few more from one to the next."""
    stride = 2**31 + 4
    view = torch.empty(stride + blocks[0].numel()).as_strided(blocks.shape, (stride, blocks.shape[2], 1))
    return view.copy_(blocks)


def test_groups_of_both_kinds_in_one_call() -> None:
    shapes = [(2, 16, 16), (1, 130, 40), (0, 8, 8), (3, 33, 70), (2, 40, 300)]
    check(merged([inputs(*shape, torch.float32, "strided") for shape in shapes]), **DEFAULT)


@pytest.mark.parametrize("blocks", [0, 1, 1000])
def test_any_number_of_blocks(blocks: int) -> None:
    check(inputs(blocks, 6, 5, torch.float32, "strided"), **DEFAULT)


@pytest.mark.parametrize("seed", slow_after(1, [1, 2]))
@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (140, 130)])
def test_same_bits_for_any_order_of_blocks_and_warps(rows: int, columns: int, seed: int) -> None:
    given = inputs(3, rows, columns, torch.float32)
    same_bits(run(Executor(), given, **DEFAULT), run(Executor(seed), given, **DEFAULT))


def test_same_bits_for_any_slices() -> None:
    """However few blocks fit the scratch memory at once."""
    given = merged([inputs(5, 130, 40, torch.float32), inputs(2, 140, 20, torch.float32)])
    whole, sliced = Executor(), Executor(scratch_bytes=1 << 19)
    same_bits(run(whole, given, **DEFAULT), run(sliced, given, **DEFAULT))
    assert len(sliced.launches) > len(whole.launches)


@pytest.mark.parametrize(("blocks", "more"), [(2, 5)])
@pytest.mark.parametrize(
    ("rows", "options", "launches"),
    [
        (64, {"factor_scale": "trace"}, 1),
        (64, DEFAULT, 1),
        (140, {"factor_scale": "trace"}, 4),
        (140, {"factor_scale": "frobenius"}, 5),
        (140, {"factor_scale": "frobenius", "refine": 1}, 7),
        (140, DEFAULT, 10),
        (140, {"factor_scale": "frobenius", "refine": 3}, 12),
    ],
    ids=str,
)
def test_launches_do_not_grow_with_the_blocks(
    rows: int, options: dict[str, Any], launches: int, blocks: int, more: int
) -> None:
    for count in (blocks, more):
        planner = Planner()
        run(planner, inputs(count, rows, rows, torch.float32), **options)
        assert len(planner.planned) == launches


def test_factors_alone() -> None:
    given = merged([inputs(2, 33, 20, torch.float32), inputs(2, 140, 20, torch.float32)])
    whole = run(Executor(), given, **DEFAULT)
    given.out = given.direction = given.left_root = given.right_root = []
    alone = run(Executor(), given, **DEFAULT)
    for name in ("left", "right"):
        for ours, expected in zip(getattr(alone, name), getattr(whole, name), strict=True):
            assert torch.equal(ours, expected), name
    assert (alone.norms == 7).all()


@pytest.mark.parametrize(("d", "k"), [(33, 20), (20, 100), (129, 40), (40, 300)])
def test_damping_follows_the_statistics(d: int, k: int) -> None:
    """The first gradient starts the factor, a zero one does nothing, one that overflows is counted."""
    grad = torch.randn(5, d, k) / math.sqrt(k)
    grad[1] = 0
    grad[2] *= 1e30
    active = torch.tensor([True, True, True, False, True])
    factor, statistics = torch.zeros(5, d, d), torch.zeros(5, 2)
    factor[4], statistics[4, 0] = cases.spd(1, d, torch.float32)[0], 0.7
    rule = (active, 0.9, 0.5, 1e-3, "frobenius", 2, "bf16x3")
    results = []
    for backend, dtype in (
        (Executor(), torch.float32),
        (reference, torch.float32),
        (reference, torch.float64),
    ):
        x, stats = factor.to(dtype, copy=True), statistics.to(dtype, copy=True)
        gradient = grad.to(dtype)
        if dtype == torch.float64:  # where 1e30 squared does not overflow
            gradient[2] = torch.inf
        backend.update_factor_(x, stats, [gradient], *rule)
        results.append((x, stats))
    (x, stats), (plain, plain_stats), (exact, exact_stats) = results
    assert_as_accurate(x, plain, exact, "factor", precision_atol("bf16x3", 2))
    assert_as_accurate(stats, plain_stats, exact_stats, "statistics")
    assert stats[:, 1].tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("d", [33, 140])
def test_a_bound_that_is_not_finite_leaves_the_factor(d: int) -> None:
    given = cases.spd(2, d, torch.float32)
    grad = torch.randn(2, d, 20)
    grad[1] *= 1e25
    x, stats = given.clone(), torch.zeros(2, 2)
    rule = (torch.ones(2, dtype=torch.bool), 0.9, 0.5, 0.0, "frobenius", 2, "bf16x3")
    Executor().update_factor_(x, stats, [grad], *rule)
    assert torch.equal(x[1], given[1])
    assert not torch.equal(x[0], given[0])
    assert stats[:, 1].tolist() == [0, 1]


@pytest.mark.parametrize("fault", slow_after(1, ["nan", "overflow"]))
@pytest.mark.parametrize(("d", "k", "options"), slow_after(3, test_update_factor.NOT_FINITE), ids=str)
def test_a_mean_that_is_not_finite_leaves_the_block(
    d: int, k: int, options: dict[str, Any], fault: str
) -> None:
    test_update_factor.check_mean_not_finite(Executor(), d, k, fault, options)


@pytest.mark.parametrize(("rows", "columns"), slow_after(1, test_kron_step.NOT_FINITE))
def test_a_gradient_that_is_not_finite_leaves_both_factors(rows: int, columns: int) -> None:
    test_kron_step.check_gradient_not_finite(Executor(), rows, columns, **DEFAULT)


@pytest.mark.parametrize("d", [20, 140])
def test_a_chunk_that_is_not_finite_is_left_out(d: int) -> None:
    test_update_factor.check_chunk_not_finite(Executor(), d, precision_atol("bf16x3", 2))


@pytest.mark.parametrize("d", [7, 140])
def test_a_first_factor_that_is_not_finite_is_counted(d: int) -> None:
    test_update_factor.check_start_not_finite(Executor(), d, 16)


@pytest.mark.parametrize(("factor_scale", "refine"), test_update_factor.SQUARES_OF_Y)
@pytest.mark.parametrize("d", [9, 140])
def test_the_square_of_y_does_not_overflow(d: int, factor_scale: str, refine: int) -> None:
    options = {"factor_scale": factor_scale, "refine": refine, "precision": "bf16x6"}
    atol = precision_atol("bf16x6", refine)
    test_update_factor.check_square_of_y(Executor(), d, options, atol)


@pytest.mark.parametrize("options", [{"factor_scale": "trace"}, DEFAULT], ids=str)
def test_blocks_without_elements(options: dict[str, Any]) -> None:
    test_kron_step.check_without_elements(Executor(), **options)
