"""`update_factor_`: every backend against float64, and what is not finite."""

from __future__ import annotations

import math
from typing import Any

import cases
import pytest
import torch
from tolerances import assert_as_accurate, backend_atol
from torch import Tensor

from kradagrad_ext.backends import reference
from kradagrad_ext.backends.base import FACTOR_SCALES

SHAPES = [(1, 1), (1, 70), (7, 33), (33, 7), (33, 129), (64, 64), (129, 129), (130, 40)]
LAID_OUT = [("trace", 0), ("exact", 0), ("frobenius", 2)]
"""One of every way through the code, for views of all layouts; the others for contiguous ones."""
UPDATES = [(scale, 0) for scale in FACTOR_SCALES] + [("frobenius", 2), ("trace", 1), ("schatten4", 3)]


def run(
    backend: Any, x: Tensor, stats: Tensor, a: Tensor, active: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    given_options = {"decay": 0.9, "weight": 0.5, "damping": 0.0, "factor_scale": "trace", "refine": 0}
    given_options |= {"precision": "bf16x3"} | options
    factor, statistics = x.clone(), stats.clone()
    unfolding = a if isinstance(a, list) else [a]
    backend.update_factor_(factor, statistics, unfolding, active, *given_options.values())
    return factor, statistics


@pytest.mark.parametrize(
    ("layout", "dtype", "factor_scale", "refine"),
    [
        (*layout, *update)
        for layout in cases.LAYOUTS
        for update in (UPDATES if layout == cases.LAYOUTS[0] else LAID_OUT)
    ],
)
@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_agrees_with_float64(
    d: int, k: int, factor_scale: str, refine: int, layout: str, dtype: torch.dtype, backend: str
) -> None:
    n = 5
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    x, a = cases.spd(n, d, compute), (torch.randn(n, d, k) / math.sqrt(k)).to(dtype)
    active = torch.tensor([True, True, False, True, True])
    stats = x.new_zeros(n, 2)
    options = {"factor_scale": factor_scale, "refine": refine}
    ours = run(cases.ops(backend, compute), x, stats, cases.views(a, layout), active, **options)[0]
    plain = run(reference, x, stats, a, active, **options)[0]
    exact = run(reference, x.double(), stats.double(), a.double(), active, **options)[0]
    assert_as_accurate(ours, plain, exact, "factor", backend_atol(backend, refine))
    assert torch.equal(ours, ours.mT), "the factor must be symmetric to the bit"
    assert torch.equal(ours[2], x[2]), "an inactive block must stay"


@pytest.mark.parametrize("factor_scale", ["trace", "exact"])
@pytest.mark.parametrize("blocks", [0, 1, 2, None], ids=str)
def test_any_number_of_blocks(blocks: int | None, factor_scale: str, backend: str) -> None:
    blocks = cases.thousands(backend) if blocks is None else blocks
    x, a = cases.spd(blocks, 5, torch.float32), torch.randn(blocks, 5, 6)
    active, stats = torch.rand(blocks) < 0.9, torch.zeros(blocks, 2)
    ours = run(cases.ops(backend, x.dtype), x, stats, a, active, factor_scale=factor_scale)[0]
    plain = run(reference, x, stats, a, active, factor_scale=factor_scale)[0]
    exact = run(reference, x.double(), stats.double(), a.double(), active, factor_scale=factor_scale)[0]
    assert_as_accurate(ours, plain, exact, "factor", backend_atol(backend))


RECIPES = [{"factor_scale": "exact"}, {"factor_scale": "frobenius", "refine": 2}]
"""What `auto` takes on a CPU, and where products are cheap."""


@pytest.mark.parametrize("options", RECIPES, ids=str)
def test_blocks_are_independent(options: dict[str, Any], backend: str) -> None:
    """A permutation of the blocks permutes the result, bit for bit."""
    ops = cases.ops(backend, torch.float32)
    x, a, active = cases.spd(9, 33, torch.float32), torch.randn(9, 33, 20), torch.ones(9, dtype=torch.bool)
    order = torch.randperm(9)
    whole = run(ops, x, torch.zeros(9, 2), a, active, **options)[0]
    permuted = run(ops, x[order], torch.zeros(9, 2), a[order], active, **options)[0]
    assert torch.equal(whole[order], permuted)


def test_relative_damping_starts_and_tracks_the_mean(backend: str) -> None:
    """The first gradient sets the scale of X; a zero one waits; the mean then decays."""
    ops = cases.ops(backend, torch.float64)
    d, k, damping, decay = 6, 4, 1e-3, 0.9
    a = torch.randn(2, d, k, dtype=torch.float64)
    a[1] = 0
    active = torch.ones(2, dtype=torch.bool)
    x, stats = torch.zeros(2, d, d, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    options = {"decay": decay, "weight": 0.1, "damping": damping, "factor_scale": "exact"}
    x, stats = run(ops, x, stats, a, active, **options)
    mean = a[0].square().sum() / d
    start = torch.eye(d, dtype=torch.float64) / (damping * mean) / decay
    expected = torch.linalg.inv(torch.linalg.inv(start) + 0.1 * a[0] @ a[0].mT)
    torch.testing.assert_close(x[0], expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(stats[0, 0], mean)
    assert not x[1].any()
    assert not stats[1].any()
    _, stats = run(ops, x, stats, 2 * a, active, **options)
    torch.testing.assert_close(stats[0, 0], decay * mean + (1 - decay) * 4 * mean)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_of_inactive_blocks_do_not_leak(value: float, backend: str) -> None:
    ops = cases.ops(backend, torch.float32)
    x, a = cases.spd(4, 9, torch.float32), torch.randn(4, 9, 5)
    active = torch.tensor([True, False, True, True])
    clean = run(ops, x, torch.zeros(4, 2), a, active, damping=1e-3)
    a[1] = value
    spoilt = run(ops, x, torch.zeros(4, 2), a, active, damping=1e-3)
    assert torch.equal(clean[0], spoilt[0])
    assert torch.equal(clean[1], spoilt[1])


def test_failed_cholesky_falls_back_and_is_counted(backend: str) -> None:
    """N = I + A^T X A is indefinite for an indefinite X: that block alone takes the refined update."""
    ops = cases.ops(backend, torch.float32)
    x, a = cases.spd(3, 8, torch.float32), torch.randn(3, 8, 8)
    x[1] = -x[1]
    active = torch.ones(3, dtype=torch.bool)
    options = {"decay": 1.0, "weight": 1.0}
    ours, stats = run(ops, x, torch.zeros(3, 2), a, active, factor_scale="exact", **options)
    fallback = run(reference, x, torch.zeros(3, 2), a, active, factor_scale="frobenius", refine=2, **options)[
        0
    ]
    assert stats[:, 1].tolist() == [0, 1, 0]
    torch.testing.assert_close(ours[1], fallback[1], rtol=1e-4, atol=1e-4)
    whole = run(ops, x[::2], torch.zeros(2, 2), a[::2], active[:2], factor_scale="exact", **options)[0]
    assert torch.equal(ours[::2], whole)


def test_overflow_leaves_the_block_and_is_counted(backend: str) -> None:
    ops = cases.ops(backend, torch.float32)
    x, a = cases.spd(2, 8, torch.float32), torch.randn(2, 8, 8)
    a[0] *= 1e30
    for factor_scale, refine in (("trace", 0), ("frobenius", 2), ("exact", 0)):
        options = {"factor_scale": factor_scale, "refine": refine}
        ours, stats = run(ops, x, torch.zeros(2, 2), a, torch.ones(2, dtype=torch.bool), **options)
        assert torch.equal(ours[0], x[0])
        assert ours.isfinite().all()
        assert stats[:, 1].tolist() == [1, 0]


def check_mean_not_finite(ops: Any, d: int, k: int, fault: str, options: dict[str, Any]) -> None:
    """Nothing of a block changes where its mean is not finite, whichever columns that comes from."""
    x, a, active = cases.spd(3, d, torch.float32), torch.randn(3, d, k), torch.ones(3, dtype=torch.bool)
    stats = torch.tensor([[1.0, 0], [1.0, 2], [1.0, 0]])
    clean = run(ops, x, stats, a, active, damping=1e-3, **options)
    if fault == "overflow":  # of |A|_F^2 alone: t is finite
        x[1] *= 1e-30
        stats[1, 0] = 1e30
        a[1] = 1e20
    else:
        a[1, -1, -1] = math.nan
    ours, new_stats = run(ops, x, stats, a, active, damping=1e-3, **options)
    assert torch.equal(ours[1], x[1])
    assert new_stats[1].tolist() == [float(stats[1, 0]), 3]
    assert torch.equal(ours[::2], clean[0][::2])
    assert torch.equal(new_stats[::2], clean[1][::2])
    assert not torch.equal(ours[::2], x[::2])


NOT_FINITE = [
    (7, 40, {"factor_scale": "trace"}),
    (7, 150, {"factor_scale": "trace", "refine": 2}),
    (140, 60, {"factor_scale": "frobenius"}),
    (140, 300, {"factor_scale": "frobenius", "refine": 2}),
    (140, 300, {"factor_scale": "schatten4", "refine": 1}),
]
"""Sides d and k, in one chunk and in several."""


@pytest.mark.parametrize("fault", ["nan", "overflow"])
@pytest.mark.parametrize(("d", "k", "options"), [*NOT_FINITE, (20, 150, {"factor_scale": "exact"})], ids=str)
def test_a_mean_that_is_not_finite_leaves_the_block(
    d: int, k: int, options: dict[str, Any], fault: str, backend: str
) -> None:
    check_mean_not_finite(cases.ops(backend, torch.float32), d, k, fault, options)


def check_chunk_not_finite(ops: Any, d: int, atol: float) -> None:
    """Without a mean to keep, the columns that are finite count."""
    width = max(d, 64)
    x, a, active = cases.spd(2, d, torch.float32), torch.randn(2, d, 3 * width), torch.tensor([True, True])
    a /= math.sqrt(3 * width)
    a[1, 0, width + 1] = math.nan
    options = {"factor_scale": "frobenius", "refine": 2}
    ours, stats = run(ops, x, torch.zeros(2, 2), a, active, **options)
    finite = a[1:, :, [*range(width), *range(2 * width, 3 * width)]]
    plain, exact = (
        run(reference, x[1:].to(t), torch.zeros(1, 2, dtype=t), finite.to(t), active[1:], **options)[0]
        for t in (torch.float32, torch.float64)
    )
    assert_as_accurate(ours[1:], plain, exact, "factor", atol)
    assert stats[:, 1].tolist() == [0, 1]


@pytest.mark.parametrize("d", [20, 140])
def test_a_chunk_that_is_not_finite_is_left_out(d: int, backend: str) -> None:
    check_chunk_not_finite(cases.ops(backend, torch.float32), d, backend_atol(backend, 2))


def check_start_not_finite(ops: Any, d: int, k: int) -> None:
    """1 / (damping s) overflows: the next gradient is to be the first."""
    a = torch.full((2, d, k), 1e-18)
    a[0] = 1
    ours, stats = run(
        ops, torch.zeros(2, d, d), torch.zeros(2, 2), a, torch.ones(2, dtype=torch.bool), damping=1e-5
    )
    assert not ours[1].any()
    assert stats[1].tolist() == [0, 1]
    assert ours[0].any()
    assert stats[0].tolist() == [k, 0]


@pytest.mark.parametrize("d", [7, 140])
def test_a_first_factor_that_is_not_finite_is_counted(d: int, backend: str) -> None:
    check_start_not_finite(cases.ops(backend, torch.float32), d, 16)


def check_square_of_y(ops: Any, d: int, options: dict[str, Any], atol: float) -> None:
    """A gradient that comes alive: Y Y^T = X A A^T X overflows, t and the result do not."""
    size, damping = 1e34, 1e-3
    x, a = size * cases.spd(2, d, torch.float32), 1e-17 * torch.randn(2, d, 20)
    stats, active = torch.tensor([[1 / (damping * size), 0.0]] * 2), torch.ones(2, dtype=torch.bool)
    ours, new_stats = run(ops, x, stats, a, active, damping=damping, **options)
    plain, exact = (
        run(reference, x.to(t), stats.to(t), a.to(t), active, damping=damping, **options)[0]
        for t in (torch.float32, torch.float64)
    )
    assert not (x @ a @ (x @ a).mT).isfinite().all(), "the input must be as large as the test says"
    assert_as_accurate(ours / size, plain / size, exact / size, "factor", atol)
    assert not new_stats[:, 1].any()


SQUARES_OF_Y = [("trace", 0), ("frobenius", 0), ("product", 0), ("schatten4", 1), ("frobenius", 2)]


@pytest.mark.parametrize(("factor_scale", "refine"), SQUARES_OF_Y)
@pytest.mark.parametrize("d", [9, 140])
def test_the_square_of_y_does_not_overflow(d: int, factor_scale: str, refine: int, backend: str) -> None:
    options = {"factor_scale": factor_scale, "refine": refine, "precision": "bf16x6"}
    check_square_of_y(cases.ops(backend, torch.float32), d, options, backend_atol(backend, refine, "bf16x6"))


@pytest.mark.parametrize("factor_scale", ["trace", "exact"])
@pytest.mark.parametrize(("d", "k"), [(5, 0), (0, 5), (0, 0)])
def test_nothing_of_a_block_without_elements_changes(d: int, k: int, factor_scale: str, backend: str) -> None:
    ops = cases.ops(backend, torch.float32)
    x, stats, active = cases.spd(2, d, torch.float32), torch.ones(2, 2), torch.ones(2, dtype=torch.bool)
    ours, new_stats = run(
        ops, x, stats, torch.zeros(2, d, k), active, damping=1e-3, factor_scale=factor_scale
    )
    assert torch.equal(ours, x)
    assert torch.equal(new_stats, stats)
