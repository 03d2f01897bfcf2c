"""Factors in the square-root form: the exact inverse, domination, and robustness."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs.square_root import check_overflow_in_rounding
from torch import Tensor

from kradagrad_ext.backends import square_root, triton
from kradagrad_ext.backends.base import (
    FALLBACKS,
    METHODS,
    RMS,
    WEIGHT,
    WHITENED,
    BlockGroup,
    Side,
    UpdateRule,
)

RULE = UpdateRule(decay=0.9, weight=0.1, damping=1e-3)
CHOLESKY, PRODUCTS = replace(RULE, method="cholesky"), replace(RULE, method="products")
RANGES = {
    (2, 3): 1.02,
    (2, 20): 1.5,
    (2, 100): 3.9,
    (3, 3): 1.001,
    (3, 20): 1.04,
    (3, 100): 1.4,
    (4, 400): 1.3,
}
"""The largest q(h)^2 h by ``(refine, t)`` for decay 0.9 (docs/concepts.md)."""


def new_side(
    n: int, d: int, dtype: torch.dtype = torch.float64, factor_dtype: torch.dtype | None = None
) -> Side:
    """Return a side before its first gradient, when the values of its factor must not matter."""
    factor = torch.full((n, d, d), math.nan, dtype=factor_dtype or dtype)
    return Side(factor, torch.zeros(n, 4, dtype=dtype), torch.eye(d, dtype=dtype).repeat(n, 1, 1))


@pytest.fixture(params=cases.SQUARE_ROOT_BACKENDS)
def ops(request: pytest.FixtureRequest) -> Any:
    return cases.square_root_ops(request.param)


def feed(side: Side, gradients: list[Tensor], rule: UpdateRule, ops: Any = square_root) -> Side:
    """Update a side by unfoldings ``[N, d, k]``, and return it."""
    scales = torch.ones(len(side.factor), dtype=side.statistics.dtype)
    for u in gradients:
        ops.update_factor_(side.factor, side.statistics, [u], scales, rule)
    return side


def x_of(side: Side) -> Tensor:
    factor = side.factor.double()
    return factor @ factor.mT


def exact_inverse(gradients: list[Tensor], rule: UpdateRule) -> Tensor:
    """Return X after all these updates, by inversion in float64."""
    k, d = gradients[0].shape[-1], gradients[0].shape[-2]
    identity, weight, mean = torch.eye(d, dtype=torch.float64), 0.0, torch.zeros(())
    statistics = torch.zeros(())
    for i, u in enumerate(gradients):
        square = u.square().sum((-2, -1)) / (d * k)
        mean = (rule.decay * weight * mean + rule.weight * square) / (rule.decay * weight + rule.weight)
        weight = rule.decay * weight + rule.weight
        damping = (rule.damping * k * mean)[:, None, None] * identity
        statistics = rule.prior / rule.damping * damping if i == 0 else statistics
        added = u @ u.mT + rule.damped_updates * damping
        statistics = rule.decay * statistics + rule.weight * added
    return torch.linalg.inv(statistics)


def smallest_eigenvalue(matrix: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix).min())


@settings(deadline=None, max_examples=60)
@given(
    d=st.integers(1, 12),
    k=st.integers(1, 40),
    steps=st.integers(1, 5),
    decay=st.sampled_from([0.5, 0.9, 1.0]),
    damped_updates=st.sampled_from([0.0, 1.0, 10.0]),
    seed=st.integers(0, 2**16),
)
def test_cholesky_is_the_exact_inverse(
    d: int, k: int, steps: int, decay: float, damped_updates: float, seed: int
) -> None:
    torch.manual_seed(seed)
    rule = replace(CHOLESKY, decay=decay, damping=1e-2, damped_updates=damped_updates)
    gradients = [torch.randn(2, d, k, dtype=torch.float64) for _ in range(steps)]
    ours = x_of(feed(new_side(2, d), gradients, rule))
    torch.testing.assert_close(ours, exact_inverse(gradients, rule), rtol=1e-9, atol=0)


@settings(deadline=None, max_examples=80)
@given(
    d=st.integers(1, 12),
    k=st.integers(1, 40),
    rank=st.integers(1, 12),
    scale=st.floats(-4, 3),
    refine=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
def test_products_dominate_the_exact_inverse(
    d: int, k: int, rank: int, scale: float, refine: int, seed: int
) -> None:
    """X' >= the exact one > 0 in the Loewner order, whatever shape, rank and scale (the KrAD lemma)."""
    torch.manual_seed(seed)
    low = torch.randn(1, d, rank, dtype=torch.float64) @ torch.randn(1, rank, k, dtype=torch.float64)
    start, last = [torch.randn(1, d, 3 * d, dtype=torch.float64)], low * 10**scale
    rule = replace(PRODUCTS, refine=refine)
    exact, ours = feed(new_side(1, d), start, CHOLESKY), feed(new_side(1, d), start, CHOLESKY)
    torch.testing.assert_close(exact.factor, ours.factor, rtol=0, atol=0)
    feed(exact, [last], CHOLESKY)
    feed(ours, [last], rule)
    identity = torch.eye(d, dtype=torch.float64)
    # In units of the exact result, X' is at least I: F^-1 X' F^-T >= I.
    inverse = torch.linalg.inv(exact.factor)
    assert smallest_eigenvalue(inverse @ x_of(ours) @ inverse.mT - identity) >= -1e-8
    assert smallest_eigenvalue(x_of(ours)) > 0


