"""What the host makes once for all steps: that steps use it again, and that nothing of it is stale."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ranks
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from training import SMALL, parameters, relative_difference, set_gradients, train
from watching import Operations

from kradagrad_ext import KrADagrad, engine
from kradagrad_ext.backends import reference
from kradagrad_ext.config import ConfigCache
from kradagrad_ext.distributed import sharded_params
from kradagrad_ext.schedule import SETTLED

SHAPES = ((20, 12), (8, 8), (7,), (3, 4, 5))
LAYERS = (4, 12)
"""Few and many; on a CPU, norms of so many gradients of one shape are made at once."""

Change = Callable[[KrADagrad, list[nn.Parameter], int], None]


def transposed(tensor: Tensor) -> Tensor:
    """The same, with its dims in reverse order in memory."""
    dims = range(tensor.ndim - 1, -1, -1)
    return tensor.permute(*dims).contiguous().permute(*dims)


def other_data(_: KrADagrad, params: list[nn.Parameter], step: int) -> None:
    p = params[step % len(params)]
    p.data = p.data.clone() if step % 2 else transposed(p.data)


def other_options(optimizer: KrADagrad, _: list[nn.Parameter], step: int) -> None:
    group = optimizer.param_groups[0]
    group["lr"] *= 0.9
    group["nesterov"] = step % 3 == 1
    group["betas"] = (0.9 - step / 100, 0.99)
    group["weight_decay"] = step / 10
    group["root_method"] = ("eigh", "polar")[step % 2]


def options_in_place(optimizer: KrADagrad, _: list[nn.Parameter], step: int) -> None:
    group = optimizer.param_groups[0]
    if not isinstance(group["betas"], list):
        group["betas"] = list(group["betas"])
    group["betas"][0] = 0.9 - step / 100


def gradients_come_and_go(_: KrADagrad, params: list[nn.Parameter], step: int) -> None:
    for i, p in enumerate(params):
        if (step < 3 and i == 1) or step % 4 == i:
            p.grad = None


CHANGES = [other_data, other_options, options_in_place, gradients_come_and_go]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("options", [{}, {"momentum_on": "update"}], ids=str)
def test_steps_are_those_of_an_optimizer_that_keeps_nothing(
    change: Change, options: dict[str, Any], backend: str
) -> None:
    """To the bit: loading its own state makes an optimizer forget all but that."""
    ours, forgetful = parameters(*SHAPES), parameters(*SHAPES)
    pairs = [(KrADagrad(own, **SMALL, backend=backend, **options), own) for own in (ours, forgetful)]
    for step in range(10):
        pairs[1][0].load_state_dict(pairs[1][0].state_dict())
        for optimizer, own in pairs:
            set_gradients(own, step)
            change(optimizer, own, step)
            optimizer.step()
        assert all(map(torch.equal, ours, forgetful)), step


def lay_otherwise(params: list[nn.Parameter], step: int) -> None:
    """Gradients transposed, with gaps, within another tensor."""
    for p in params:
        assert p.grad is not None
        spaced = torch.zeros(*p.shape[:-1], 2 * p.shape[-1])[..., ::2]
        ways = (p.grad, transposed(p.grad), spaced, torch.zeros(3, *p.shape)[1])
        p.grad = ways[step % len(ways)].copy_(p.grad)


def test_gradients_may_lie_otherwise_on_every_step(backend: str) -> None:
    ours, plain = parameters(*SHAPES), parameters(*SHAPES)
    optimizer, other = (KrADagrad(own, **SMALL, backend=backend) for own in (ours, plain))
    for step in range(12):
        set_gradients(ours, step)
        lay_otherwise(ours, step)
        set_gradients(plain, step)
        optimizer.step()
        other.step()
    assert relative_difference(ours, plain) < 1e-5


def changing_rank(rank: int) -> float:
    """How far parameters are that move, whose gradients come and go and lie otherwise, from others."""
    ours, plain = parameters(*SHAPES), parameters(*SHAPES)
    optimizer, other = (KrADagrad(own, **SMALL, process_group=dist.group.WORLD) for own in (ours, plain))
    for step in range(12):
        for own in (ours, plain):
            set_gradients(own, step)
        lay_otherwise(ours, step)
        for own in (ours, plain):
            gradients_come_and_go(optimizer, own, step)
        other_data(optimizer, ours, step)
        optimizer.step()
        other.step()
    return relative_difference(ours, plain)


@pytest.mark.parametrize("world", [1, 2])
def test_parameters_and_gradients_of_ranks_may_be_others_on_every_step(world: int, tmp_path: Path) -> None:
    assert max(ranks.launch(world, changing_rank, tmp_path)) < 1e-5


def steps_around_refused_ones(module: Any, **options: Any) -> tuple[list[int], bool]:
    """The count after steps of which two were refused, the first one too; whether parameters are as without.

    Args:
        module: of the engine, where it plans the work of a step.
    """
    ours, plain = parameters(*SHAPES), parameters(*SHAPES)
    optimizer, other = KrADagrad(ours, **SMALL, **options), KrADagrad(plain, **SMALL, **options)
    for step in range(6):
        set_gradients(ours, step)
        if step in (0, 3):
            with mock.patch.object(module, "plan_batch", side_effect=MemoryError), pytest.raises(MemoryError):
                optimizer.step()
        optimizer.step()
    train(other, plain, range(6))
    counts = [own.param_groups[0]["step"] for own in (optimizer, other)]
    return counts, all(map(torch.equal, ours, plain))


def refusing_rank(rank: int) -> tuple[list[int], bool]:
    return steps_around_refused_ones(sharded_params, process_group=dist.group.WORLD)


def test_a_step_that_cannot_be_planned_changes_nothing(backend: str) -> None:
    assert steps_around_refused_ones(engine, backend=backend) == ([6, 6], True)


def test_a_step_that_cannot_be_planned_changes_nothing_on_any_rank(tmp_path: Path) -> None:
    assert ranks.launch(2, refusing_rank, tmp_path) == [([6, 6], True)] * 2


def steps_after_one_has_left(**options: Any) -> tuple[bool, float]:
    """Whether a parameter that left its group stays, and how far others are from where it had no gradient."""
    ours, frozen = parameters(*SHAPES), parameters(*SHAPES)
    left, other = KrADagrad(ours, **SMALL, **options), KrADagrad(frozen, **SMALL, **options)
    train(left, ours, range(3))
    train(other, frozen, range(3))
    del left.param_groups[0]["params"][1]
    before = ours[1].detach().clone()
    for step in range(3, 8):
        set_gradients(ours, step)
        set_gradients(frozen, step)
        frozen[1].grad = None
        left.step()
        other.step()
    return torch.equal(ours[1], before), relative_difference(ours, frozen)


def test_a_parameter_that_left_its_group_is_stepped_no_more(backend: str) -> None:
    stays, difference = steps_after_one_has_left(backend=backend)
    assert stays
    assert difference < 1e-6


def leaving_rank(rank: int) -> tuple[bool, float]:
    return steps_after_one_has_left(process_group=dist.group.WORLD)


def test_a_parameter_that_left_its_group_is_stepped_by_no_rank(tmp_path: Path) -> None:
    for stays, difference in ranks.launch(2, leaving_rank, tmp_path):
        assert stays
        assert difference < 1e-6


def test_a_parameter_whose_state_is_gone_starts_anew(backend: str) -> None:
    params = parameters(*SHAPES)
    optimizer = KrADagrad(params, **SMALL, backend=backend)
    train(optimizer, params, range(3))
    del optimizer.state[params[0]]
    train(optimizer, params, range(3, 5))
    assert [int(optimizer.state[p]["matrix_stats"][0, 0]) for p in params] == [2, 5, 5, 5]


def test_an_option_that_went_bad_is_refused_and_nothing_changes() -> None:
    params = parameters(*SHAPES)
    optimizer = KrADagrad(params, **SMALL)
    train(optimizer, params, range(2))
    before = [p.detach().clone() for p in params]
    optimizer.param_groups[0]["damping"] = -1.0
    with pytest.raises(ValueError, match="`damping` must be a number > 0"):
        train(optimizer, params, range(2, 3))
    assert optimizer.param_groups[0]["step"] == 2
    assert all(map(torch.equal, before, params))


def test_options_are_checked_once_for_the_same_objects() -> None:
    group = KrADagrad([torch.zeros(2, 2)]).param_groups[0]
    configs = ConfigCache()
    first = configs.of(0, group)
    assert configs.of(0, group) is first
    group["lr"] = 0.5
    assert configs.of(0, group) is first, "lr is not among them"
    group["betas"] = [0.9, 0.99]
    assert configs.of(0, group).betas[0] == 0.9
    group["betas"][0] = 1.5  # in the same object
    with pytest.raises(ValueError, match="betas"):
        configs.of(0, group)
    group["betas"] = (0.9, 0.99)
    group["merge_dims"] = 1  # equal to what it was, but no bool
    with pytest.raises(ValueError, match="merge_dims"):
        configs.of(0, group)
    del group["merge_dims"]
    with pytest.raises(ValueError, match=r"lacks the options \['merge_dims'\]"):
        configs.of(0, group)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[Tensor]]]:
    """What the ops of a step are given, by name; they do nothing."""
    calls: list[tuple[str, list[Tensor]]] = []

    def accumulate_(*arguments: Any) -> None:
        for name, place in (("momenta", 0), ("second moments", 1), ("directions", 2), ("parameters", 5)):
            calls.append((name, arguments[place]))

    def kron_step_(groups: Any, *_: Any, **__: Any) -> None:
        for group in groups:
            sides = (group.left, group.right)
            calls.append(("sides", [t for side in sides for t in (side.factor, side.statistics, side.root)]))
            calls.append(("directions", group.directions))
            calls.append(("out", group.out))

    def parameter_step_(*arguments: Any) -> None:
        for name, place in (("parameters", 0), ("updates", 2), ("fallbacks", 3)):
            calls.append((name, arguments[place]))

    monkeypatch.setattr(reference, "accumulate_", accumulate_)
    monkeypatch.setattr(reference, "kron_step_", kron_step_)
    monkeypatch.setattr(reference, "parameter_step_", parameter_step_)
    monkeypatch.setattr(reference, "update_factor_", lambda *_: None)
    return calls


def is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, or the same elements of the same memory."""
    return a is b or all(
        of(a) == of(b) for of in (Tensor.data_ptr, Tensor.size, Tensor.stride, lambda own: own.dtype)
    )


