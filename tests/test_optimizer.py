"""The optimizer as its users meet it: parameters of every kind, groups, schedules, errors, robustness."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tolerances import TRAJECTORY
from torch import Tensor, nn

import kradagrad_ext
from kradagrad_ext import KrADagrad
from kradagrad_ext.backends import reference as reference_backend

SMALL: dict[str, Any] = {"block_size": 8, "root_every": 3, "lr": 1e-2}


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_gradients(params: list[nn.Parameter], step: int, scale: float = 1.0) -> None:
    """Gradients of a fixed sequence: correlated rows, so that preconditioning matters."""
    generator = torch.Generator().manual_seed(step)
    for p in params:
        gradient = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if p.ndim >= 2 and p.numel():
            gradient = gradient * torch.linspace(0.1, 3, p.shape[-1], dtype=torch.float64)
        p.grad = (gradient * scale).to(p.dtype)


def train(optimizer: KrADagrad, params: list[nn.Parameter], steps: range, scale: float = 1.0) -> None:
    for step in steps:
        set_gradients(params, step, scale)
        optimizer.step()


def relative_difference(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> float:
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(ours, theirs, strict=True)]
    gap = sum(float((a - b).square().sum()) for a, b in pairs)
    return math.sqrt(gap / sum(float(b.square().sum()) for _, b in pairs))


SHAPES = ((20, 12), (8, 8), (7,), (1,), (1, 1), (), (0, 3), (3, 4, 5), (30, 1), (2, 2, 3, 3))

RECIPES: list[dict[str, Any]] = [
    {},
    {"variant": "plain"},
    {"factor_update": "krad"},
    {"factor_update": "krad", "factor_scale": "trace", "refine": 0},
    {"graft": "none", "lr": 1e-5},
    {"graft": "sgd"},
    {"graft": "adagrad", "nesterov": True},
    {"graft": "rmsprop", "momentum_on": "update", "weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": False},
    {"momentum_on": "update", "nesterov": True, "decoupled_weight_decay": False, "weight_decay": 0.1},
    {"exponent": "shampoo", "precondition_1d": True},
    {"root_method": "newton_schulz", "factor_every": 2, "start_step": 4},
    {"max_factor_dim": 10, "merge_dims": False},
    {"root_dtype": torch.bfloat16, "betas": (0.0, 0.0)},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_twenty_steps_equal_the_reference_in_float64(
    dtype: torch.dtype, recipe: dict[str, Any], backend: str
) -> None:
    """Every recipe, on every kind of parameter at once."""
    ours, exact = parameters(*SHAPES, dtype=dtype), parameters(*SHAPES, dtype=torch.float64)
    for a, b in zip(ours, exact, strict=True):
        b.data.copy_(a.data)
    optimizer = KrADagrad(ours, **(SMALL | recipe), backend=backend)
    reference = KrADagrad(exact, **(SMALL | recipe), backend="reference")
    for step in range(20):
        set_gradients(ours, step)
        for a, b in zip(ours, exact, strict=True):
            assert a.grad is not None
            b.grad = a.grad.double()
        before = [p.grad.clone() for p in ours if p.grad is not None]
        optimizer.step()
        reference.step()
        assert all(torch.equal(a, b.grad) for a, b in zip(before, ours, strict=True) if b.grad is not None)
    assert relative_difference(ours, exact) < TRAJECTORY[dtype]
    assert all(p.isfinite().all() for p in ours)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize(
    "recipe", [{}, {"variant": "plain"}, {"graft": "rmsprop"}, {"factor_update": "krad"}], ids=str
)
def test_scale_invariance(scale: float, recipe: dict[str, Any], backend: str) -> None:
    """Gradients times a constant give the same trajectory, to rounding."""
    plain, scaled = parameters((20, 12), (7,)), parameters((20, 12), (7,))
    train(KrADagrad(plain, **SMALL, **recipe, backend=backend), plain, range(30))
    train(KrADagrad(scaled, **SMALL, **recipe, backend=backend), scaled, range(30), scale)
    assert relative_difference(scaled, plain) < TRAJECTORY[torch.float32]


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
        if key != "scalars":  # which counts the skip
            assert torch.equal(tensor, before[1][key]), key
    assert optimizer.state[params[0]]["scalars"][:2].tolist() == before[1]["scalars"][:2].tolist()
    assert not torch.equal(params[1], other)
    (report,) = kradagrad_ext.diagnostics(optimizer)
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
    assert optimizer.state[params[0]]["scalars"][0] == 7


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
    (report,) = kradagrad_ext.diagnostics(optimizer)
    assert report == {
        "steps": 7,
        "non_finite_gradients": 0,
        "graft_fallbacks": 0,
        "factor_fallbacks": 0,
        "roots_kept": 0,
    }


def test_a_direction_without_gradient_does_not_wind_up(backend: str) -> None:
    """With forgetting, factors stay bounded by about the inverse of the damping: 2000 low-rank steps."""
    (p,) = parameters((16, 16))
    optimizer = KrADagrad([p], lr=1e-3, block_size=16, backend=backend)
    row = torch.randn(16)
    for step in range(2000):
        generator = torch.Generator().manual_seed(step)
        p.grad = torch.randn(16, 1, generator=generator) * row
        optimizer.step()
    factor, statistics = optimizer.state[p]["factor_0_1"][0], optimizer.state[p]["statistics_0_1"][0]
    largest = torch.linalg.eigvalsh(factor.double()).max()
    assert 0.3 < largest * 1e-3 * statistics[0] < 30
    assert torch.linalg.eigvalsh(factor.double()).min() > 0
    assert p.isfinite().all()


def test_parameters_without_a_gradient_and_late_ones(backend: str) -> None:
    """A parameter that joins late starts as it would have alone; those without a gradient stay."""
    params = parameters((20, 12), (12, 20), (5,))
    optimizer = KrADagrad(params, **SMALL, backend=backend)
    start = params[1].detach().clone()
    for step in range(4):
        set_gradients(params, step)
        params[1].grad = None
        optimizer.step()
    assert torch.equal(params[1], start)
    assert params[1] not in optimizer.state
    train(optimizer, params, range(4, 9))
    alone = parameters((20, 12), (12, 20), (5,))
    alone_optimizer = KrADagrad(alone, **SMALL, backend=backend)
    train(alone_optimizer, alone, range(9))
    assert relative_difference([params[0], params[2]], [alone[0], alone[2]]) < 0.05
    assert not torch.equal(params[1], start)
    assert optimizer.state[params[1]]["scalars"][0] == 5


def test_freezing_and_thawing(backend: str) -> None:
    """A parameter without a gradient keeps its value and its state until it has one again."""
    params = parameters((20, 12), (12, 20))
    optimizer = KrADagrad(params, **SMALL, backend=backend)
    train(optimizer, params, range(3))
    frozen = params[0].detach().clone(), {k: v.clone() for k, v in optimizer.state[params[0]].items()}
    for step in range(3, 6):
        set_gradients(params, step)
        params[0].grad = None
        optimizer.step()
    assert torch.equal(params[0], frozen[0])
    assert all(torch.equal(v, frozen[1][k]) for k, v in optimizer.state[params[0]].items())
    train(optimizer, params, range(6, 8))
    assert not torch.equal(params[0], frozen[0])


def test_groups_override_options(backend: str) -> None:
    params = parameters((20, 12), (20, 12), (20, 12))
    groups = [
        {"params": [params[0]]},
        {"params": [params[1]], "lr": 0.0},
        {"params": [params[2]], "precondition": False, "graft": "sgd", "betas": (0.0, 0.0)},
    ]
    optimizer = KrADagrad(groups, **SMALL, backend=backend)
    start = [p.detach().clone() for p in params]
    train(optimizer, params, range(1))
    assert not torch.equal(params[0], start[0])
    assert torch.equal(params[1], start[1])
    assert params[2].grad is not None
    torch.testing.assert_close(params[2].detach(), start[2] - SMALL["lr"] * params[2].grad)
    assert not any(key.startswith("factor") for key in optimizer.state[params[2]])


def test_added_groups_and_mixed_dtypes(backend: str) -> None:
    first, second = parameters((20, 12)), parameters((20, 12), dtype=torch.bfloat16)
    third = parameters((6, 6), dtype=torch.float64)
    optimizer = KrADagrad(first + second, **SMALL, backend=backend)
    train(optimizer, first + second, range(2))
    optimizer.add_param_group({"params": third, "block_size": 4})
    start = [p.detach().clone() for p in first + second + third]
    train(optimizer, first + second + third, range(2, 4))
    assert all(not torch.equal(a, b) for a, b in zip(first + second + third, start, strict=True))
    assert optimizer.state[second[0]]["factor_0_0"].dtype == torch.float32
    assert optimizer.state[third[0]]["factor_0_0"].shape == (1, 4, 4)


@pytest.mark.parametrize("make", [lambda lr: lr, torch.tensor, lambda lr: torch.tensor([lr])])
def test_lr_as_float_or_tensor_and_schedulers(make: Callable[[float], Any], backend: str) -> None:
    ours, plain = parameters((20, 12)), parameters((20, 12))
    optimizer = KrADagrad(ours, lr=make(0.01), block_size=8, backend=backend)
    reference = KrADagrad(plain, lr=0.01, block_size=8, backend=backend)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 5) for o in (optimizer, reference)]
    for step in range(5):
        train(optimizer, ours, range(step, step + 1))
        train(reference, plain, range(step, step + 1))
        for schedule in schedules:
            schedule.step()
    assert relative_difference(ours, plain) < 1e-6


def test_closure_and_hooks(backend: str) -> None:
    (p,) = parameters((8, 8))
    optimizer = KrADagrad([p], **SMALL, backend=backend)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert calls == ["before", "after"] * 5


def test_learns_a_badly_scaled_problem_faster_than_adam(backend: str) -> None:
    """Linear regression whose inputs and outputs are correlated: the product's reason to exist."""
    left = torch.diag(torch.logspace(0, -2, 24)) @ torch.linalg.qr(torch.randn(24, 24))[0]
    right = torch.linalg.qr(torch.randn(24, 24))[0] @ torch.diag(torch.logspace(0, -2, 24))
    target = torch.randn(24, 24)

    def final_loss(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> float:
        weight = nn.Parameter(torch.zeros(24, 24))
        optimizer = make([weight])
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 200)
        for _ in range(200):
            optimizer.zero_grad()
            loss = (left @ (weight - target) @ right).square().sum()
            loss.backward()
            optimizer.step()
            schedule.step()
        return float(loss.detach())

    ours = min(final_loss(partial(KrADagrad, lr=lr, backend=backend)) for lr in (0.03, 0.1))
    adam = min(final_loss(partial(torch.optim.Adam, lr=lr)) for lr in (0.01, 0.03, 0.1))
    assert ours < 0.5 * adam


