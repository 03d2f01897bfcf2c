"""Gradients of any size: their scale does not change the steps, and no step is too long."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from marks import slow
from torch import Tensor, nn
from training import relative_difference

import kradagrad_ext
from kradagrad_ext import KrADagrad
from kradagrad_ext.backends.scalars import LARGEST_MOVE, UNIT, UNITS_APART, USUAL

SHAPES = [(24, 16), (7,), (3, 12, 8), (40, 33), (300, 200), ()]
CONSTANTS = {
    torch.float32: [1e-30, 1e-19, 1e19, 1e30],
    torch.bfloat16: [1e-30, 1e30],
    torch.float64: [1e-150, 1e150],
}
RECIPES: list[dict[str, Any]] = [
    {"graft": graft, "coupling": coupling, "momentum_on": momentum_on, "factor_update": factor_update}
    for graft, coupling, momentum_on, factor_update in itertools.product(
        ("adam", "adagrad", "rmsprop", "rms", "whitened"),
        ("kl", "none"),
        ("gradient", "update"),
        ("cholesky", "products"),
    )
    if graft != "whitened" or coupling == "kl"
]
FEW: list[dict[str, Any]] = [{}, {"graft": "rms", "coupling": "none", "momentum_on": "update"}]


def make_parameters(
    dtype: torch.dtype = torch.float32, shapes: list[tuple[int, ...]] = SHAPES
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def step(optimizer: KrADagrad, params: list[nn.Parameter], number: int, constant: float) -> None:
    generator = torch.Generator().manual_seed(number)
    for p in params:
        values = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = (values * (1 + 0.3 * math.sin(number)) * constant).to(p.dtype)
    optimizer.step()


def trained(constant: float, dtype: torch.dtype, shapes: list[tuple[int, ...]], **options: Any) -> list[Any]:
    params = make_parameters(dtype, shapes)
    optimizer = KrADagrad(params, lr=1e-2, block_size=16, **options)
    for number in range(12):
        step(optimizer, params, number, constant)
    (report,) = kradagrad_ext.read_diagnostics(optimizer)
    assert report["non_finite_gradients"] == report["graft_fallbacks"] == report["factor_fallbacks"] == 0
    assert 0 < report["smallest_eigenvalue"] < report["largest_eigenvalue"] < math.inf
    return params


def assert_alike(dtype: torch.dtype, shapes: list[tuple[int, ...]], **options: Any) -> None:
    """Compare runs whose gradients differ by a constant, no power of two; 1.37 shows rounding alone."""
    plain = trained(1.0, dtype, shapes, **options)
    rounding = relative_difference(trained(1.37, dtype, shapes, **options), plain)
    for constant in CONSTANTS[dtype]:
        difference = relative_difference(trained(constant, dtype, shapes, **options), plain)
        assert difference <= 4 * rounding + 1e-7, (constant, difference, rounding)


@pytest.mark.parametrize("dtype", CONSTANTS, ids=str)
@pytest.mark.parametrize("recipe", FEW, ids=str)
def test_constants(recipe: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    assert_alike(dtype, SHAPES[:4], backend=backend, **recipe)


@slow
@pytest.mark.parametrize("dtype", CONSTANTS, ids=str)
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_constants_with_every_recipe(recipe: dict[str, Any], dtype: torch.dtype) -> None:
    assert_alike(dtype, SHAPES, **recipe)


@pytest.mark.parametrize("constant", [2.0**-90, 2.0**90])
def test_powers_of_two_give_the_same_bits(constant: float, backend: str) -> None:
    plain, scaled = (trained(c, torch.float32, SHAPES[:4], backend=backend) for c in (1.0, constant))
    assert all(map(torch.equal, scaled, plain))


def test_sgd_takes_gradients_at_their_size() -> None:
    """The length of a step is the gradient's, whatever the unit."""
    params, half = make_parameters(), make_parameters()
    for tensors, constant, lr in ((params, 1.0, 1e-2), (half, 2.0**-60, 2.0**60 * 1e-2)):
        optimizer = KrADagrad(tensors, lr=lr, block_size=16, graft="sgd")
        for number in range(6):
            step(optimizer, tensors, number, constant)
    assert relative_difference(half, params) < 1e-6


