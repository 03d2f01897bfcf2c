"""The diagnostics' measures, against linear algebra in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diagnosed import RECIPES, SHAPES, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from training import SMALL, parameters, set_gradients, train

import kradagrad_ext
from kradagrad_ext import AsyncDiagnostics, KrADagrad, linalg, polar, roots
from kradagrad_ext.backends.base import RMS
from kradagrad_ext.backends.scalars import UNIT
from kradagrad_ext.diagnostics import MEASURES, _value, factor_bounds
from kradagrad_ext.schedule import SETTLED

pytestmark = pytest.mark.filterwarnings("ignore:KrADagrad. .* of the elements of matrices are")


def blocks(optimizer: KrADagrad, name: str) -> list[Tensor]:
    """Return all factors F, times the root mean square of their gradients, or all roots, in float64."""
    matrices = []
    for p, state in optimizer.state.items():
        for key, batch in state.items():
            if key.startswith(f"{name}_"):
                if "stats" in key:
                    continue
                packed = batch.ndim == 2
                assert packed == optimizer.param_groups[0]["packed"], (p.shape, key)
                unpack = linalg.unpack_upper if name == "factor" else linalg.unpack_lower
                full = (unpack(batch, linalg.side_of(batch.shape[-1])) if packed else batch).double()
                rms = state[key.replace("factor", "factor_stats")][:, RMS] if name == "factor" else 1
                matrices += list(full * torch.as_tensor(rms).reshape(-1, 1, 1))
    return matrices


def one_factor(factor: Tensor) -> dict[str, float]:
    """Return the report of an optimizer of one block, with `factor` as its left factor F, without units."""
    (p,) = parameters((len(factor), 3), dtype=torch.float64)
    optimizer = KrADagrad([p], block_size=len(factor))
    train(optimizer, [p], range(1))
    for mode in (0, 1):
        optimizer.state[p][f"factor_stats_0_{mode}"][0, RMS] = 1
    optimizer.state[p]["factor_0_0"][0] = factor
    optimizer.state[p]["factor_0_1"][0] = torch.eye(3) * factor.diagonal().nan_to_num(1.0).mean().abs()
    (report,) = kradagrad_ext.read_diagnostics(optimizer)
    return report


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_of_trained_optimizers(recipe: dict[str, Any], dtype: torch.dtype) -> None:
    """For every kind of state, bounds hold and are within their formulas' slack, d and sqrt(d)."""
    optimizer = trained(recipe, dtype)
    (report,) = kradagrad_ext.read_diagnostics(optimizer)
    assert list(report) == list(MEASURES)
    values = [torch.linalg.svdvals(factor).square().flip(0) for factor in blocks(optimizer, "factor")]
    least, most = min(float(v[0]) for v in values), max(float(v[-1]) for v in values)
    d = max(map(len, values))
    assert least / d <= report["smallest_eigenvalue"] <= least * (1 + 1e-9)
    assert most * (1 - 1e-9) <= report["largest_eigenvalue"] <= most * math.sqrt(d)
    worst = max(float(v[-1] / v[0]) for v in values)
    assert worst * (1 - 1e-9) <= report["condition"] <= worst * d**1.5
    assert 0 < report["smallest_whitened"] <= report["largest_whitened"] < 100
    assert 0 < report["root_residual"] < roots.RESIDUAL_BOUND
    assert 0 < report["smallest_graft_ratio"] <= report["largest_graft_ratio"] < math.inf
    assert report["steps"] == 8


@settings(deadline=None, max_examples=60)
@given(
    d=st.integers(1, 33),
    condition=st.floats(0, 10),
    scale=st.floats(-30, 30),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 999),
)
def test_bounds_are_certain(d: int, condition: float, scale: float, dtype: torch.dtype, seed: int) -> None:
    """Bounds hold for random factors of any size and scale, even those that float32 made indefinite."""
    torch.manual_seed(seed)
    left, right = torch.linalg.qr(torch.randn(2, 3, d, d, dtype=torch.float64))[0]
    f = left * torch.logspace(0, -condition / 2, d, dtype=torch.float64) @ right
    f = (f * 10**scale).to(dtype)
    values = torch.linalg.svdvals(f.double()).square().flip(-1)
    bounds = factor_bounds(f)
    slack = 1e-13 * d * values[:, -1]
    assert (bounds["smallest_eigenvalue"] <= values[:, 0] * (1 + 1e-6)).all()
    assert (bounds["largest_eigenvalue"] >= values[:, -1] - slack).all()
    assert (bounds["smallest_eigenvalue"] >= 0.99 * values[:, 0] / d).all()
    assert (bounds["condition"] >= 0.99 * values[:, -1] / values[:, 0]).all()


