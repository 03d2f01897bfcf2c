"""`kron_step_`: both factor updates and the two-sided product, every backend against float64."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import torch
from test_update_factor import RECIPES
from tolerances import assert_as_accurate, backend_atol

from kradagrad_ext.backends import reference

SCALARS: dict[str, Any] = {
    "decay": 0.9,
    "weight": 0.5,
    "damping": 0.0,
    "factor_scale": "trace",
    "refine": 0,
    "precision": "bf16x3",
    "update": True,
}


def inputs(
    n: int, rows: int, columns: int, dtype: torch.dtype, layout: str = "contiguous"
) -> SimpleNamespace:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    grad = (torch.randn(n, rows, columns) / math.sqrt(columns + rows)).to(dtype)
    direction = torch.randn(n, rows, columns).to(dtype)
    return SimpleNamespace(
        left=[cases.spd(n, rows, compute)],
        right=[cases.spd(n, columns, compute)],
        left_statistics=[torch.zeros(n, 2, dtype=compute)],
        right_statistics=[torch.zeros(n, 2, dtype=compute)],
        out=cases.views(torch.zeros(n, rows, columns, dtype=compute), layout),
        norms=torch.full((n,), 7.0, dtype=compute),
        grad=cases.views(grad, layout),
        direction=cases.views(direction, layout),
        left_root=[cases.spd(n, rows, compute)],
        right_root=[cases.spd(n, columns, compute)],
        active=torch.arange(n) % 4 != 2,
    )


def run(
    backend: Any, given: SimpleNamespace, dtype: torch.dtype | None = None, **options: Any
) -> SimpleNamespace:
    """Run on copies (cast to `dtype`), and give these back."""
    result = cases.copied(given, dtype)
    backend.kron_step_(*vars(result).values(), *(SCALARS | options).values())
    return result


def compare(
    ours: SimpleNamespace, plain: SimpleNamespace, exact: SimpleNamespace, atol: float | None = None
) -> None:
    scale = exact.norms.where(exact.norms > 0, 1).to(ours.norms.dtype)
    assert_as_accurate(ours.norms / scale, plain.norms / scale, exact.norms / scale, "norms", atol)
    for name in ("left", "right", "left_statistics", "right_statistics", "out"):
        for i, trio in enumerate(zip(*(getattr(r, name) for r in (ours, plain, exact)), strict=True)):
            assert_as_accurate(*trio, f"{name}[{i}]", atol)


@pytest.mark.parametrize(
    ("layout", "dtype", "options"),
    [
        (*layout, options)
        for layout in cases.LAYOUTS
        for options in ({"factor_scale": "exact"}, {"refine": 2}, {"update": False}, {})[
            : 4 if layout == cases.LAYOUTS[0] else 2
        ]
    ],
    ids=str,
)
@pytest.mark.parametrize(("rows", "columns"), cases.SIDES)
def test_agrees_with_float64(
    rows: int, columns: int, options: dict[str, Any], layout: str, dtype: torch.dtype, backend: str
) -> None:
    given = inputs(5, rows, columns, dtype, layout)
    ours = run(cases.ops(backend, given.norms.dtype), given, **options)
    plain = run(reference, given, **options)
    atol = backend_atol(backend, options.get("refine", 0))
    compare(ours, plain, run(reference, given, torch.float64, **options), atol)
    if options.get("update", True):
        assert torch.equal(ours.left[0], ours.left[0].mT)
        assert torch.equal(ours.right[0], ours.right[0].mT)
    else:
        assert torch.equal(ours.left[0], given.left[0])
    assert torch.equal(ours.left[0][2], given.left[0][2])
    assert ours.norms[2] == 0


@pytest.mark.parametrize("blocks", [0, 1, 2, None], ids=str)
def test_any_number_of_blocks(blocks: int | None, backend: str) -> None:
    given = inputs(cases.thousands(backend) if blocks is None else blocks, 6, 5, torch.float32)
    ours = run(cases.ops(backend, torch.float32), given)
    compare(ours, run(reference, given), run(reference, given, torch.float64), backend_atol(backend))


def test_padding_around_the_views_is_neither_read_nor_written(backend: str) -> None:
    given = inputs(6, 7, 5, torch.float32, "strided")
    ours = run(cases.ops(backend, torch.float32), given)
    cases.assert_same_padding(ours.out, given.out)
    assert all(tensor.isfinite().all() for tensor in (*ours.out, *ours.left, *ours.right, ours.norms))


def check_gradient_not_finite(ops: Any, rows: int, columns: int, **options: Any) -> None:
    """Neither factor of a block changes, whichever side has its columns in chunks; the product is made."""
    given = inputs(4, rows, columns, torch.float32)
    for statistics in (*given.left_statistics, *given.right_statistics):
        statistics[:, 0] = 0.7
    clean = run(ops, given, damping=1e-3, **options)
    given.grad[0][1, -1, -1] = math.nan
    ours = run(ops, given, damping=1e-3, **options)
    results = ([*each.left, *each.right] for each in (given, clean, ours))
    for before, untouched, after in zip(*results, strict=True):
        assert torch.equal(after[1], before[1])
        assert not torch.equal(untouched[1], before[1])
        assert torch.equal(after[0], untouched[0])
    for statistics in (*ours.left_statistics, *ours.right_statistics):
        assert statistics[:, 1].tolist() == [0, 1, 0, 0]
        assert float(statistics[1, 0]) == pytest.approx(0.7)
    assert torch.equal(ours.out[0], clean.out[0])
    assert torch.equal(ours.norms, clean.norms)


NOT_FINITE = [(20, 24), (40, 300), (300, 40), (130, 140)]


@pytest.mark.parametrize(("rows", "columns"), NOT_FINITE)
@pytest.mark.parametrize(("factor_scale", "refine"), [("trace", 0), ("frobenius", 2), ("exact", 0)])
def test_a_gradient_that_is_not_finite_leaves_both_factors(
    rows: int, columns: int, factor_scale: str, refine: int, backend: str
) -> None:
    ops = cases.ops(backend, torch.float32)
    check_gradient_not_finite(ops, rows, columns, factor_scale=factor_scale, refine=refine)


def check_without_elements(ops: Any, **options: Any) -> None:
    """Blocks of no elements among others: their factors stay, their norms are 0."""
    shapes = [(2, 6, 0), (3, 5, 7), (2, 0, 4), (1, 0, 0), (2, 200, 0)]
    given = merged([inputs(*shape, torch.float32) for shape in shapes])
    ours = run(ops, given, damping=1e-3, **options)
    alone = run(ops, merged([inputs(3, 5, 7, torch.float32)]), damping=1e-3, **options)
    for name in ("left", "right", "left_statistics", "right_statistics"):
        for i, (after, before) in enumerate(zip(getattr(ours, name), getattr(given, name), strict=True)):
            assert torch.equal(after, before) == (i != 1), name
    assert ours.norms.bool().tolist() == [False] * 2 + alone.norms.bool().tolist() + [False] * 5


def test_blocks_without_elements(backend: str) -> None:
    check_without_elements(cases.ops(backend, torch.float32))


def test_out_may_be_the_direction(backend: str) -> None:
    ops = cases.ops(backend, torch.float32)
    given = inputs(4, 33, 20, torch.float32)
    apart = run(ops, given)
    aliased = SimpleNamespace(**vars(given))
    aliased.out = aliased.direction
    ops.kron_step_(*vars(aliased).values(), *SCALARS.values())
    for i in (0, 1, 3):
        assert torch.equal(aliased.direction[0][i], apart.out[0][i])


def test_is_its_parts(backend: str) -> None:
    """The fused call gives what two factor updates and a product give."""
    ops = cases.ops(backend, torch.float64)
    given = inputs(3, 9, 12, torch.float64)
    ours = run(ops, given, factor_scale="exact", damping=1e-3)
    left, right = given.left[0].clone(), given.right[0].clone()
    options = (given.active, 0.9, 0.5, 1e-3, "exact", 0, "bf16x3")
    ops.update_factor_(left, torch.zeros(3, 2, dtype=torch.float64), given.grad, *options)
    ops.update_factor_(
        right, torch.zeros(3, 2, dtype=torch.float64), [view.mT for view in given.grad], *options
    )
    torch.testing.assert_close(ours.left[0], left, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.right[0], right, rtol=1e-12, atol=1e-12)
    product = ops.precondition(given.direction[0], [given.left_root[0], given.right_root[0]])
    torch.testing.assert_close(ours.out[0][:2], product[:2], rtol=1e-12, atol=1e-12)


def test_bfloat16_roots(backend: str) -> None:
    """Roots stored in bfloat16 multiply as the numbers they hold, in the factors' dtype."""
    ops = cases.ops(backend, torch.float32)
    given = inputs(3, 33, 17, torch.float32)
    rounded = SimpleNamespace(**vars(given))
    rounded.left_root = [root.bfloat16() for root in given.left_root]
    rounded.right_root = [root.bfloat16() for root in given.right_root]
    ours = run(ops, rounded)
    rounded.left_root = [root.float() for root in rounded.left_root]
    rounded.right_root = [root.float() for root in rounded.right_root]
    plain = run(reference, rounded)
    compare(ours, plain, run(reference, rounded, torch.float64), backend_atol(backend))


