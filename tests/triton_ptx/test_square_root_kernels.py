"""The compiled Triton kernels of the square-root form on the PTX executor, against float64.

Every launch is checked for races, bounds and uninitialised reads (compiled.py); padding around strided views
is NaN. Tests that are not slow need few specialisations, each of which Triton compiles in seconds.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from inputs import layouts, square_root
from inputs.square_root import check_overflow_in_rounding, copied, given, group
from marks import slow, slow_after

from kradagrad_ext.backends import square_root as reference
from kradagrad_ext.backends.base import FALLBACKS, PRECISIONS, RMS, WEIGHT

from .checks import COUPLED, GROUPED, RESIDENT, RULE, check, several
from .compiled import Compiled

ARCHITECTURES = ["sm_80", "sm_90"]
SHAPES = [GROUPED, RESIDENT, (1, 1), (1, 7), (7, 30), (33, 64), (64, 64), (130, 40), (33, 200), (256, 5)]


@pytest.fixture(params=ARCHITECTURES)
def arch(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("rule", slow_after(1, [COUPLED, RULE]), ids=["coupled", "apart"])
@pytest.mark.parametrize(("rows", "columns"), slow_after(2, SHAPES))
def test_agrees_with_float64(rows: int, columns: int, rule: Any, arch: str) -> None:
    check(given([group(5, (rows, columns), "grid")], rule), Compiled(arch))


@slow
@pytest.mark.parametrize("arch", ["sm_80"])
@pytest.mark.parametrize("damped_updates", [0.0, 10.0])
@pytest.mark.parametrize("refine", range(1, 7))
@pytest.mark.parametrize("shape", [GROUPED, RESIDENT, (20, 33)], ids=str)
def test_every_step_of_the_iteration(
    shape: tuple[int, int], refine: int, damped_updates: float, arch: str
) -> None:
    rule = replace(RULE, refine=refine, damped_updates=damped_updates, precision="tf32x3")
    check(given([group(2, shape)], rule), Compiled(arch))


@slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(16, 16), (32, 32), (64, 64), (128, 128), (256, 136)], ids=str)
def test_every_row_of_the_table(shape: tuple[int, int], precision: str, arch: str) -> None:
    """Use the row of every shape class and precision, read in vectors of 16 bytes."""
    check(given([group(1, shape)], replace(COUPLED, precision=precision)), Compiled(arch))


@slow
@pytest.mark.parametrize("arch", ["sm_80"])
@pytest.mark.parametrize(("rows", "columns"), [GROUPED, RESIDENT])
@pytest.mark.parametrize("view_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_any_layout(rows: int, columns: int, layout: str, view_dtype: torch.dtype, arch: str) -> None:
    call = given([group(8, (rows, columns), layout, view_dtype=view_dtype)], COUPLED)
    check(call, Compiled(arch))


@pytest.mark.parametrize(("rows", "columns"), slow_after(1, [RESIDENT, GROUPED]))
def test_bfloat16_factors_and_roots(rows: int, columns: int, arch: str) -> None:
    stored = {"factor_dtype": torch.bfloat16, "root_dtype": torch.bfloat16}
    check(given([group(5, (rows, columns), "several", **stored)], COUPLED), Compiled(arch))


def same_bits(one: square_root.Given, other: square_root.Given) -> bool:
    pairs = [(one.norms, other.norms)]
    for a, b in zip(one.groups, other.groups, strict=True):
        for side, same in ((a.left, b.left), (a.right, b.right)):
            pairs += [(side.factor, same.factor), (side.statistics, same.statistics)]
        pairs += zip(a.out, b.out, strict=True)
    return all(torch.equal(first.nan_to_num(), second.nan_to_num()) for first, second in pairs)


@slow
@pytest.mark.parametrize("shape", [GROUPED, RESIDENT], ids=str)
def test_the_halves_of_a_step_are_the_whole(shape: tuple[int, int], arch: str) -> None:
    """An update and then a product give the same bits as one call; `out` may be the direction."""
    call = given([group(3, shape)], COUPLED)
    whole = square_root.run(Compiled(arch), copied(call))
    halves = copied(call)
    halves = replace(halves, groups=[replace(g, out=g.directions) for g in halves.groups])
    for calls in ({"update": True, "precondition": False}, {"update": False, "precondition": True}):
        square_root.run(Compiled(arch), replace(halves, calls=calls))
    active = call.active
    assert torch.equal(halves.groups[0].out[0][active], whole.groups[0].out[0][active])
    halves = replace(halves, groups=[replace(halves.groups[0], out=whole.groups[0].out)])
    assert same_bits(whole, halves)


@slow
@pytest.mark.parametrize("refine", [1, 3])
def test_slices_and_the_order_of_blocks_change_no_bit(refine: int, arch: str) -> None:
    """Several groups give the same bits in one slice and in many, with blocks and warps in another order."""
    call = given(several(), replace(COUPLED, refine=refine))
    whole, sliced = Compiled(arch), Compiled(arch, seed=7, scratch_bytes=200_000)
    one, other = check(call, whole), square_root.run(sliced, copied(call))
    assert len(sliced.launches) > 2 * len(whole.launches)
    assert same_bits(one, other)


@pytest.mark.parametrize("arch", slow_after(1, ["sm_90", "sm_80"]))
@pytest.mark.parametrize(("d", "k"), slow_after(1, [RESIDENT, GROUPED]))
def test_one_side_alone(d: int, k: int, arch: str) -> None:
    """Call `update_factor_`, which ignores coupling."""
    side = square_root.trained_side(4, d, k, torch.float32, torch.float32)
    ours, plain = (
        replace(side, factor=side.factor.clone(), statistics=side.statistics.clone()) for _ in range(2)
    )
    unfolding, scales = layouts.grid(torch.randn(4, d, k)), torch.tensor([1, 0.3, 0, 1.7])
    Compiled(arch).update_factor_(ours.factor, ours.statistics, unfolding, scales, COUPLED)
    reference.update_factor_(plain.factor, plain.statistics, unfolding, scales, COUPLED)
    torch.testing.assert_close(ours.factor, plain.factor, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.statistics, plain.statistics, rtol=1e-4, atol=1e-4)


def scaled(call: square_root.Given, usual: square_root.Given, scale: float) -> None:
    """Change a call to blocks before their first gradient, with gradients and directions times a scale."""
    for group_of_call, other in zip(call.groups, usual.groups, strict=True):
        for side, same in ((group_of_call.left, other.left), (group_of_call.right, other.right)):
            side.statistics.zero_()
            side.root.copy_(same.root)
        for name in ("grads", "directions"):
            for view, same in zip(getattr(group_of_call, name), getattr(other, name), strict=True):
                view.copy_(same * scale)


@slow
@pytest.mark.parametrize("shape", [GROUPED, RESIDENT], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-17, 1e30])
def test_gradients_of_any_scale(scale: float, shape: tuple[int, int], arch: str) -> None:
    """No square of a gradient overflows: the first and the second update equal those of gradients near 1."""
    rule = replace(COUPLED, precision="tf32x3")
    usual, other = given([group(5, shape)], rule), given([group(5, shape)], rule)
    scaled(usual, usual, 1.0)
    scaled(other, usual, scale)
    for _ in range(2):
        square_root.run(Compiled(arch), usual)
        square_root.run(Compiled(arch), other)
    for name in ("left", "right"):
        one, same = getattr(usual.groups[0], name), getattr(other.groups[0], name)
        assert one.statistics[usual.active, WEIGHT].gt(0).all()
        torch.testing.assert_close(same.statistics[:, RMS] / scale, one.statistics[:, RMS], rtol=1e-5, atol=0)
        pair = square_root.x_in_units(same), square_root.x_in_units(one)
        torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(other.norms, usual.norms, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("rows", "columns"), [RESIDENT, GROUPED])
def test_what_is_not_finite_leaves_the_block_and_is_counted(rows: int, columns: int, arch: str) -> None:
    """Zero gradients, and those that the other side's root makes zero, leave it, and are not counted."""
    call = given([group(9, (rows, columns))], COUPLED)
    call = replace(call, scales=torch.ones(9))
    blocks = call.groups[0]
    for block, value in enumerate((math.nan, math.inf, -math.inf, 1e30, 0.0)):
        blocks.grads[0][block] = value
    blocks.right.root[5], blocks.left.root[6] = 0, 0
    blocks.left.factor[7, 0, 0] = math.nan
    expected = square_root.run(reference, copied(call)).groups[0]
    ours = square_root.run(Compiled(arch), copied(call)).groups[0]
    for name, left_alone in (("left", [0, 1, 2, 3, 4, 5, 7]), ("right", [0, 1, 2, 3, 4, 6])):
        before, plain, after = (getattr(g, name) for g in (blocks, expected, ours))
        kept = torch.isin(torch.arange(9), torch.tensor(left_alone))
        assert torch.equal(after.factor[kept].nan_to_num(), before.factor[kept].nan_to_num())
        assert torch.equal(after.statistics[kept, :FALLBACKS], before.statistics[kept, :FALLBACKS])
        assert torch.equal(after.statistics[:, FALLBACKS], plain.statistics[:, FALLBACKS])
        assert not torch.isclose(after.factor[~kept], before.factor[~kept]).all(-1).all(-1).any()


@pytest.mark.parametrize("arch", slow_after(1, ["sm_90", "sm_80"]))
@pytest.mark.parametrize("d", slow_after(1, [9, 70]))
def test_a_factor_that_overflows_only_in_rounding_stays_and_is_counted(d: int, arch: str) -> None:
    check_overflow_in_rounding(Compiled(arch), d, RULE)
