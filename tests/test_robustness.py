"""The optimizer when things go wrong: values, scales, arguments; and no host sync in a step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from training import SMALL, parameters, set_gradients, train

import kradagrad_ext
from kradagrad_ext import KrADagrad
from kradagrad_ext.backends.base import RMS
from kradagrad_ext.schedule import SETTLED


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_of_its_parameter(value: float, backend: str) -> None:
    params = parameters((20, 12), (7,))
    optimizer = KrADagrad(params, **SMALL, backend=backend)
    train(optimizer, params, range(5))
    set_gradients(params, 5)
    assert params[0].grad is not None
    params[0].grad[3, 4] = value
    before = params[0].detach().clone(), {k: v.clone() for k, v in optimizer.state[params[0]].items()}
    other = params[1].detach().clone()
    optimizer.step()
    assert torch.equal(params[0], before[0])
    for key, tensor in optimizer.state[params[0]].items():
        if key != "matrix_stats":  # which counts the skip
            assert torch.equal(tensor, before[1][key]), key
    counted = optimizer.state[params[0]]["matrix_stats"][0, :2].tolist()
    assert counted == before[1]["matrix_stats"][0, :2].tolist()
    assert not torch.equal(params[1], other)
    (report,) = kradagrad_ext.read_diagnostics(optimizer)
    assert report["non_finite_gradients"] == 1
    train(optimizer, params, range(6, 12))
    assert params[0].isfinite().all()


def test_a_first_gradient_that_is_not_finite(backend: str) -> None:
    """The first good gradient starts the factors, whenever it comes."""
    params = parameters((12, 12))
    optimizer = KrADagrad(params, **SMALL, backend=backend)
    params[0].grad = torch.full((12, 12), math.nan)
    optimizer.step()
    train(optimizer, params, range(1, 8))
    fresh = parameters((12, 12))
    train(KrADagrad(fresh, **SMALL, backend=backend), fresh, range(1, 8))
    assert params[0].isfinite().all()
    assert optimizer.state[params[0]]["matrix_stats"][0, 0] == 7


def test_zero_gradients_are_harmless(backend: str) -> None:
    params = parameters((12, 12), (5,))
    optimizer = KrADagrad(params, **SMALL, backend=backend)
    start = [p.detach().clone() for p in params]
    for _ in range(4):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, start, strict=True))
    train(optimizer, params, range(3))
    assert all(p.isfinite().all() for p in params)
    (report,) = kradagrad_ext.read_diagnostics(optimizer)
    counts = {name: value for name, value in report.items() if isinstance(value, int)}
    assert counts == {
        "steps": 7,
        "non_finite_gradients": 0,
        "gradient_spikes": 0,
        "graft_fallbacks": 0,
        "factor_fallbacks": 0,
        "roots_kept": 0,
    }
    assert report["smallest_eigenvalue"] > 0


def test_a_direction_without_gradient_does_not_wind_up(backend: str) -> None:
    """With forgetting, factors stay bounded by about the inverse of the damping: 2000 low-rank steps."""
    (p,) = parameters((16, 16))
    optimizer = KrADagrad([p], lr=1e-3, block_size=16, backend=backend)
    row = torch.randn(16)
    for step in range(2000):
        generator = torch.Generator().manual_seed(step)
        p.grad = torch.randn(16, 1, generator=generator) * row
        optimizer.step()
    factor, stats = optimizer.state[p]["factor_0_1"][0].double(), optimizer.state[p]["factor_stats_0_1"][0]
    eigenvalues = torch.linalg.svdvals(factor).square()
    assert 0.3 < eigenvalues.max() * 1e-3 * 16 * stats[RMS] ** 2 < 30
    assert eigenvalues.min() > 0
    assert p.isfinite().all()


@pytest.mark.parametrize(
    ("gradient", "got"),
    [
        (torch.zeros(4, 4).to_sparse(), "sparse_coo float32"),
        (torch.zeros(4, 4, dtype=torch.complex64), "strided complex64"),
    ],
)
def test_unsupported_gradients_are_named_and_nothing_moves(gradient: Tensor, got: str, backend: str) -> None:
    first, second = parameters((4, 4), (4, 4))
    if gradient.is_complex():
        second = nn.Parameter(torch.zeros(4, 4))
    optimizer = KrADagrad([first], **SMALL, backend=backend)
    optimizer.param_groups[0]["params"].append(second)
    first.grad = torch.ones(4, 4)
    start = first.detach().clone()
    if gradient.is_complex():
        second.data = torch.zeros(4, 4, dtype=torch.complex64)
    second.grad = gradient
    with pytest.raises(
        TypeError, match="the gradient of parameter 1 of parameter group 0 must be dense"
    ) as caught:
        optimizer.step()
    assert got in str(caught.value)
    assert torch.equal(first, start)
    assert not optimizer.state
    assert optimizer.param_groups[0]["step"] == 0


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.float16])
def test_unsupported_parameters_are_refused(dtype: torch.dtype) -> None:
    p = nn.Parameter(
        torch.zeros(3, 3, dtype=dtype), requires_grad=dtype.is_floating_point or dtype.is_complex
    )
    with pytest.raises(TypeError, match="parameter 0 of parameter group 0 must be dense float32"):
        KrADagrad([p])


def test_bad_options_in_mid_run_change_nothing() -> None:
    params = parameters((8, 8))
    optimizer = KrADagrad(params, **SMALL)
    train(optimizer, params, range(2))
    start = params[0].detach().clone()
    for option, value in (("lr", -1.0), ("betas", (2.0, 0.9)), ("block_size", 4), ("graft", "sgd")):
        old = optimizer.param_groups[0][option]
        optimizer.param_groups[0][option] = value
        with pytest.raises(ValueError, match=f"`{option}` must"):
            optimizer.step()
        optimizer.param_groups[0][option] = old
    assert torch.equal(params[0], start)
    assert optimizer.param_groups[0]["step"] == 2
    optimizer.param_groups[0]["weight_decay"] = 0.1
    optimizer.step()
    assert not torch.equal(params[0], start)


def test_bad_arguments_of_the_constructor() -> None:
    with pytest.raises(
        ValueError, match="`lr` must be a number >= 0 that float32 holds, or a one-element tensor, got -1"
    ):
        KrADagrad(parameters((3, 3)), lr=-1.0)
    with pytest.raises(ValueError, match="`lr` must be a one-element floating tensor"):
        KrADagrad(parameters((3, 3)), lr=torch.zeros(2))
    (p,) = parameters((3, 3))
    p.grad = torch.ones(3, 3)
    optimizer = KrADagrad([p], backend="abacus")
    with pytest.raises(ValueError, match="`backend` must be one of"):
        optimizer.step()
    with pytest.raises(ValueError, match="empty parameter list"):
        KrADagrad([])


def test_no_host_sync_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step asks a tensor for its value, with roots by products."""
    params = parameters((20, 12), (7,))
    optimizer = KrADagrad(params, **SMALL, root_method="polar", factor_update="products", backend="reference")
    train(optimizer, params, range(1))

    def forbidden(*_: object) -> None:
        raise AssertionError("a host sync")

    with monkeypatch.context() as watched:
        for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
            watched.setattr(Tensor, name, forbidden)
        train(optimizer, params, range(1, 8))
    assert optimizer.state[params[0]]["matrix_stats"][0, 0] == 8


