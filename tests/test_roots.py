"""Roots: accuracy, the residual check, and what happens to a bad factor."""

from __future__ import annotations

import math

import cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kradagrad_ext import roots


@settings(deadline=None, max_examples=60)
@given(
    d=st.integers(1, 20),
    p=st.sampled_from([1, 2, 3, 4, 6, 8]),
    scale=st.floats(-6, 6),
    seed=st.integers(0, 999),
)
def test_root_to_the_p_is_the_factor(d: int, p: int, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    x = cases.spd(2, d, torch.float64) * 10**scale
    method = roots.resolve_method("newton_schulz", p, x.device)
    root, residual = roots.root(x, p, method)
    torch.testing.assert_close(torch.linalg.matrix_power(root, p), x, rtol=1e-5, atol=1e-5 * 10**scale)
    torch.testing.assert_close(root, root.mT, rtol=1e-12, atol=1e-12 * 10 ** (scale / p))
    assert (residual < 1e-6).all()
    assert torch.linalg.eigvalsh(root).min() > 0


@pytest.mark.parametrize("method", ["eigh", "newton_schulz"])
@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize(("condition", "bound"), [(1e0, 1e-5), (1e2, 6e-5), (1e4, 2e-4)])
def test_float32_accuracy(condition: float, bound: float, p: int, method: str) -> None:
    """Within the conditions that relative damping leaves; docs/numerics.md has the whole table."""
    x = cases.spd(3, 64, torch.float64, condition)
    exact, _ = roots.root(x, p, "eigh")
    ours, residual = roots.root(x.float(), p, method)
    error = torch.linalg.matrix_norm(ours.double() - exact) / torch.linalg.matrix_norm(exact)
    assert (error < bound).all()
    assert (residual < bound).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("method", ["eigh", "newton_schulz"])
def test_float32_scales_do_not_over_or_underflow(method: str, scale: float) -> None:
    x = cases.spd(2, 40, torch.float32)
    plain, _ = roots.root(x, 2, method)
    scaled, residual = roots.root(x * scale, 2, method)
    torch.testing.assert_close(scaled, plain * math.sqrt(scale), rtol=1e-4, atol=1e-4 * math.sqrt(scale))
    assert (residual < 1e-4).all()


@pytest.mark.parametrize("method", ["eigh", "newton_schulz"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_bad_factor_keeps_its_old_root(value: float, method: str) -> None:
    factors = cases.spd(3, 8, torch.float32)
    factors[1] = value
    old = torch.randn(3, 8, 8)
    new, checks = old.clone(), torch.zeros(3, 2)
    active = torch.tensor([True, True, False])
    roots.refresh_(factors, new, checks, active, 2, method)
    torch.testing.assert_close(new[0] @ new[0], factors[0], rtol=1e-3, atol=1e-3)
    assert torch.equal(new[1:], old[1:])
    assert checks[:, roots.REFUSALS].tolist() == [0, 1, 0]
    assert 0 < checks[0, roots.RESIDUAL] < 1e-4
    assert checks[1:, roots.RESIDUAL].tolist() == [math.inf, 0]


def test_an_indefinite_factor_is_refused() -> None:
    x = cases.spd(1, 6, torch.float32, 2.0)
    x[0, 0, 0] -= 10
    for method in ("eigh", "newton_schulz"):
        new, checks = torch.zeros(1, 6, 6), torch.zeros(1, 2)
        roots.refresh_(x, new, checks, torch.ones(1, dtype=torch.bool), 2, method)
        assert checks[0, roots.REFUSALS] == 1
        assert checks[0, roots.RESIDUAL] > roots.RESIDUAL_BOUND
        assert not new.any()


def test_eigh_retries_in_float64_and_then_keeps() -> None:
    x = cases.spd(2, 6, torch.float32)

    def fails(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise RuntimeError("did not converge")

    retried, residual = roots.root(x, 2, "eigh", eigh=fails)
    assert retried.dtype == torch.float32
    assert (residual < 1e-5).all()


def test_an_error_that_is_not_about_convergence_is_raised() -> None:
    def fails(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        roots.root(cases.spd(1, 3, torch.float32), 2, "eigh", eigh=fails)


def test_refresh_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = cases.spd(7, 5, torch.float64)
    whole, sliced = torch.zeros(7, 5, 5, dtype=torch.float64), torch.zeros(7, 5, 5, dtype=torch.float64)
    active = torch.ones(7, dtype=torch.bool)
    roots.refresh_(factors, whole, torch.zeros(7, 2), active, 4, "eigh")
    monkeypatch.setitem(roots.SLICE_ELEMENTS, "cpu", 60)
    roots.refresh_(factors, sliced, torch.zeros(7, 2), active, 4, "eigh")
    torch.testing.assert_close(whole, sliced)


def test_method_resolution() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert roots.resolve_method("auto", 2, cpu) == "eigh"
    assert roots.resolve_method("auto", 2, cuda) == "newton_schulz"
    assert roots.resolve_method("auto", 6, cuda) == "eigh"
    assert roots.resolve_method("newton_schulz", 6, cpu) == "eigh"
    assert roots.resolve_method("eigh", 2, cuda) == "eigh"