@pytest.mark.parametrize("nesterov", [True, False])
def test_ops_are_given_the_same_tensors_on_every_step(
    nesterov: bool, given: list[tuple[str, list[Tensor]]]
) -> None:
    """Of parameters, moments, buffers and blocks; but gradients are new ones."""
    params = parameters(*SHAPES)
    optimizer = KrADagrad(params, **(SMALL | {"root_every": 100}), nesterov=nesterov, backend="reference")
    optimizer.param_groups[0]["step"] = SETTLED
    seen = []
    for step in range(3):
        given.clear()
        set_gradients(params, step)
        optimizer.step()
        seen.append(list(given)[-10:])  # a first step updates factors, then makes roots
    for first, again in zip(seen[0], seen[2], strict=True):
        assert first[0] == again[0]
        assert len(first[1]) == len(again[1])
        assert all(map(is_same, first[1], again[1])), first[0]


def operations_of_a_step(layers: int, shape: tuple[int, ...], **options: Any) -> Counter[str]:
    params = [nn.Parameter(torch.zeros(size)) for size in (shape, shape[-1:]) * layers]
    optimizer = KrADagrad(params, **(SMALL | {"root_every": 100} | options))
    optimizer.param_groups[0]["step"] = SETTLED
    with Operations() as operations:
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            operations.counts.clear()
            optimizer.step()
    return operations.counts


