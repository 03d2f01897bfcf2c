"""Saving and loading: bit-exact, safe to load, and refused with the key's name if a state does not fit."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from training import SMALL, parameters, train

from kradagrad_ext import KrADagrad

SHAPES = ((20, 12), (7,), (8, 8), ())


def saved_and_loaded(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def clone(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in params]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"root_dtype": torch.bfloat16, "factor_dtype": torch.bfloat16},
        {"graft": "whitened", "coupling": "kl"},
    ],
    ids=str,
)
@pytest.mark.parametrize("at", [1, 5])
def test_a_resumed_run_equals_the_unbroken_one(
    at: int, recipe: dict[str, Any], dtype: torch.dtype, backend: str
) -> None:
    unbroken = parameters(*SHAPES, dtype=dtype)
    optimizer = KrADagrad(unbroken, **SMALL, **recipe, backend=backend)
    train(optimizer, unbroken, range(at))
    resumed = clone(unbroken)
    state = saved_and_loaded(optimizer.state_dict())
    other = KrADagrad(resumed, **SMALL, **recipe, backend=backend)
    other.load_state_dict(state)
    train(optimizer, unbroken, range(at, at + 8))
    train(other, resumed, range(at, at + 8))
    assert all(torch.equal(a, b) for a, b in zip(unbroken, resumed, strict=True))
    for p, q in zip(unbroken, resumed, strict=True):
        for key, tensor in optimizer.state[p].items():
            assert torch.equal(tensor, other.state[q][key]), key
            assert tensor.dtype == other.state[q][key].dtype


@pytest.mark.parametrize("how", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_and_pickles_take_the_same_steps(how: Any, backend: str) -> None:
    class Job:
        def __init__(self) -> None:
            self.params = parameters(*SHAPES)
            self.optimizer = KrADagrad(self.params, **SMALL, backend=backend)

    globals()["Job"] = Job
    Job.__qualname__ = "Job"
    job = Job()
    train(job.optimizer, job.params, range(4))
    other = how(job)
    train(job.optimizer, job.params, range(4, 9))
    train(other.optimizer, other.params, range(4, 9))
    assert all(torch.equal(a, b) for a, b in zip(job.params, other.params, strict=True))
    assert all(
        a.data_ptr() != b.data_ptr() for a, b in zip(job.params, other.params, strict=True) if a.numel()
    )


def test_a_state_dict_owns_its_tensors_and_no_more() -> None:
    """No tensor shares the optimizer's memory or brings the rest of its batch into the file."""
    params = parameters((20, 12), (20, 12))
    optimizer = KrADagrad(params, **SMALL)
    train(optimizer, params, range(2))
    for index, p in enumerate(params):
        for key, tensor in optimizer.state_dict()["state"][index].items():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            assert tensor.data_ptr() != optimizer.state[p][key].data_ptr()


def refusals() -> list[tuple[Any, str]]:
    def edit(path: list[Any], value: Any) -> Any:
        def change(state: Any) -> None:
            for key in path[:-1]:
                state = state[key]
            if value is None:
                del state[path[-1]]
            else:
                state[path[-1]] = value

        return change

    return [
        (edit(["param_groups", 0, "block_size"], 16), "`block_size` of parameter group 0 must be 8"),
        (edit(["param_groups", 0, "params"], [0, 1]), "`params` of parameter group 0 must list 4, got 2"),
        (edit(["state", 0, "factor_0_1"], None), r"`state` of parameter 0 lacks \['factor_0_1'\]"),
        (edit(["state", 0, "velocity"], torch.zeros(2)), r"has unknown \['velocity'\]"),
        (
            edit(["state", 0, "exp_avg"], torch.zeros(2)),
            r"`exp_avg` of parameter 0 must be .*\[20, 12\], got",
        ),
        (edit(["state", 0, "factor_0_0"], 3), "`factor_0_0` of parameter 0 must be"),
        (edit(["state", 9], {}), r"parameters of no group, got \[9\]"),
        (edit(["param_groups"], None), "must have the keys `state` and `param_groups`"),
        (edit(["param_groups", 0, "format"], None), "`format` of parameter group 0 must be .*, got None"),
        (edit(["param_groups", 0, "format"], 99), "`format` of parameter group 0 must be at most .*, got 99"),
        (
            edit(["param_groups", 0, "step"], -1),
            "`step` must be an integer >= 0 .*, got -1",
        ),
        (edit(["param_groups", 0, "lr"], float("nan")), "`lr` must be a number >= 0 .*, got nan"),
        (edit(["param_groups", 0, "backend"], "abacus"), "`backend` must be one of"),
        (edit(["param_groups", 0, "damping"], -1.0), "`damping` must be a number > 0 .*, got -1.0"),
    ]


@pytest.mark.parametrize(("spoil", "message"), refusals())
def test_a_state_that_does_not_fit_is_refused_and_not_loaded(spoil: Any, message: str) -> None:
    source, params = parameters(*SHAPES), parameters(*SHAPES)
    donor, optimizer = KrADagrad(source, **SMALL), KrADagrad(params, **SMALL)
    train(donor, source, range(3))
    train(optimizer, params, range(1))
    state = copy.deepcopy(donor.state_dict())
    spoil(state)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, tensors in before["state"].items():
        assert all(torch.equal(tensor, after["state"][index][key]) for key, tensor in tensors.items())


def test_a_foreign_state_dict_is_refused() -> None:
    params = parameters((8, 8))
    adam = torch.optim.Adam(params)
    with pytest.raises(ValueError, match="got None: the state dict is of another optimizer"):
        KrADagrad(params, **SMALL).load_state_dict(adam.state_dict())


def test_a_fresh_optimizer_round_trips() -> None:
    params = parameters((8, 8))
    optimizer = KrADagrad(params, **SMALL)
    other = KrADagrad(params, **SMALL)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    train(other, params, range(2))
    assert other.param_groups[0]["step"] == 2


def test_hooks_of_loading_see_and_change_what_is_loaded() -> None:
    """A pre-hook's edit is loaded, a post-hook gets the restored state; neither change is undone."""
    source, params = parameters((8, 8)), parameters((8, 8))
    donor, optimizer = KrADagrad(source, **SMALL), KrADagrad(params, **SMALL)
    train(donor, source, range(3))

    def zero_momentum(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        edited = copy.deepcopy(state_dict)
        edited["state"][0]["exp_avg"].zero_()
        return edited

    optimizer.register_load_state_dict_pre_hook(zero_momentum)
    optimizer.register_load_state_dict_post_hook(lambda o: o.state[params[0]]["exp_avg_sq"].fill_(5))
    optimizer.load_state_dict(donor.state_dict())
    state = optimizer.state[params[0]]
    assert not state["exp_avg"].any()
    assert (state["exp_avg_sq"] == 5).all()
    assert torch.equal(state["factor_0_0"], donor.state[source[0]]["factor_0_0"])


def test_a_structural_option_changed_after_a_copy_is_refused() -> None:
    params = parameters((8, 8))
    optimizer = KrADagrad(params, **SMALL)
    train(optimizer, params, range(2))
    other = copy.deepcopy(optimizer)
    other.param_groups[0]["block_size"] = 4
    (p,) = other.param_groups[0]["params"]
    p.grad = torch.ones(8, 8)
    start = p.detach().clone()
    with pytest.raises(ValueError, match="must stay as they were when the state was made"):
        other.step()
    assert torch.equal(p, start)
    assert other.param_groups[0]["step"] == 2