def test_a_factor_that_is_singular() -> None:
    """The report of its neighbour in the batch is unaffected."""
    f = torch.randn(2, 9, 9, dtype=torch.float64)
    f[1, 4] = 0
    bounds = factor_bounds(f)
    x = f[0] @ f[0].mT
    torch.testing.assert_close(bounds["smallest_eigenvalue"][0], 1 / torch.linalg.inv(x).trace())
    assert bounds["smallest_eigenvalue"][1] == 0
    report = one_factor(f[1])
    assert report["smallest_eigenvalue"] == 0
    assert report["condition"] == math.inf
    assert report["largest_eigenvalue"] >= torch.linalg.svdvals(f[1])[0] ** 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_factor_that_is_not_finite(value: float) -> None:
    f = torch.eye(5, dtype=torch.float64)
    f[2, 2] = value
    report = one_factor(f)
    assert report["smallest_eigenvalue"] == 0
    assert [report[name] for name in ("largest_eigenvalue", "condition")] == [math.inf] * 2


def test_the_residual_is_that_of_the_roots() -> None:
    """The residual is that of the definition, after a last step that computed roots."""
    params = parameters((20, 13), (9, 4))
    optimizer = KrADagrad(params, **(SMALL | {"root_every": 2, "root_method": "polar"}))
    train(optimizer, params, range(4))
    residuals = []
    for p, f in zip(blocks(optimizer, "root"), blocks(optimizer, "factor"), strict=True):
        x = f @ f.mT
        x = x * (p @ p).trace() / x.trace()  # roots have no units
        residuals.append(float(torch.linalg.matrix_norm(p @ p - x) / torch.linalg.matrix_norm(x)))
    (report,) = kradagrad_ext.read_diagnostics(optimizer)
    assert 0.5 * max(residuals) < report["root_residual"] < 2 * max(residuals)


def test_a_refused_root_shows() -> None:
    """The residual is that of the root computed last, though the old root stays."""
    params = parameters((6, 4))
    optimizer = KrADagrad(params, **(SMALL | {"root_every": 1}))
    train(optimizer, params, range(2))
    optimizer.state[params[0]]["factor_0_0"].fill_(math.nan)
    optimizer.param_groups[0]["factor_every"] = 100
    train(optimizer, params, range(2, 3))
    (report,) = kradagrad_ext.read_diagnostics(optimizer)
    assert report["roots_kept"] == 1
    assert report["root_residual"] > roots.RESIDUAL_BOUND


def test_blocks_without_an_update_do_not_count() -> None:
    """Factors start at 0 and roots at I, so their measures would mean nothing."""
    params = parameters((6, 4))
    optimizer = KrADagrad(params, **SMALL, factor_every=3)
    params[0].grad = torch.zeros_like(params[0])
    optimizer.step()
    (report,) = kradagrad_ext.read_diagnostics(optimizer)
    assert math.isnan(report["smallest_eigenvalue"])
    assert math.isnan(report["condition"])
    train(optimizer, params, range(1, 2))
    assert kradagrad_ext.read_diagnostics(optimizer)[0]["smallest_eigenvalue"] > 0


def test_groups_without_blocks() -> None:
    """The report has all names; measures without a value are NaN, and the metrics leave them out."""
    params = parameters(*SHAPES)
    optimizer = KrADagrad([{"params": params, "precondition": False}])
    train(optimizer, params, range(3))
    (report,) = kradagrad_ext.read_diagnostics(optimizer)
    assert list(report) == list(MEASURES)
    counts = {name for name, fold in MEASURES.items() if fold.counts}
    assert {name for name, value in report.items() if math.isnan(value)} == set(MEASURES) - counts
    assert set(AsyncDiagnostics(optimizer).metrics()) == {f"kradagrad/group0/{name}" for name in counts}


def test_before_the_first_step() -> None:
    optimizer = KrADagrad(parameters((6, 4)))
    (report,) = kradagrad_ext.read_diagnostics(optimizer)
    assert report["steps"] == report["roots_kept"] == 0
    assert math.isnan(report["largest_graft_ratio"])