@pytest.mark.parametrize(("refine", "t"), RANGES)
def test_products_stay_within_their_range(refine: int, t: float) -> None:
    """Products are exact where there is no gradient, and elsewhere within the bound of the page."""
    decay, h = 0.9, torch.logspace(math.log10(0.9), math.log10(t), 60, dtype=torch.float64)
    for largest in h[1:]:
        values = torch.tensor([[decay, float(largest)]], dtype=torch.float64).diag_embed()
        # A matrix of these eigenvalues whose bound is t: one more direction has the rest of its norm.
        root = square_root.inverse_root_by_products(_with_bound(values, decay, t), decay, refine)[
            0
        ].diagonal()
        ratio = root[:2].square() * values[0].diagonal()
        assert abs(float(ratio[0]) - 1) < 1e-12
        assert 1 - 1e-12 <= float(ratio[1]) <= RANGES[refine, t]


def _with_bound(values: Tensor, decay: float, t: float) -> Tensor:
    """Return the diagonal matrix with one eigenvalue more, so that decay + |H - decay I|_F is t."""
    size = (values.diagonal(dim1=-2, dim2=-1) - decay).square().sum(-1)
    rest = decay + ((t - decay) ** 2 - size).clamp_min(0).sqrt()
    return torch.cat([values.diagonal(dim1=-2, dim2=-1), rest[:, None]], -1).diag_embed()


def test_more_products_are_nearer() -> None:
    u = [torch.randn(3, 20, 30, dtype=torch.float64) * 3]
    start = [torch.randn(3, 20, 60, dtype=torch.float64)]
    results = []
    for refine in range(1, 7):
        side = feed(new_side(3, 20), start, CHOLESKY)
        results.append(x_of(feed(side, u, replace(PRODUCTS, refine=refine))))
    exact = x_of(feed(feed(new_side(3, 20), start, CHOLESKY), u, CHOLESKY))
    distances = [float((x - exact).norm() / exact.norm()) for x in results]
    assert all(near < far for far, near in itertools.pairwise(distances))
    assert distances[-1] < 1e-3


SEQUENCES = (
    "spikes of 1e0",
    "spikes of 1e4",
    "spikes of 1e8",
    "silence",
    "rank one",
    "constant",
    "tiny first",
    "growing",
)


def sequence(kind: str, n: int, d: int, k: int, short: bool = False) -> list[Tensor]:
    """Return unfoldings like those of training; with `short`, a tenth of them or fewer."""
    steps, silence, constant = (3, 9, 18) if short else (30, 1000, 200)
    usual = [torch.randn(n, d, k) for _ in range(steps)]
    silent = [torch.zeros(n, d, k)] * silence
    column, row = torch.randn(n, d, 1), torch.randn(n, 1, k)
    if kind.startswith("spikes"):
        size = float(kind.split()[-1])
        return [*usual, size * torch.randn(n, d, k), *usual, size**0.5 * column @ row, *usual]
    return {
        "silence": [*silent, *usual[:5], *silent, *usual],
        "rank one": [column @ torch.randn(n, 1, k) for _ in range(2 * steps)],
        "constant": [column @ row] * constant,
        "tiny first": [1e-6 * usual[0], *usual],
        "growing": [u * 10 ** (3 * step / steps) for step, u in enumerate(usual)],
    }[kind]


