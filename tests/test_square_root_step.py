"""`kron_step_` in the square-root form on every layout, shape and dtype: every backend against float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from inputs import layouts, square_root
from inputs.square_root import RULES, compare, copied, given, group

from kradagrad_ext.backends import native, triton
from kradagrad_ext.backends.base import METHODS, BlockGroup

SHAPES = [(1, 1), (1, 7), (7, 33), (33, 7), (64, 64), (129, 65), (40, 129), (130, 30)]


@pytest.fixture(params=[name for name in cases.SQUARE_ROOT_BACKENDS if name != "reference"])
def ops(request: pytest.FixtureRequest) -> Any:
    return cases.square_root_ops(request.param)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(shape: tuple[int, int], rule: Any, ops: Any) -> None:
    compare(given([group(6, shape)], rule), ops)


@pytest.mark.parametrize("view_dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("rule", [RULES["cholesky"], RULES["coupled products"]], ids=METHODS)
@pytest.mark.parametrize("shape", [(5, 33), (64, 20)], ids=str)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_any_layout(
    layout: str, shape: tuple[int, int], rule: Any, view_dtype: torch.dtype, ops: Any
) -> None:
    count = 6 if ops is triton else 12
    compare(given([group(count, shape, layout, view_dtype=view_dtype)], rule), ops)


@pytest.mark.parametrize("rule", [RULES["cholesky"], RULES["coupled products"]], ids=METHODS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_float64_and_stored_dtypes(stored: torch.dtype, rule: Any, ops: Any) -> None:
    compare(given([group(5, (20, 33), "grid", torch.float64)], rule), ops)
    mixed = given([group(5, (20, 33), "grid", factor_dtype=stored, root_dtype=torch.bfloat16)], rule)
    compare(mixed, ops)


@pytest.mark.parametrize("calls", [{"update": False}, {"precondition": False}], ids=str)
@pytest.mark.parametrize("rule", [RULES["cholesky"], RULES["products"]], ids=METHODS)
def test_one_half_of_a_step(rule: Any, calls: dict[str, bool], ops: Any) -> None:
    """A call without an update needs no gradients; one without a product needs neither directions nor out."""
    call = given([group(5, (9, 4))], rule, **calls)
    stripped = {"grads": ()} if not call.calls["update"] else {"directions": (), "out": ()}
    expected = square_root.run(cases.square_root_ops("reference"), copied(call))
    bare = replace(call, groups=[replace(g, **stripped) for g in copied(call).groups])
    ours = square_root.run(ops, bare)
    for result, other in zip(ours.groups, expected.groups, strict=True):
        pair = [square_root.x_in_units(side) for side in (result.left, other.left)]
        torch.testing.assert_close(*pair, rtol=1e-2, atol=1e-3)
    rounding = {"rtol": 1e-3, "atol": 0} if ops is triton else {}
    torch.testing.assert_close(ours.norms, expected.norms, **rounding)


@pytest.mark.parametrize("blocks", [0, 1, "thousands"])
@pytest.mark.parametrize("rule", [RULES["coupled"], RULES["coupled products"]], ids=METHODS)
def test_any_number_of_blocks_of_several_groups(rule: Any, blocks: int | str, ops: Any) -> None:
    count = blocks if isinstance(blocks, int) else cases.thousands(cases.square_root_backend(ops))
    groups = [
        group(count, (5, 6)),
        group(7, (3, 2), "several"),
        group(2, (0, 4)),
        group(3, (16, 16), "experts"),
    ]
    compare(given(groups, rule), ops)


def test_a_factor_that_is_no_triangle_becomes_one(ops: Any) -> None:
    """Only F F^T is defined: factors times any rotation give the same steps."""
    call = given([group(4, (31, 17))])
    turned = copied(call)
    for side in (turned.groups[0].left, turned.groups[0].right):
        d = side.factor.shape[-1]
        side.factor.copy_(side.factor @ torch.linalg.qr(torch.randn(4, d, d))[0])
    ours, expected = square_root.run(ops, turned), square_root.run(ops, copied(call))
    for result, other in (
        (ours.groups[0].left, expected.groups[0].left),
        (ours.groups[0].right, expected.groups[0].right),
    ):
        torch.testing.assert_close(
            square_root.x_in_units(result), square_root.x_in_units(other), rtol=1e-2, atol=1e-3
        )
        if ops is native:
            assert not result.factor[call.active].tril(-1).any()


@pytest.mark.parametrize("rule", [RULES["cholesky"], RULES["products"]], ids=METHODS)
def test_out_may_be_the_direction(rule: Any, ops: Any) -> None:
    call = given([group(5, (9, 4), "grid")], rule)
    expected = square_root.run(ops, copied(call))
    aliased = copied(call)
    aliased = replace(aliased, groups=[replace(g, out=g.directions) for g in aliased.groups])
    ours = square_root.run(ops, aliased)
    kept = (
        call.active.reshape(1, 5, 1, 1)
        if expected.groups[0].out[0].dim() == 4
        else call.active[:, None, None]
    )
    assert torch.equal(
        torch.where(kept, ours.groups[0].out[0], 0), torch.where(kept, expected.groups[0].out[0], 0)
    )


def spoilt(call: square_root.Given, name: str) -> square_root.Given:
    """Return the call with one tensor that does not fit."""
    g = call.groups[0]
    left, right = g.left, g.right
    changed: dict[str, BlockGroup] = {
        "left[0]": replace(g, left=replace(left, factor=left.factor.half())),
        "left_statistics[0]": replace(g, left=replace(left, statistics=left.statistics[:, :2])),
        "right[0]": replace(g, right=replace(right, factor=right.factor.mT)),
        "right_root[0]": replace(g, right=replace(right, root=right.root[:, :2])),
        "grad": replace(g, grads=[*g.grads, *g.grads]),
        "direction[0]": replace(g, directions=[g.directions[0].mT]),
        "out": replace(g, out=[]),
    }
    return replace(call, groups=[changed[name]])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("left[0]", r"must be \[N, m, m\] float32 or bfloat16, got \[3, 5, 5\] float16"),
        ("left_statistics[0]", r"must be \[3, 4\] float32, got \[3, 2\] float32"),
        ("right[0]", r"must be contiguous, got strides"),
        ("right_root[0]", r"must be \[3, 4, 4\] float32 or bfloat16, got \[3, 2, 4\] float32"),
        ("grad", "must be views of (the groups' blocks, got 1 more|3 blocks for group 0, got 6 blocks)"),
        ("direction[0]", r"must be \[\*, 5, 4\] float32, float64 or bfloat16, got \[3, 4, 5\] float32"),
        ("out", "must be views of 3 blocks for group 0, got 0 blocks"),
    ],
)
def test_arguments_that_do_not_fit_are_named(name: str, message: str, ops: Any) -> None:
    call = given([group(3, (5, 4))])
    before = copied(call)
    escaped = name.replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(RuntimeError, match=f"kron_step_: `{escaped}` {message}"):
        square_root.run(ops, spoilt(call, name))
    square_root.assert_untouched(before, call)
    assert torch.equal(before.groups[0].left.factor, call.groups[0].left.factor)
    assert torch.equal(before.norms, call.norms)