@pytest.mark.parametrize("graft", ["adam", "adagrad", "rms"])
def test_gradients_that_shrink_and_grow_by_any_factor(graft: str) -> None:
    """Units and moments follow the gradients: float32 steps equal float64's, which need no other unit."""
    params, exact = make_parameters(shapes=[(7,)]), make_parameters(torch.float64, [(7,)])
    options: dict[str, Any] = {"lr": 1e-2, "graft": graft, "spike_limit": math.inf}
    ours, wide = KrADagrad(params, **options), KrADagrad(exact, **options)
    units = set()
    for number in range(900):
        constant = 10 ** (-30 * math.sin(math.pi * number / 450))
        for optimizer, tensors in ((ours, params), (wide, exact)):
            generator = torch.Generator().manual_seed(number)
            tensors[0].grad = (torch.randn(7, generator=generator) * constant).to(tensors[0].dtype)
            optimizer.step()
        units.add(float(ours.state[params[0]]["matrix_stats"][0, UNIT]))
    assert len(units) == 3
    assert relative_difference(params, exact) < 1e-5


def test_a_new_unit_restarts_the_factors() -> None:
    params = make_parameters(shapes=[(24, 16)])
    optimizer = KrADagrad(params, lr=1e-2, block_size=16, spike_limit=math.inf)
    for number in range(5):
        step(optimizer, params, number, 1.0)
    for number in range(5, 9):
        step(optimizer, params, number, 1e20)
        scalars = optimizer.state[params[0]]["matrix_stats"][0]
        assert 1 / UNITS_APART < scalars[USUAL] / scalars[UNIT] < UNITS_APART
        weights = optimizer.state[params[0]]["factor_stats_0_0"][:, 1]
        assert (weights <= 1 - 0.8 ** (number - 4) + 1e-6).all()
        assert params[0].isfinite().all()


class Watched:
    """An optimizer whose steps are checked: no element may move by more than the bound."""

    def __init__(self, params: list[nn.Parameter], **options: Any) -> None:
        self.params = params
        self.optimizer = KrADagrad(params, **options)
        self.largest = 0.0

    def step(self) -> None:
        before = [p.detach().clone() for p in self.params]
        self.optimizer.step()
        lr = self.optimizer.param_groups[0]["lr"]
        moved = [float((p.detach() - old).abs().max()) for p, old in zip(self.params, before, strict=True)]
        self.largest = max(self.largest, *(distance / lr for distance in moved))
        assert all(p.isfinite().all() for p in self.params)
        assert self.largest <= LARGEST_MOVE * (1 + 1e-5)


@pytest.mark.parametrize("graft", ["adam", "adagrad", "rmsprop", "rms", "whitened"])
def test_a_gradient_of_one_element(graft: str, backend: str) -> None:
    """One element of 64 x 64 gets the length of the whole matrix, but moves by no more than the bound."""
    watched = Watched(
        make_parameters(shapes=[(64, 64), (50,)]), lr=0.25, block_size=64, graft=graft, backend=backend
    )
    for _ in range(5):
        for p in watched.params:
            p.grad = torch.zeros_like(p)
            p.grad.view(-1)[3] = 1e-3
        watched.step()
    assert watched.largest > 0.5


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_of_updates_has_a_larger_bound(nesterov: bool) -> None:
    (p,) = params = make_parameters(shapes=[(64, 64)])
    optimizer = KrADagrad(
        params, lr=2.0**-4, momentum_on="update", nesterov=nesterov, graft="rms", block_size=64
    )
    for _ in range(60):
        before = p.detach().clone()
        p.grad = torch.zeros_like(p)
        p.grad[5, 7] = 3.0
        optimizer.step()
        moved = float((p.detach() - before).abs().max() / 2.0**-4)
        assert moved <= 10 * LARGEST_MOVE * (1 + 1e-4)
    assert moved > 2 * LARGEST_MOVE


