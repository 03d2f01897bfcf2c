"""`capturable`: a step that a graph can hold. The host reads no value and does the same work on every step.

A CUDA graph needs a GPU; these tests record the step's operations and replay them on the same tensors
instead.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from marks import slow_after
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from training import SMALL, parameters, relative_difference, set_gradients, train
from watching import NoLooking

from kradagrad_ext import KrADagrad, polar, roots
from kradagrad_ext.backends import reference
from kradagrad_ext.backends.base import Side, UpdateRule
from kradagrad_ext.config import PRIOR

pytestmark = pytest.mark.filterwarnings("ignore:KrADagrad. .* of the elements of matrices are")

SHAPES = ((16, 12), (7,), ())
RECIPES: list[dict[str, Any]] = [
    {},
    {"factor_every": 2, "start_step": 5, "packed": True},
    {"root_dtype": torch.bfloat16, "nesterov": True, "weight_decay": 0.1},
    {
        "momentum_on": "update",
        "graft": "sgd",
        "precondition_1d": True,
        "max_factor_dim": 10,
        "merge_dims": False,
    },
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_the_host_reads_no_value(recipe: dict[str, Any]) -> None:
    """Steps with a missing gradient, a NaN in one, a tensor for a learning rate, and a scaler."""
    params = parameters(*SHAPES)
    options = SMALL | recipe | {"lr": torch.tensor(1e-2)}
    optimizer = KrADagrad(params, **options, capturable=True, backend="reference")
    optimizer.found_inf, optimizer.grad_scale = torch.zeros(1), torch.ones(1)
    for step in range(8):
        set_gradients(params, step)
        assert params[0].grad is not None
        params[0].grad[0, 0] = torch.nan if step == 5 else 0.0
        params[1].grad = params[1].grad if step % 2 else None
        if step < 2:
            optimizer.step()
            continue
        with NoLooking():
            optimizer.step()
    assert int(optimizer.param_groups[0]["step"]) == 8


def test_a_read_by_the_host_is_detected() -> None:
    with NoLooking(), pytest.raises(AssertionError, match="the host looks"):
        torch.ones(1).item()


@pytest.mark.parametrize(
    "recipe",
    slow_after(2, [RECIPES[0], RECIPES[3], *RECIPES[1:3]]),
    ids=str,
)
def test_a_recorded_step_is_every_step(recipe: dict[str, Any], backend: str) -> None:
    """A recording, replayed with other gradients and learning rates, gives the bits of eager steps.

    So the graph fixes no schedule: roots take their turns, factors their steps, and updates start when due.
    """
    shapes = SHAPES if recipe == {} else ((12, 8), (7,), ())  # recording takes time for every group
    ours, eager = parameters(*shapes), parameters(*shapes)
    lr, eager_lr = torch.tensor(1e-2), torch.tensor(1e-2)
    options = SMALL | recipe | {"capturable": True, "backend": backend}
    optimizer = KrADagrad(ours, **(options | {"lr": lr}))
    other = KrADagrad(eager, **(options | {"lr": eager_lr}))
    train(optimizer, ours, range(2))
    train(other, eager, range(2))
    set_gradients(ours, 2)
    gradients = [p.grad for p in ours]

    def step() -> Tensor:
        optimizer.step()
        return torch.zeros(())

    recorded = make_fx(step)()  # recording also takes the step
    train(other, eager, range(2, 3))
    for number in range(3, 12):
        set_gradients(eager, number)
        for grad, p in zip(gradients, eager, strict=True):
            assert grad is not None
            assert p.grad is not None
            grad.copy_(p.grad)
        for rate in (lr, eager_lr):
            rate.fill_(1e-2 / number)
        with torch.no_grad():  # as in the step: the recording has only the step's operations
            recorded()
        other.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True)), number
    for p, q in zip(ours, eager, strict=True):
        for key, tensor in optimizer.state[p].items():
            assert torch.equal(tensor, other.state[q][key]), key


def test_roots_take_turns() -> None:
    """Of 10 blocks, 4 have new roots on a step, each within 3 steps; all have them on the first step."""
    params = parameters((40, 16))
    optimizer = KrADagrad(params, block_size=8, root_every=3, lr=1e-2, capturable=True)
    train(optimizer, params, range(1))
    last_refresh = torch.zeros(10)
    before = optimizer.state[params[0]]["root_0_0"].clone()
    for step in range(1, 13):
        train(optimizer, params, range(step, step + 1))
        after = optimizer.state[params[0]]["root_0_0"].clone()
        changed = (after != before).flatten(1).any(1)
        assert int(changed.sum()) == 4
        assert float((step - last_refresh[changed]).max()) <= 3
        last_refresh[changed] = step
        before = after


def test_steps_follow_their_definition() -> None:
    """One matrix, one block: with root_every 1, each step uses the roots of its updated factors."""
    ours, exact = parameters((6, 4), dtype=torch.float64), parameters((6, 4), dtype=torch.float64)[0].detach()
    options = {"damping": 1e-2, "factor_decay": 0.9, "betas": (0.9, 0.0), "graft": "sgd", "lr": 0.1}
    options |= {"coupling": "none", "nesterov": False}
    options |= {"root_every": 1, "root_steps": 8}
    optimizer = KrADagrad(ours, capturable=True, backend="reference", **options)
    rule = UpdateRule(decay=0.9, weight=1 - 0.9, damping=1e-2, prior=PRIOR, method="products")
    sides = [
        Side(torch.zeros(1, d, d).double(), torch.zeros(1, 4).double(), torch.eye(d).double()[None])
        for d in (6, 4)
    ]
    every = torch.ones(1).double()
    momentum = torch.zeros_like(exact)

    def rooted(side: Side, columns: int) -> Tensor:
        scale = polar.units(side.statistics, columns)[:, None, None]
        return roots.roots_by_products(scale * side.factor, 2)[0][0]

    for step in range(1, 6):
        set_gradients(ours, step)
        assert ours[0].grad is not None
        gradient = ours[0].grad.clone()
        optimizer.step()
        for side, unfolding in zip(sides, (gradient, gradient.mT), strict=True):
            reference.update_factor_(side.factor, side.statistics, [unfolding[None]], every, rule)
        momentum = 0.9 * momentum + 0.1 * gradient
        update = rooted(sides[0], 4) @ momentum @ rooted(sides[1], 6)
        exact = exact - 0.1 * update / update.norm() * momentum.norm() / (1 - 0.9**step)
        torch.testing.assert_close(ours[0].detach(), exact, rtol=1e-9, atol=1e-9)


def test_it_learns_as_well_as_without() -> None:
    """Steps differ, since roots take turns, but the loss is about as good."""
    losses = []
    for capturable in (False, True):
        torch.manual_seed(0)
        x, target = torch.randn(64, 20), torch.randn(20, 12)
        weight = torch.nn.Parameter(torch.zeros(20, 12))
        optimizer = KrADagrad([weight], lr=3e-2, block_size=8, capturable=capturable)
        for _ in range(60):
            loss = ((x * torch.linspace(0.1, 3, 20)) @ (weight - target)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < 1.3 * losses[0]


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"root_method": "eigh"}, (8, 8), "`root_method` must be polar with `capturable`"),
        ({"factor_update": "cholesky"}, (8, 8), "`factor_update` must be products with `capturable`"),
        ({"capturable": 1}, (8, 8), "`capturable` must be a bool, got 1"),
        ({}, (8, 8, 8), r"`exponent` must be 1/p, p = 2, 4, 8, ..., with `capturable`, got 1/3 for blocks"),
    ],
)
def test_options_that_a_graph_cannot_hold_are_refused(
    options: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    params = parameters(shape)
    start = params[0].detach().clone()
    with pytest.raises(ValueError, match=message):  # noqa: PT012, at once or on the first step
        optimizer = KrADagrad(params, **(SMALL | {"capturable": True} | options))
        train(optimizer, params, range(1))
    assert torch.equal(params[0], start)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_state_dict_loads_either_way(capturable: bool) -> None:
    """The step counter moves to the host or to the device."""
    params, resumed = parameters(*SHAPES), parameters(*SHAPES)
    optimizer = KrADagrad(params, **SMALL, capturable=not capturable)
    train(optimizer, params, range(4))
    for p, q in zip(params, resumed, strict=True):
        q.data.copy_(p.data)
    other = KrADagrad(resumed, **SMALL, capturable=capturable)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["capturable"] = capturable
    other.load_state_dict(saved)
    train(other, resumed, range(4, 6))
    train(optimizer, params, range(4, 6))
    assert isinstance(other.param_groups[0]["step"], Tensor) == capturable
    assert int(other.param_groups[0]["step"]) == 6
    assert relative_difference(params, resumed) < 0.05


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("lr", "`lr` of parameter group 0 must be"),
        ("frozen", "the same parameters must have gradients"),
        ("gradients", "must have a gradient where a step is captured, .* got none for parameter 1"),
    ],
)
def test_inputs_that_a_graph_would_freeze_are_refused(
    fault: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The capture is refused for a learning rate on the host, a mask that is not on the device yet, and a
    parameter that would never move."""
    params = parameters((8, 8), (6,))
    lr = torch.tensor(0.1) if fault == "lr" else 0.1
    optimizer = KrADagrad(params, **{**SMALL, "lr": lr}, capturable=True)
    train(optimizer, params, range(1))
    if fault != "lr":
        params[1].grad = None
    params[1].requires_grad_(fault != "frozen")
    before = copy.deepcopy((params, optimizer.state_dict()["state"], optimizer.param_groups[0]["step"]))
    for name in ("is_available", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    with pytest.raises(RuntimeError, match=expected):
        optimizer.step()
    after = (params, optimizer.state_dict()["state"], optimizer.param_groups[0]["step"])
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_capturing_without_the_option_or_before_the_first_step_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, fresh = parameters((8, 8)), parameters((8, 8))
    optimizer, other = KrADagrad(plain, **SMALL), KrADagrad(fresh, **SMALL, capturable=True)
    train(optimizer, plain, range(1))
    for name in ("is_available", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    with pytest.raises(RuntimeError, match="`capturable` of parameter group 0 must be True"):
        train(optimizer, plain, range(1, 2))
    with pytest.raises(RuntimeError, match="a step must be taken before one is captured"):
        train(other, fresh, range(1))