@pytest.mark.usefixtures("given")
def test_a_step_makes_one_view_of_each_gradient_that_is_cut_and_nothing_else_of_a_parameter() -> None:
    few, many = (operations_of_a_step(layers, (8, 8), backend="reference") for layers in LAYERS)
    assert few == many, "blocks that are whole parameters"
    few, many = (operations_of_a_step(layers, (16, 24), backend="reference") for layers in LAYERS)
    assert many - few == {"as_strided": LAYERS[1] - LAYERS[0]}
    assert few <= many


def work_of_a_rank(rank: int, layers: int, in_shards: bool) -> tuple[Counter[str], Counter[str]]:
    """A step's operations, and its calls of functions."""
    reference.accumulate_ = reference.parameter_step_ = reference.kron_step_ = lambda *_, **__: None
    shapes = [(16, 16), (16,)] * layers
    placed: Callable[[Tensor], Tensor] = torch.Tensor.clone
    if in_shards:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        placed = partial(distribute_tensor, device_mesh=mesh, placements=[Shard(0)])
    params = [nn.Parameter(placed(torch.zeros(shape))) for shape in shapes]
    options = {"block_size": 16, "root_every": 100, "backend": "reference"}
    optimizer = KrADagrad(params, **options, process_group=dist.group.WORLD)
    optimizer.param_groups[0]["step"] = SETTLED
    for p, shape in zip(params, shapes, strict=True):
        p.grad = placed(torch.ones(shape))
    for _ in range(2):
        optimizer.step()
    with Operations() as operations:
        optimizer.step()
    return operations.counts, calls_of(optimizer.step)


