"""The optimizer as users call it: parameters of every kind, groups, schedules, errors, robustness."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tolerances import TRAJECTORY
from torch import Tensor, nn
from training import SHAPES, SMALL, parameters, relative_difference, set_gradients, train

from kradagrad_ext import KrADagrad
from kradagrad_ext.config import OPTIONS
from kradagrad_ext.group_options import GROUP_DEFAULTS, GroupOptions

pytestmark = pytest.mark.filterwarnings("ignore:KrADagrad. .* of the elements of matrices are")


RECIPES: list[dict[str, Any]] = [
    {},
    {"factor_update": "products"},
    {"factor_update": "products", "coupling": "kl", "refine": 3},
    {"coupling": "kl", "nesterov": True},
    {"graft": "rms"},
    {"graft": "whitened", "coupling": "kl", "factor_decay": 0.9},
    {"graft": "sgd"},
    {"graft": "adagrad", "nesterov": True},
    {"graft": "rmsprop", "momentum_on": "update", "weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": False},
    {"momentum_on": "update", "nesterov": True, "decoupled_weight_decay": False, "weight_decay": 0.1},
    {"exponent": 0.25, "precondition_1d": True, "root_method": "polar"},
    {"root_method": "polar", "factor_every": 2, "start_step": 4},
    {"max_factor_dim": 10, "merge_dims": False, "coupling": "kl"},
    {"root_dtype": torch.bfloat16, "betas": (0.0, 0.0)},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_twenty_steps_equal_the_reference_in_float64(
    dtype: torch.dtype, recipe: dict[str, Any], backend: str
) -> None:
    """Every recipe steps every kind of parameter at once."""
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


def test_parameters_without_a_gradient_and_late_ones(backend: str) -> None:
    """A parameter that joins late starts as it would have alone; those without a gradient do not move."""
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
    assert optimizer.state[params[1]]["matrix_stats"][0, 0] == 5


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


def test_the_default_block_size_suits_the_device() -> None:
    """The parameters of a group determine its block size when it is added; meta stands for a GPU."""
    optimizer = KrADagrad(parameters((300, 300)))
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.empty(300, 300, device="meta"))]})
    optimizer.add_param_group({"params": parameters((3, 3)), "block_size": 7})
    assert [group["block_size"] for group in optimizer.param_groups] == [256, 128, 7]


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
    assert state["matrix_stats"][0, 0] == 2


def test_every_option_is_either_named_by_the_constructor_or_a_group_option() -> None:
    """All of them are documented: the constructor's own under its headings, group options with their type."""
    named = list(inspect.signature(KrADagrad).parameters)[1:-1]
    beside = {"lr", "process_group", "amp_scaling", "strict"}
    assert {*named, *GROUP_DEFAULTS} == {*OPTIONS, *beside}
    assert not {*named} & {*GROUP_DEFAULTS}
    assert GROUP_DEFAULTS.keys() == GroupOptions.__annotations__.keys()
    for names, documented in ((named, KrADagrad.__doc__), (GROUP_DEFAULTS, GroupOptions.__doc__)):
        assert [
            name for name in names if not re.search(rf"^        (\w+, )?{name}[:,]", documented, re.M)
        ] == []


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("spilt", "keywords must be options, got `spilt`; is `split` meant"),
        ("learning_rate_of_everything", "keywords must be options, got `learning_rate_of_everything`$"),
    ],
)
def test_a_keyword_that_is_no_option_is_refused(keyword: str, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        KrADagrad([torch.ones(2, 2, requires_grad=True)], **{keyword: 3})


def test_a_group_option_is_a_keyword_for_all_parameters(backend: str) -> None:
    """It gives the same steps as in the parameter group, and a group still overrides it."""
    trained = []
    for keywords, group in (({"split": 2}, {}), ({}, {"split": 2}), ({"split": 3}, {"split": 2})):
        p = torch.linspace(-1, 1, 24).reshape(6, 4).requires_grad_()
        optimizer = KrADagrad([{"params": [p], **group}], backend=backend, **keywords)
        for _ in range(3):
            p.grad = p.detach().sin()
            optimizer.step()
        trained.append(p.detach().clone())
    assert torch.equal(trained[0], trained[1])
    assert torch.equal(trained[0], trained[2])