def test_non_contiguous_parameters(backend: str) -> None:
    """A transposed or channels-last parameter takes the same steps as its contiguous copy."""
    plain = parameters((20, 12), (6, 5, 3, 3))
    strided = [
        nn.Parameter(plain[0].detach().mT.contiguous().mT),
        nn.Parameter(plain[1].detach().to(memory_format=torch.channels_last)),
    ]
    assert not any(p.is_contiguous() for p in strided)
    train(KrADagrad(plain, **SMALL, backend=backend), plain, range(6))
    train(KrADagrad(strided, **SMALL, backend=backend), strided, range(6))
    assert relative_difference(strided, plain) < 1e-5


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
    with pytest.raises(ValueError, match="`lr` must be a number >= 0 or a one-element tensor, got -1"):
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


def test_named_parameters_and_a_module_moved_after_construction(backend: str) -> None:
    model = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 3))
    optimizer = KrADagrad(model.named_parameters(), **SMALL, backend=backend)
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        optimizer.zero_grad()
        model(torch.randn(4, 12, dtype=dtype)).square().sum().backward()
        optimizer.step()
    state = optimizer.state[model[0].weight]
    assert state["factor_0_0"].dtype == torch.float64
    assert state["scalars"][0] == 2


def test_no_host_sync_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in a step asks a tensor for its value, with the roots by products."""
    monkeypatch.setattr(reference_backend, "_looking_is_free", lambda device: False)  # as on an accelerator
    params = parameters((20, 12), (7,))
    optimizer = KrADagrad(
        params, **SMALL, root_method="newton_schulz", factor_update="krad", backend="reference"
    )
    train(optimizer, params, range(1))

    def forbidden(*_: object) -> None:
        raise AssertionError("a host sync")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, forbidden)
    train(optimizer, params, range(1, 8))