def test_the_steps_before_the_first_preconditioned_one_are_no_fallbacks(backend: str) -> None:
    params = parameters((12, 12))
    optimizer = KrADagrad(params, **SMALL, start_step=4, backend=backend)
    train(optimizer, params, range(6))
    assert kradagrad_ext.read_diagnostics(optimizer)[0]["graft_fallbacks"] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize("graft", ["adam", "sgd"])
def test_an_update_that_is_not_sound_gives_way_to_the_graft(graft: str, value: float, backend: str) -> None:
    """A spoilt root must not reach the parameter; the step is the unpreconditioned one, and counted."""
    params, plain = parameters((8, 8)), parameters((8, 8))
    options = {**SMALL, "graft": graft, "backend": backend, "nesterov": False}
    optimizer = KrADagrad(params, **options)
    unpreconditioned = KrADagrad([{"params": plain, "precondition": False}], **options)
    train(optimizer, params, range(1))
    train(unpreconditioned, plain, range(1))
    plain[0].data.copy_(params[0].data)
    optimizer.param_groups[0]["step"] = SETTLED  # the next makes no roots
    optimizer.state[params[0]]["root_0_0"].fill_(value)
    train(optimizer, params, range(1, 2))
    train(unpreconditioned, plain, range(1, 2))
    torch.testing.assert_close(params[0], plain[0])
    assert kradagrad_ext.read_diagnostics(optimizer)[0]["graft_fallbacks"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_with_nesterov_the_fallback_is_the_momentum(value: float, backend: str) -> None:
    """With Nesterov, updates are written over the directions."""
    params = parameters((8, 8))
    optimizer = KrADagrad(params, **SMALL, graft="sgd", backend=backend)
    train(optimizer, params, range(1))
    optimizer.param_groups[0]["step"] = SETTLED  # the next makes no roots
    optimizer.state[params[0]]["root_0_0"].fill_(value)
    start = params[0].detach().clone()
    train(optimizer, params, range(1, 2))
    moved, momentum = params[0].detach() - start, optimizer.state[params[0]]["exp_avg"]
    torch.testing.assert_close(moved / moved.norm(), -momentum / momentum.norm(), rtol=1e-4, atol=1e-5)
    assert kradagrad_ext.read_diagnostics(optimizer)[0]["graft_fallbacks"] == 1