def test_skipped_gradients_are_counted_and_change_no_ratio() -> None:
    params = parameters((20, 13), (7,))
    optimizer = KrADagrad(params, **SMALL)
    train(optimizer, params, range(5))
    (before,) = kradagrad_ext.read_diagnostics(optimizer)
    for value in (math.nan, math.inf):
        for p in params:
            p.grad = torch.full_like(p, value)
        optimizer.step()
    (after,) = kradagrad_ext.read_diagnostics(optimizer)
    assert after == before | {"steps": 7, "non_finite_gradients": 4}


def test_graft_ratios_by_hand() -> None:
    """With graft sgd, no momentum and roots of known size, the ratio is |g| over |P g Q| / rms.

    For P = sqrt(a) I and Q = sqrt(b) I it is rms / sqrt(a b).
    """
    params = parameters((6, 4), (5, 3), (7,))
    options = {"graft": "sgd", "betas": (0.0, 0.0), "root_every": 100}
    optimizer = KrADagrad(params, lr=1e-3, **options)
    train(optimizer, params, range(1))
    optimizer.param_groups[0]["step"] = SETTLED  # the next step computes no roots
    for p, a, b in ((params[0], 4.0, 9.0), (params[1], 0.25, 1.0)):
        for key, scale in (("root_0_0", a), ("root_0_1", b)):
            optimizer.state[p][key].copy_(torch.eye(optimizer.state[p][key].shape[-1]) * math.sqrt(scale))
    train(optimizer, params, range(1, 2))
    states = [optimizer.state[p] for p in params[:2]]
    rms = [float(state["factor_stats_0_0"][0, RMS] * state["matrix_stats"][0, UNIT]) for state in states]
    (report,) = kradagrad_ext.read_diagnostics(optimizer)
    assert report["smallest_graft_ratio"] == pytest.approx(rms[0] / 6)
    assert report["largest_graft_ratio"] == pytest.approx(2 * rms[1])


def test_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is the same for any number of blocks in a slice."""
    for recipe in ({}, {"packed": True}):
        optimizer = trained(recipe)
        expected = kradagrad_ext.read_diagnostics(optimizer)
        monkeypatch.setitem(polar.SLICE_ELEMENTS, "cpu", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        (report,) = kradagrad_ext.read_diagnostics(optimizer)
        assert report == pytest.approx(expected[0], rel=1e-12)
        monkeypatch.undo()


@pytest.mark.parametrize("damping", [1e-3, 1e-8])
def test_gradients_of_rank_1_leave_factors_sound(damping: float) -> None:
    """Factors stay positive definite in float32, even with little damping."""
    (p,) = parameters((64, 64))
    optimizer = KrADagrad([p], lr=1e-3, damping=damping)
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, 64, generator=generator)
    for _ in range(200):
        p.grad = torch.randn(64, 1, generator=generator) @ row
        optimizer.step()
    (report,) = kradagrad_ext.read_diagnostics(optimizer)
    assert report["smallest_eigenvalue"] > 0
    assert report["condition"] < math.inf
    assert report["graft_fallbacks"] == report["roots_kept"] == 0


def test_ten_times_the_gradients_give_the_same_graft_ratio() -> None:
    ratios = []
    for scale in (1.0, 10.0):
        params = parameters((20, 13))
        optimizer = KrADagrad(params, **SMALL)
        train(optimizer, params, range(5), scale)
        ratios.append(kradagrad_ext.read_diagnostics(optimizer)[0]["largest_graft_ratio"])
    assert ratios[1] == pytest.approx(ratios[0], rel=1e-3)


def test_shares_of_devices_become_one() -> None:
    """Values are combined if one device has none, and are NaN if no device has one."""
    some, none = torch.tensor([math.inf, 0.5]), torch.tensor([math.inf, math.inf])
    assert _value("smallest_eigenvalue", some) == 0.5
    assert math.isnan(_value("smallest_eigenvalue", none))
    assert _value("largest_eigenvalue", torch.tensor([math.inf, -math.inf])) == math.inf
    assert _value("roots_kept", torch.tensor([2.0, 3.0])) == 5
    assert _value("steps", torch.tensor([0.0, 7.0])) == 7


def test_measures_are_saved_and_loaded() -> None:
    """Counts, residuals and ratios resume with the run."""
    params = parameters(*SHAPES)
    optimizer = KrADagrad(params, **SMALL)
    train(optimizer, params, range(4))
    set_gradients(params, 4)
    params[1].grad = torch.full_like(params[1], math.nan)
    optimizer.step()
    resumed = KrADagrad(parameters(*SHAPES), **SMALL)
    resumed.load_state_dict(optimizer.state_dict())
    assert kradagrad_ext.read_diagnostics(resumed) == kradagrad_ext.read_diagnostics(optimizer)
