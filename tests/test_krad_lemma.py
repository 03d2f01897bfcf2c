"""What the KrAD lemma guarantees of `update_factor_`: domination, tightness, positive definiteness."""

from __future__ import annotations

import itertools
import math
from typing import Any

import cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_update_factor import RECIPES, run

from kradagrad_ext.backends import reference
from kradagrad_ext.backends.base import FACTOR_SCALES


@settings(deadline=None, max_examples=80)
@given(
    d=st.integers(1, 12),
    k=st.integers(1, 90),
    rank=st.integers(1, 12),
    scale=st.floats(-4, 2),
    factor_scale=st.sampled_from(FACTOR_SCALES),
    refine=st.integers(0, 4),
    seed=st.integers(0, 2**16),
)
def test_dominates_the_exact_inverse(
    d: int, k: int, rank: int, scale: float, factor_scale: str, refine: int, seed: int
) -> None:
    """X' >= (X^-1 + A A^T)^-1 > 0 in the Loewner order (the KrAD lemma), whatever shape, rank and scale."""
    torch.manual_seed(seed)
    x = cases.spd(1, d, torch.float64, condition=1e3)
    a = torch.randn(1, d, min(rank, k), dtype=torch.float64) @ torch.randn(
        1, min(rank, k), k, dtype=torch.float64
    )
    a *= 10**scale
    active = torch.ones(1, dtype=torch.bool)
    options = {"decay": 1.0, "weight": 1.0, "factor_scale": factor_scale, "refine": refine}
    ours = run(reference, x, x.new_zeros(1, 2), a, active, **options)[0]
    exact = torch.linalg.inv(torch.linalg.inv(x) + a @ a.mT)
    gap = torch.linalg.eigvalsh(ours - (exact + exact.mT) / 2)
    size = float(torch.linalg.matrix_norm(x, 2))
    # The float64 rounding of `exact` itself: its inverses lose the conditions of X and of I + A^T X A.
    rounding = 1e-14 * size * (1e3 + size * float(a.square().sum()))
    assert gap.min() >= -rounding
    assert torch.linalg.eigvalsh(ours).min() > -rounding
    assert torch.linalg.eigvalsh(x - ours).min() >= -rounding


@settings(deadline=None, max_examples=30)
@given(d=st.integers(2, 10), k=st.integers(1, 10), seed=st.integers(0, 2**16))
def test_refinement_grows_towards_the_exact_update(d: int, k: int, seed: int) -> None:
    """Every iterate shrinks X more than the one before, and in the end by nearly all of the exact update.

    Near the eigenvalue 1 of W the cubic has slope 1, so the last hundredths come slowly; and from the twelfth
    iterate on, what rounding leaves in W grows.
    """
    torch.manual_seed(seed)
    x, a = cases.spd(1, d, torch.float64, condition=10.0), torch.randn(1, d, k, dtype=torch.float64)
    active = torch.ones(1, dtype=torch.bool)
    options: dict[str, Any] = {"decay": 1.0, "weight": 1.0, "factor_scale": "frobenius"}
    iterates = [
        run(reference, x, x.new_zeros(1, 2), a, active, refine=r, **options)[0] for r in (0, 1, 2, 10)
    ]
    for loose, tight in itertools.pairwise(iterates):
        assert torch.linalg.eigvalsh(loose - tight).min() >= -1e-10
    exact = torch.linalg.inv(torch.linalg.inv(x) + a @ a.mT)
    assert torch.linalg.eigvalsh((x - iterates[-1]) - 0.96 * (x - exact)).min() >= -1e-10


def test_rank_one_is_exact_with_the_trace_scale() -> None:
    x, a = cases.spd(3, 7, torch.float64), torch.randn(3, 7, 1, dtype=torch.float64)
    active = torch.ones(3, dtype=torch.bool)
    ours = run(reference, x, x.new_zeros(3, 2), a, active, decay=1.0, weight=1.0, factor_scale="trace")[0]
    torch.testing.assert_close(ours, torch.linalg.inv(torch.linalg.inv(x) + a @ a.mT))


def test_scales_order_from_loose_to_tight() -> None:
    """Each bound shrinks at least as much as the looser one before it (base.FACTOR_SCALES)."""
    x, a = cases.spd(4, 9, torch.float64), torch.randn(4, 9, 5, dtype=torch.float64)
    active = torch.ones(4, dtype=torch.bool)
    kept = [
        run(reference, x, x.new_zeros(4, 2), a, active, decay=1.0, weight=1.0, factor_scale=scale)[0]
        for scale in ("trace_dim", "trace", "frobenius", "schatten4", "exact")
    ]
    for loose, tight in itertools.pairwise(kept):
        assert torch.linalg.eigvalsh(loose - tight).min() >= -1e-10


@pytest.mark.parametrize("options", RECIPES, ids=str)
def test_float32_stays_positive_definite_over_a_long_run(options: dict[str, Any], backend: str) -> None:
    """Low-rank gradients of changing scale, 400 updates with forgetting: the spectrum stays positive."""
    ops = cases.ops(backend, torch.float32)
    d, active = 48, torch.ones(1, dtype=torch.bool)
    x, stats = torch.zeros(1, d, d), torch.zeros(1, 2)
    basis = torch.linalg.qr(torch.randn(d, 4))[0]
    for step in range(40 if backend == "triton" else 400):  # an interpreted update takes a second
        a = (basis @ torch.randn(4, 20))[None] * 10 ** math.sin(step / 20)
        a = a + 0.05 * torch.randn(1, d, 20)
        x, stats = run(ops, x, stats, a, active, decay=0.95, weight=0.05, damping=1e-3, **options)
    values = torch.linalg.eigvalsh(x.double())
    assert values.min() > 0
    assert not stats[:, 1].any()