@pytest.mark.parametrize("factor_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", [CHOLESKY, PRODUCTS], ids=METHODS)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_nothing_makes_a_factor_indefinite(
    kind: str, rule: UpdateRule, factor_dtype: torch.dtype, ops: Any
) -> None:
    """F F^T stays finite and positive definite, and fits the usual gradients once all else is forgotten."""
    interpreted = ops is triton and rule is PRODUCTS
    side = new_side(2, 8, torch.float32, factor_dtype)
    for u in sequence(kind, 2, 8, 12, interpreted):
        feed(side, [u], rule, ops)
        assert side.statistics[:, WEIGHT].eq(0).any() or side.factor.isfinite().all()
    assert smallest_eigenvalue(x_of(side)) > 0
    if interpreted:  # hundreds of steps would take minutes
        return
    feed(side, [torch.randn(2, 8, 12) for _ in range(400)], rule, ops)
    seen = [feed(side, [torch.randn(2, 8, 12)], rule, ops).statistics[:, WHITENED].clone() for _ in range(40)]
    assert 0.8 < float(torch.stack(seen).mean()) < 1.25


@pytest.mark.parametrize("rule", [CHOLESKY, PRODUCTS], ids=METHODS)
@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e-8, 1e8, 1e30])
def test_gradients_times_a_constant_change_nothing_but_units(
    scale: float, rule: UpdateRule, ops: Any
) -> None:
    """float32 factors of gradients times c are those of the gradients divided by c."""
    gradients = [torch.randn(2, 16, 9) for _ in range(12)]
    usual = feed(new_side(2, 16, torch.float32), gradients, rule, ops)
    scaled = feed(new_side(2, 16, torch.float32), [u * scale for u in gradients], rule, ops)
    torch.testing.assert_close(scaled.factor.double() * scale, usual.factor.double(), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(scaled.statistics[:, RMS].double() / scale, usual.statistics[:, RMS].double())
    torch.testing.assert_close(scaled.statistics[:, 1:], usual.statistics[:, 1:], rtol=1e-3, atol=0)


def test_failed_cholesky_takes_qr_and_is_counted(ops: Any) -> None:
    """A spike of 1e5 leaves H = decay I + B B^T without its I in float32; QR does not form H."""
    d, undamped = 32, replace(CHOLESKY, damped_updates=0.0)
    start = [torch.randn(2, d, 3 * d) for _ in range(20)]
    side = feed(new_side(2, d, torch.float32), start, CHOLESKY, ops)
    double = feed(new_side(2, d), [u.double() for u in start], CHOLESKY, ops)
    spike = torch.randn(2, d, d // 2)
    spike[1] *= 1e5
    feed(side, [spike], undamped, ops)
    feed(double, [spike.double()], undamped, ops)
    assert side.statistics[:, FALLBACKS].tolist() == [0, 1]
    inverse = torch.linalg.inv(double.factor)
    near = inverse @ x_of(side) @ inverse.mT
    torch.testing.assert_close(near, torch.eye(d, dtype=torch.float64).expand_as(near), rtol=0, atol=0.2)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("rule", [CHOLESKY, PRODUCTS], ids=METHODS)
def test_what_is_not_finite_leaves_the_block_and_is_counted(rule: UpdateRule, value: float, ops: Any) -> None:
    side = feed(new_side(2, 6, torch.float32), [torch.randn(2, 6, 5)], rule, ops)
    factor, statistics = side.factor.clone(), side.statistics.clone()
    u = torch.randn(2, 6, 5)
    u[1, 2, 3] = value
    feed(side, [u], rule, ops)
    assert torch.equal(side.factor[1], factor[1])
    assert torch.equal(side.statistics[1, :FALLBACKS], statistics[1, :FALLBACKS])
    assert side.statistics[:, FALLBACKS].tolist() == [0, 1]
    assert not torch.equal(side.factor[0], factor[0])


@pytest.mark.parametrize("d", [6, 70])
@pytest.mark.parametrize("rule", [CHOLESKY, PRODUCTS], ids=METHODS)
def test_a_factor_that_overflows_only_in_rounding_stays_and_is_counted(
    rule: UpdateRule, d: int, ops: Any
) -> None:
    check_overflow_in_rounding(ops, d, rule)


def group_of(n: int, shape: tuple[int, int], coupled_roots: bool = True) -> BlockGroup:
    m, k = shape
    sides = [new_side(n, d, torch.float64) for d in shape]
    if coupled_roots:
        sides = [replace(side, root=cases.spd(n, side.factor.shape[-1], torch.float64)) for side in sides]
    views = [[torch.randn(n, m, k, dtype=torch.float64)] for _ in range(3)]
    return BlockGroup(*sides, *views)


@pytest.mark.parametrize("coupled", [False, True])
def test_kron_step_updates_both_sides_and_preconditions(coupled: bool, ops: Any) -> None:
    group, rule = group_of(3, (5, 7)), replace(CHOLESKY, coupled=coupled)
    scales = torch.tensor([1, 0, 0.3], dtype=torch.float64)
    active, norms = scales > 0, torch.full_like(scales, math.nan)
    g, d, out = group.grads[0], group.directions[0], group.out[0].clone()
    sides = [new_side(3, size, torch.float64) for size in (5, 7)]
    ops.kron_step_([group], scales, norms, rule, update=True, precondition=True)
    size = g.square().sum((-2, -1), keepdim=True).sqrt()
    for side, other, new, gradient in (
        (group.left, group.right, sides[0], g),
        (group.right, group.left, sides[1], g.mT),
    ):
        u = gradient @ other.root if coupled else gradient
        stretch = u.square().sum((-2, -1), keepdim=True).sqrt() / size
        ops.update_factor_(new.factor, new.statistics, [u / stretch], scales, rule)
        torch.testing.assert_close(side.factor[active], new.factor[active])
        torch.testing.assert_close(side.statistics[:, :WHITENED], new.statistics[:, :WHITENED])
    expected = group.left.root @ d @ group.right.root / group.left.statistics[:, RMS, None, None]
    torch.testing.assert_close(group.out[0][active], expected[active])
    assert torch.equal(group.out[0][1], out[1])
    torch.testing.assert_close(norms[active], expected[active].square().sum((-2, -1)))
    assert norms[1] == 0


def test_whitened_gradients_have_mean_square_one_in_equilibrium(ops: Any) -> None:
    """The statistic of the last gradient: the squares of F^T U add up to the number of F's directions."""
    scales = torch.logspace(0, 1, 12, dtype=torch.float64)[:, None]
    side, seen = new_side(1, 12), []
    for _ in range(400):
        feed(side, [scales * torch.randn(1, 12, 40, dtype=torch.float64)], CHOLESKY, ops)
        seen.append(float(side.statistics[0, WHITENED]))
    assert 0.9 < sum(seen[100:]) / 300 < 1.1


def test_a_block_of_no_gradient_or_no_elements_stays(ops: Any) -> None:
    group = group_of(2, (4, 3))
    group.grads[0].zero_()
    group.directions[0].fill_(1)
    norms, scales = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    ops.kron_step_([group], scales, norms, RULE, update=True, precondition=True)
    assert group.left.factor.isnan().all()
    assert not group.left.statistics.any()
    assert not group.out[0].any()
    assert norms.tolist() == [0, 0]
    empty = group_of(2, (0, 3))
    ops.kron_step_([empty], scales, norms.fill_(1), RULE, update=True, precondition=True)
    assert norms.tolist() == [0, 0]


@pytest.mark.parametrize("rule", [CHOLESKY, PRODUCTS], ids=METHODS)
def test_blocks_are_independent(rule: UpdateRule, ops: Any) -> None:
    """A permutation of the blocks permutes the result, bit for bit."""
    gradients, order = [torch.randn(9, 33, 20) for _ in range(3)], torch.randperm(9)
    whole = feed(new_side(9, 33, torch.float32), gradients, rule, ops)
    permuted = feed(new_side(9, 33, torch.float32), [u[order] for u in gradients], rule, ops)
    assert torch.equal(whole.factor[order], permuted.factor)
    assert torch.equal(whole.statistics[order], permuted.statistics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 0.0}, r"`decay` must be in \(0, 1\], got 0.0"),
        ({"decay": math.nan}, r"`decay` must be in \(0, 1\], got nan"),
        ({"weight": 0.0}, "`weight` must be > 0 and finite, got 0.0"),
        ({"damping": math.inf}, "`damping` must be > 0 and finite, got inf"),
        ({"damped_updates": -1.0}, "`damped_updates` must be >= 0 and finite, got -1.0"),
        ({"refine": 0}, "`refine` must be 1 to 6, got 0"),
        ({"method": "qr"}, r"`method` must be one of \('cholesky', 'products'\), got 'qr'"),
        ({"precision": "fp8"}, "`precision` must be one of .*, got 'fp8'"),
    ],
)
def test_a_rule_names_what_is_wrong(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"UpdateRule: {message}"):
        replace(RULE, **options)