@pytest.mark.parametrize("graft", ["adam", "rms"])
def test_twenty_sigmoid_layers(graft: str) -> None:
    """The first layers' gradients are about 1e-13 of the last ones'."""
    torch.manual_seed(0)
    model = nn.Sequential(*(module for _ in range(20) for module in (nn.Linear(16, 16), nn.Sigmoid())))
    watched = Watched(list(model.parameters()), lr=0.02, graft=graft)
    x, y = torch.randn(64, 16), torch.rand(64, 16)
    losses, largest = [], []
    for _ in range(60):
        loss = (model(x) - y).square().mean()
        watched.optimizer.zero_grad()
        loss.backward()
        watched.step()
        losses.append(loss.item())
        largest.append(model[0].weight.grad.abs().max().item())
    assert losses[-1] < losses[0]
    assert largest[0] < 1e-10


@pytest.mark.parametrize("graft", ["adam", "rms"])
def test_to_a_loss_of_zero(graft: str) -> None:
    """Vanishing gradients make no step long, and the loss stays at what was reached."""
    torch.manual_seed(0)
    model, target = nn.Linear(12, 8), torch.randn(8, 12)
    watched = Watched(list(model.parameters()), lr=0.2, graft=graft)
    x = torch.randn(256, 12)
    y = x @ target.mT
    schedule = torch.optim.lr_scheduler.ExponentialLR(watched.optimizer, 0.98)
    for _ in range(900):
        loss = (model(x) - y).square().mean()
        watched.optimizer.zero_grad()
        loss.backward()
        watched.step()
        schedule.step()
    assert loss < 1e-10


def test_ten_thousand_zero_gradients_and_alive_again() -> None:
    params = make_parameters(shapes=[(24, 16), (7,)])
    watched = Watched(params, lr=1e-2, block_size=16)
    for number in range(5):
        step(watched.optimizer, params, number, 1.0)
    for p in params:
        p.grad = torch.zeros_like(p)
    for _ in range(10_000):
        watched.optimizer.step()
    before = [p.detach().clone() for p in params]
    watched.optimizer.step()
    assert all(map(torch.equal, params, before)), "momenta have run out"
    for number in range(5, 10):
        generator = torch.Generator().manual_seed(number)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        watched.step()
    assert watched.largest > 0.5


@pytest.mark.parametrize("exponent", [-120, -40, 120])
def test_added_weight_decay_beside_gradients_of_any_size(exponent: int) -> None:
    """Moments of the added decay neither overflow nor underflow in the gradients' unit."""
    params = make_parameters(shapes=[(24, 16), (7,)])
    options: dict[str, Any] = {"weight_decay": 0.1, "decoupled_weight_decay": False}
    watched = Watched(params, lr=1e-2, block_size=16, **options)
    for number in range(10):
        generator = torch.Generator().manual_seed(number)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator) * 2.0**exponent
        watched.step()
    for p in params:
        state = watched.optimizer.state[p]
        assert state["exp_avg_sq"].isfinite().all()
        assert state["exp_avg"].isfinite().all()
        assert state["exp_avg"].abs().max() > 0


def test_units_are_kept_with_the_state() -> None:
    """Training resumes from a checkpoint with the same bits, at gradients of 1e-25."""
    params, copies = make_parameters(), make_parameters()
    ours = KrADagrad(params, lr=1e-2, block_size=16)
    for number in range(3):
        step(ours, params, number, 1e-25)
    with torch.no_grad():
        for p, copy in zip(params, copies, strict=True):
            copy.copy_(p)
    other = KrADagrad(copies, lr=1e-2, block_size=16)
    other.load_state_dict(ours.state_dict())
    for number in range(3, 6):
        for optimizer, tensors in ((ours, params), (other, copies)):
            step(optimizer, tensors, number, 1e-25)
    assert all(map(torch.equal, params, copies))


def test_squares_of_second_moments(backend: str) -> None:
    """In units of the matrix, second moments of gradients of 1e-30 are of the order of 1."""
    params = make_parameters(shapes=[(24, 16)])
    optimizer = KrADagrad(params, lr=1e-2, block_size=16, backend=backend)
    step(optimizer, params, 0, 1e-30)
    second: Tensor = optimizer.state[params[0]]["exp_avg_sq"]
    assert 1e-3 < float(second.mean()) < 1