def calls_of(call: Callable[[], object]) -> Counter[str]:
    """Of Python's functions, ``call``, and, from Python, of others, ``c_call``."""
    counts: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, _: counts.update([event]))
    call()
    sys.setprofile(None)
    return counts


@pytest.mark.parametrize(("world", "in_shards"), [(1, False), (2, False), (2, True)])
def test_a_step_of_the_sharded_engine_does_nothing_parameter_by_parameter(
    world: int, in_shards: bool, tmp_path: Path
) -> None:
    """Nor calls a function of each, but for its hash, to find its state, and for what a DTensor holds."""
    added = 2 * (LAYERS[1] - LAYERS[0])
    of_ranks = []
    for layers in LAYERS:
        (tmp_path / str(layers)).mkdir()
        of_ranks.append(ranks.launch(world, work_of_a_rank, tmp_path / str(layers), layers, in_shards))
    for (few, few_calls), (many, many_calls) in zip(*of_ranks, strict=True):
        assert few == many
        assert many_calls["call"] - few_calls["call"] == added
        assert many_calls["c_call"] - few_calls["c_call"] <= added


@pytest.mark.usefixtures("given")
def test_a_step_calls_one_function_of_a_parameter() -> None:
    """For its hash."""
    calls = []
    for layers in LAYERS:
        params = parameters(*[(8, 8), (8,)] * layers)
        optimizer = KrADagrad(params, **(SMALL | {"root_every": 100}), backend="reference")
        optimizer.param_groups[0]["step"] = SETTLED
        train(optimizer, params, range(2))
        calls.append(calls_of(optimizer.step))
    few, many = calls
    added = 2 * (LAYERS[1] - LAYERS[0])
    assert many["call"] - few["call"] <= added
    assert many["c_call"] - few["c_call"] <= 2 * added


def gradients_held_after_a_step(**options: Any) -> int:
    params = parameters(*SHAPES)
    optimizer = KrADagrad(params, **SMALL, **options)
    train(optimizer, params, range(2))
    held = [weakref.ref(p.grad) for p in params if p.grad is not None]
    optimizer.zero_grad()
    return sum(grad() is not None for grad in held)


def holding_rank(rank: int) -> int:
    return gradients_held_after_a_step(process_group=dist.group.WORLD)


def test_nothing_holds_gradients_after_a_step(tmp_path: Path) -> None:
    """Their memory is the model's again once the training loop lets go of them."""
    assert gradients_held_after_a_step() == 0
    assert ranks.launch(2, holding_rank, tmp_path) == [0, 0]


def state_of_a_backend_that_is_none(**options: Any) -> int:
    """How many parameters have state after a step that names no backend."""
    params = parameters(*SHAPES)
    optimizer = KrADagrad(params, **SMALL, **options)
    optimizer.param_groups[0]["backend"] = "fast"
    with pytest.raises(ValueError, match="`backend` must be one of"):
        train(optimizer, params, range(1))
    return len(optimizer.state) + optimizer.param_groups[0]["step"]


def naming_rank(rank: int) -> int:
    return state_of_a_backend_that_is_none(process_group=dist.group.WORLD)


def test_there_is_no_state_after_a_step_that_names_no_backend(tmp_path: Path) -> None:
    assert state_of_a_backend_that_is_none() == 0
    assert ranks.launch(2, naming_rank, tmp_path) == [0, 0]
