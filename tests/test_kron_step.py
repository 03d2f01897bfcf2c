"""`kron_step_`: both factor updates and the two-sided product, every backend against float64."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import torch
from tolerances import assert_as_accurate

from kradagrad_ext.backends import reference, resolve


def inputs(
    n: int, rows: int, columns: int, dtype: torch.dtype, layout: str = "contiguous"
) -> SimpleNamespace:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    grad = (torch.randn(n, rows, columns) / math.sqrt(columns + rows)).to(dtype)
    direction = torch.randn(n, rows, columns).to(dtype)
    return SimpleNamespace(
        left=cases.spd(n, rows, compute),
        right=cases.spd(n, columns, compute),
        left_statistics=torch.zeros(n, 2, dtype=compute),
        right_statistics=torch.zeros(n, 2, dtype=compute),
        out=cases.views(torch.zeros(n, rows, columns, dtype=compute), layout),
        norms=torch.full((n,), 7.0, dtype=compute),
        grad=cases.views(grad, layout),
        direction=cases.views(direction, layout),
        left_root=cases.spd(n, rows, compute),
        right_root=cases.spd(n, columns, compute),
        active=torch.arange(n) % 4 != 2,
    )


def run(
    backend: Any, given: SimpleNamespace, dtype: torch.dtype | None = None, **options: Any
) -> SimpleNamespace:
    """Run on copies (cast to `dtype`), and give these back."""
    result = cases.copied(given, dtype)
    chosen = {
        "decay": 0.9,
        "weight": 0.5,
        "damping": 0.0,
        "factor_scale": "trace",
        "refine": 0,
        "update": True,
    }
    backend.kron_step_(*vars(result).values(), *(chosen | options).values())
    return result


def compare(ours: SimpleNamespace, plain: SimpleNamespace, exact: SimpleNamespace) -> None:
    for name in ("left", "right", "norms"):
        assert_as_accurate(getattr(ours, name), getattr(plain, name), getattr(exact, name), name)
    views = [cases.gathered(result.out).nan_to_num() for result in (ours, plain, exact)]
    assert_as_accurate(*views, "out")


@pytest.mark.parametrize(("layout", "dtype"), cases.LAYOUTS)
@pytest.mark.parametrize(
    "options", [{"update": False}, {}, {"factor_scale": "exact"}, {"refine": 2}], ids=str
)
@pytest.mark.parametrize(("rows", "columns"), cases.SIDES)
def test_agrees_with_float64(
    rows: int, columns: int, options: dict[str, Any], layout: str, dtype: torch.dtype, backend: str
) -> None:
    given = inputs(5, rows, columns, dtype, layout)
    ours = run(resolve(backend, torch.device("cpu"), given.left.dtype), given, **options)
    plain = run(reference, given, **options)
    compare(ours, plain, run(reference, given, torch.float64, **options))
    if options.get("update", True):
        assert torch.equal(ours.left, ours.left.mT)
        assert torch.equal(ours.right, ours.right.mT)
    else:
        assert torch.equal(ours.left, given.left)
    assert torch.equal(ours.left[2], given.left[2])
    assert ours.norms[2] == 0


@pytest.mark.parametrize("blocks", [0, 1, 2, 2000])
def test_any_number_of_blocks(blocks: int, backend: str) -> None:
    given = inputs(blocks, 6, 5, torch.float32)
    ours = run(resolve(backend, torch.device("cpu"), torch.float32), given)
    compare(ours, run(reference, given), run(reference, given, torch.float64))


def test_padding_around_the_views_is_neither_read_nor_written(backend: str) -> None:
    given = inputs(6, 7, 5, torch.float32, "strided")
    ours = run(resolve(backend, torch.device("cpu"), torch.float32), given)
    storage = given.out[0]._base
    assert storage is not None
    untouched = storage.isnan()
    given_ops = resolve(backend, torch.device("cpu"), torch.float32)
    given_ops.kron_step_(*vars(given).values(), 0.9, 0.5, 0.0, "trace", 0, True)
    assert torch.equal(storage.isnan(), untouched)
    assert all(tensor.isfinite().all() for tensor in (ours.left, ours.right, ours.norms))


def test_out_may_be_the_direction(backend: str) -> None:
    ops = resolve(backend, torch.device("cpu"), torch.float32)
    given = inputs(4, 33, 20, torch.float32)
    apart = run(ops, given)
    aliased = SimpleNamespace(**vars(given))
    aliased.out = aliased.direction
    ops.kron_step_(*vars(aliased).values(), 0.9, 0.5, 0.0, "trace", 0, True)
    for i in (0, 1, 3):
        assert torch.equal(aliased.direction[0][i], apart.out[0][i])


def test_is_its_parts(backend: str) -> None:
    """The fused call gives what two factor updates and a product give."""
    ops = resolve(backend, torch.device("cpu"), torch.float64)
    given = inputs(3, 9, 12, torch.float64)
    ours = run(ops, given, factor_scale="exact", damping=1e-3)
    left, right = given.left.clone(), given.right.clone()
    options = (given.active, 0.9, 0.5, 1e-3, "exact", 0)
    ops.update_factor_(left, torch.zeros(3, 2, dtype=torch.float64), given.grad, *options)
    ops.update_factor_(
        right, torch.zeros(3, 2, dtype=torch.float64), [view.mT for view in given.grad], *options
    )
    torch.testing.assert_close(ours.left, left, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.right, right, rtol=1e-12, atol=1e-12)
    product = ops.precondition(given.direction[0], [given.left_root, given.right_root])
    torch.testing.assert_close(ours.out[0][:2], product[:2], rtol=1e-12, atol=1e-12)


def test_bfloat16_roots(backend: str) -> None:
    """Roots stored in bfloat16 multiply as the numbers they hold, in the factors' dtype."""
    ops = resolve(backend, torch.device("cpu"), torch.float32)
    given = inputs(3, 33, 17, torch.float32)
    rounded = SimpleNamespace(**vars(given))
    rounded.left_root, rounded.right_root = given.left_root.bfloat16(), given.right_root.bfloat16()
    ours = run(ops, rounded)
    rounded.left_root, rounded.right_root = rounded.left_root.float(), rounded.right_root.float()
    plain = run(reference, rounded)
    compare(ours, plain, run(reference, rounded, torch.float64))


@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_same_bits_for_any_number_of_threads(blocks: int, backend: str) -> None:
    ops = resolve(backend, torch.device("cpu"), torch.float32)
    given = inputs(blocks, 129, 65, torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(ops, given, factor_scale="exact"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name in ("left", "right", "norms"):
            assert torch.equal(getattr(results[0], name), getattr(other, name)), name
        assert torch.equal(results[0].out[0], other.out[0])
