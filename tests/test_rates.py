"""Learning rates and weight decay: numbers and tensors, and values that are refused."""

from __future__ import annotations

import math

import pytest
import torch
from training import SMALL, parameters, relative_difference, train

from kradagrad_ext import KrADagrad


@pytest.mark.parametrize("momentum_on", ["gradient", "update"])
@pytest.mark.parametrize("decoupled", [False, True])
def test_weight_decay_may_be_a_tensor(decoupled: bool, momentum_on: str) -> None:
    """The value of the tensor may change in place, as in a CUDA graph."""
    ours, plain = parameters((20, 12), (7,)), parameters((20, 12), (7,))
    options = {"decoupled_weight_decay": decoupled, "momentum_on": momentum_on, "nesterov": False}
    decay = torch.tensor(0.25)
    optimizer = KrADagrad(ours, **SMALL, **options, weight_decay=decay)
    other = KrADagrad(plain, **SMALL, **options, weight_decay=0.25)
    for number in range(4):
        decay.fill_(0.25 / (number + 1))
        other.param_groups[0]["weight_decay"] = 0.25 / (number + 1)
        train(optimizer, ours, range(number, number + 1))
        train(other, plain, range(number, number + 1))
    assert relative_difference(ours, plain) < 1e-6
    saved = optimizer.state_dict()["param_groups"][0]["weight_decay"]
    decay.fill_(9.0)
    assert saved == 0.0625, "a state dict owns what is in it"


@pytest.mark.parametrize(
    "value",
    [torch.ones(2), torch.ones((), dtype=torch.int64), torch.tensor(-5.0), -0.1, 1e39, math.nan, "0.1"],
)
def test_bad_weight_decay_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="`weight_decay` must be"):
        KrADagrad(parameters((4, 4)), weight_decay=value)


@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_a_rate_that_overflows_is_refused_before_anything_changes(option: str) -> None:
    params = parameters((8, 8))
    optimizer = KrADagrad(params, **SMALL)
    train(optimizer, params, range(2))
    before = params[0].detach().clone()
    for value in (1e39, math.inf, math.nan, -1.0, "1", torch.tensor(math.nan)):
        optimizer.param_groups[0][option] = value
        with pytest.raises(ValueError, match=f"`{option}` must be"):
            optimizer.step()
        assert optimizer.param_groups[0]["step"] == 2
        assert torch.equal(params[0], before)
        optimizer.param_groups[0][option] = 0.1
        optimizer.state_dict()
