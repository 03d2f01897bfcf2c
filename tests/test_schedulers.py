"""Learning rate schedulers of torch: they write options by key, between two steps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from training import SMALL, parameters, train

from kradagrad_ext import KrADagrad

STEPS = 10
SCHEDULES: dict[str, Callable[[KrADagrad], Any]] = {
    "one_cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.03, total_steps=STEPS + 1),
    "cyclic": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 1e-3, 1e-2, step_size_up=3),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=2, factor=0.5),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4)),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
    "warm_up_and_cosine": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 3), lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 3)],
        milestones=[3],
    ),
    "swa": lambda optimizer: torch.optim.swa_utils.SWALR(optimizer, swa_lr=1e-3, anneal_epochs=4),
}
OPTIONS = ("lr", "betas")


def advance(schedule: Any) -> None:
    schedule.step(*([1.0] if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else []))


def options(optimizer: KrADagrad) -> dict[str, Any]:
    """Return a copy of the options that a scheduler may have written."""
    group = optimizer.param_groups[0]
    return {
        key: value.clone() if isinstance(value, torch.Tensor) else value
        for key, value in ((key, group[key]) for key in OPTIONS)
    }


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("make", [float, torch.tensor], ids=["number", "tensor"])
def test_a_schedule_is_the_options_set_by_hand(make: Callable[[float], Any], name: str) -> None:
    """OneCycleLR and CyclicLR also cycle the momentum, which is the first of `betas`."""
    ours, by_hand = parameters((20, 12), (7,)), parameters((20, 12), (7,))
    optimizer = KrADagrad(ours, **SMALL | {"lr": make(0.01)})
    schedule = SCHEDULES[name](optimizer)
    other = KrADagrad(by_hand, **SMALL)
    seen = []
    for step in range(STEPS):
        seen.append(options(optimizer))
        other.param_groups[0].update(options(optimizer))
        for stepped, params in ((optimizer, ours), (other, by_hand)):
            train(stepped, params, range(step, step + 1))
        advance(schedule)
    assert all(torch.equal(a, b) for a, b in zip(ours, by_hand, strict=True))
    assert len({float(values["lr"]) for values in seen}) > 1
    cycled = len({float(values["betas"][0]) for values in seen}) > 1
    assert cycled == (name in ("one_cycle", "cyclic"))


def test_a_group_added_in_mid_schedule() -> None:
    """A scheduler of torch sets the groups it was made with; a later one keeps its learning rate."""
    first, second = parameters((20, 12)), parameters((6, 6))
    optimizer = KrADagrad(first, **SMALL)
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(optimizer, first, range(2))
    schedule.step()
    optimizer.add_param_group({"params": second, "lr": 0.02})
    before = second[0].detach().clone()
    train(optimizer, first + second, range(2, 4))
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.02]
    assert not torch.equal(second[0], before)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_of_a_scheduled_optimizer_goes_on_alike(how: Callable[[Any], Any]) -> None:
    """A scheduler wraps the optimizer's `step`; that of the copy steps the copy."""
    params = parameters((20, 12))
    optimizer = KrADagrad(params, **SMALL)
    schedule = lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    train(optimizer, params, range(3))
    schedule.step()
    other = how(optimizer)
    copied = other.param_groups[0]["params"]
    start = params[0].detach().clone()
    train(other, copied, range(3, 6))
    assert torch.equal(params[0], start)
    train(optimizer, params, range(3, 6))
    assert torch.equal(params[0], copied[0])


def test_schedule_and_optimizer_resume_together() -> None:
    unbroken, resumed = parameters((20, 12)), parameters((20, 12))
    optimizer = KrADagrad(unbroken, **SMALL)
    schedule = SCHEDULES["one_cycle"](optimizer)
    for step in range(4):
        train(optimizer, unbroken, range(step, step + 1))
        schedule.step()
    resumed[0].data.copy_(unbroken[0].data)
    other = KrADagrad(resumed, **SMALL)
    other_schedule = SCHEDULES["one_cycle"](other)
    other.load_state_dict(optimizer.state_dict())
    other_schedule.load_state_dict(schedule.state_dict())
    for stepped, its_schedule, params in ((optimizer, schedule, unbroken), (other, other_schedule, resumed)):
        for step in range(4, STEPS):
            train(stepped, params, range(step, step + 1))
            its_schedule.step()
    assert torch.equal(unbroken[0], resumed[0])
    assert optimizer.param_groups[0]["betas"] == other.param_groups[0]["betas"]