@pytest.mark.parametrize("options", RECIPES, ids=str)
@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_same_bits_for_any_number_of_threads(blocks: int, options: dict[str, Any], backend: str) -> None:
    """As long as there is a block for each; else torch's products use the threads inside, some of them with
    other bits: then the same for that number of threads."""
    ops = cases.ops(backend, torch.float32)
    given = inputs(blocks, 129, 65, torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([run(ops, given, **options) for _ in range(2)])
    finally:
        torch.set_num_threads(threads)
    for count, (first, again) in enumerate(results, 1):
        for other in (again, *(results[0] if count <= blocks else [])):
            for name in ("left", "right", "out"):
                assert torch.equal(getattr(first, name)[0], getattr(other, name)[0]), (name, count)
            assert torch.equal(first.norms, other.norms)


def merged(groups: list[SimpleNamespace]) -> SimpleNamespace:
    """The arguments of one call with the blocks of several."""
    whole = SimpleNamespace()
    for name, first in vars(groups[0]).items():
        parts = [getattr(group, name) for group in groups]
        joined = list(itertools.chain(*parts)) if isinstance(first, list) else torch.cat(parts)
        setattr(whole, name, joined)
    return whole


MIXED = [(3, 5, 7), (0, 4, 4), (1, 33, 20), (2, 64, 64)]


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_groups_of_one_call_are_independent(layout: str, backend: str) -> None:
    """Several groups of different shapes, one of them empty, give what one call each gives, bit for bit."""
    ops = cases.ops(backend, torch.float32)
    groups = [inputs(*shape, torch.float32, layout) for shape in MIXED]
    whole = run(ops, merged(groups), refine=2, factor_scale="frobenius")
    apart = merged([run(ops, group, refine=2, factor_scale="frobenius") for group in groups])
    for name in ("left", "right", "out"):
        for ours, own in zip(getattr(whole, name), getattr(apart, name), strict=True):
            assert torch.equal(ours, own), name
    assert torch.equal(whole.norms, apart.norms)


def test_views_of_both_dtypes_in_one_list(backend: str) -> None:
    """A bfloat16 parameter without a gradient stands in for it among float32 gradients."""
    ops = cases.ops(backend, torch.float32)
    given = merged([inputs(3, 9, 12, torch.float32), inputs(2, 9, 12, torch.bfloat16)])
    for name in ("left", "right", "left_statistics", "right_statistics", "left_root", "right_root"):
        setattr(given, name, [torch.cat(getattr(given, name))])
    given.out = [out.float() for out in given.out]
    ours, plain = run(ops, given), run(reference, given)
    compare(ours, plain, run(reference, given, torch.float64), backend_atol(backend))


def test_neither_update_nor_product(backend: str) -> None:
    ops = cases.ops(backend, torch.float32)
    given = inputs(2, 9, 12, torch.float32)
    given.out = given.direction = given.left_root = given.right_root = []
    ours = run(ops, given, update=False)
    assert torch.equal(ours.left[0], given.left[0])
    assert (ours.norms == 7).all()


def test_factors_alone(backend: str) -> None:
    """Without `out` the factors are updated as with it, and nothing else is written."""
    ops = cases.ops(backend, torch.float32)
    given = merged([inputs(3, 5, 7, torch.float32), inputs(2, 33, 20, torch.float32)])
    whole = run(ops, given)
    given.out = given.direction = given.left_root = given.right_root = []
    alone = run(ops, given)
    for name in ("left", "right", "left_statistics", "right_statistics"):
        for ours, expected in zip(getattr(alone, name), getattr(whole, name), strict=True):
            assert torch.equal(ours, expected), name
    assert (alone.norms == 7).all()
