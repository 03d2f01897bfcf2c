"""Work that the host does once for all steps: steps reuse its results, and none of them is stale."""

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
"""Few layers and many; on a CPU, one call computes the norms of that many gradients of one shape."""

Change = Callable[[KrADagrad, list[nn.Parameter], int], None]


def transposed(tensor: Tensor) -> Tensor:
    """Return the same tensor with its dims in reverse order in memory."""
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
def test_steps_are_those_of_an_optimizer_without_caches(
    change: Change, options: dict[str, Any], backend: str
) -> None:
    """Steps are equal bit for bit: an optimizer that loads its state dict drops all caches."""
    ours, forgetful = parameters(*SHAPES), parameters(*SHAPES)
    pairs = [(KrADagrad(ps, **SMALL, backend=backend, **options), ps) for ps in (ours, forgetful)]
    for step in range(10):
        pairs[1][0].load_state_dict(pairs[1][0].state_dict())
        for optimizer, params in pairs:
            set_gradients(params, step)
            change(optimizer, params, step)
            optimizer.step()
        assert all(map(torch.equal, ours, forgetful)), step


def change_layout(params: list[nn.Parameter], step: int) -> None:
    """Replace gradients by copies: contiguous, transposed, with gaps, or within another tensor."""
    for p in params:
        assert p.grad is not None
        spaced = torch.zeros(*p.shape[:-1], 2 * p.shape[-1])[..., ::2]
        layouts = (p.grad, transposed(p.grad), spaced, torch.zeros(3, *p.shape)[1])
        p.grad = layouts[step % len(layouts)].copy_(p.grad)


def test_gradients_may_have_another_layout_on_every_step(backend: str) -> None:
    ours, plain = parameters(*SHAPES), parameters(*SHAPES)
    optimizer, other = (KrADagrad(params, **SMALL, backend=backend) for params in (ours, plain))
    for step in range(12):
        set_gradients(ours, step)
        change_layout(ours, step)
        set_gradients(plain, step)
        optimizer.step()
        other.step()
    assert relative_difference(ours, plain) < 1e-5


def changing_rank(rank: int) -> float:
    """Return the difference from plain steps if parameters move and gradients come, go and change layout."""
    ours, plain = parameters(*SHAPES), parameters(*SHAPES)
    optimizer, other = (KrADagrad(ps, **SMALL, process_group=dist.group.WORLD) for ps in (ours, plain))
    for step in range(12):
        for params in (ours, plain):
            set_gradients(params, step)
        change_layout(ours, step)
        for params in (ours, plain):
            gradients_come_and_go(optimizer, params, step)
        other_data(optimizer, ours, step)
        optimizer.step()
        other.step()
    return relative_difference(ours, plain)


@pytest.mark.parametrize("world", [1, 2])
def test_parameters_and_gradients_of_ranks_may_change_on_every_step(world: int, tmp_path: Path) -> None:
    assert max(ranks.launch(world, changing_rank, tmp_path)) < 1e-5


def steps_around_refused_ones(module: Any, **options: Any) -> tuple[list[int], bool]:
    """Take steps of which two are refused, also the first; compare them with steps without refusals.

    Args:
        module: the module of the engine that plans the work of a step.

    Returns:
        the step counters of both, and True if their parameters are equal.
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
    counts = [stepped.param_groups[0]["step"] for stepped in (optimizer, other)]
    return counts, all(map(torch.equal, ours, plain))


def refusing_rank(rank: int) -> tuple[list[int], bool]:
    return steps_around_refused_ones(sharded_params, process_group=dist.group.WORLD)


def test_a_step_that_cannot_be_planned_changes_nothing(backend: str) -> None:
    assert steps_around_refused_ones(engine, backend=backend) == ([6, 6], True)


def test_a_step_that_cannot_be_planned_changes_nothing_on_any_rank(tmp_path: Path) -> None:
    assert ranks.launch(2, refusing_rank, tmp_path) == [([6, 6], True)] * 2


def steps_after_one_has_left(**options: Any) -> tuple[bool, float]:
    """Remove a parameter from its group after three steps; compare with a run where it loses its gradient.

    Returns:
        True if the parameter stays unchanged, and the difference of all parameters from that run.
    """
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


def test_a_parameter_that_left_its_group_is_not_stepped(backend: str) -> None:
    stays, difference = steps_after_one_has_left(backend=backend)
    assert stays
    assert difference < 1e-6


def leaving_rank(rank: int) -> tuple[bool, float]:
    return steps_after_one_has_left(process_group=dist.group.WORLD)


def test_a_parameter_that_left_its_group_is_stepped_by_no_rank(tmp_path: Path) -> None:
    for stays, difference in ranks.launch(2, leaving_rank, tmp_path):
        assert stays
        assert difference < 1e-6


def test_a_parameter_whose_state_is_deleted_restarts(backend: str) -> None:
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
    assert configs.of(0, group) is first, "lr is not one of them"
    group["betas"] = [0.9, 0.99]
    assert configs.of(0, group).betas[0] == 0.9
    group["betas"][0] = 1.5  # in the same object
    with pytest.raises(ValueError, match="betas"):
        configs.of(0, group)
    group["betas"] = (0.9, 0.99)
    group["merge_dims"] = 1  # equal to True, but no bool
    with pytest.raises(ValueError, match="merge_dims"):
        configs.of(0, group)
    del group["merge_dims"]
    with pytest.raises(ValueError, match=r"lacks the options \['merge_dims'\]"):
        configs.of(0, group)


@pytest.fixture
def op_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[Tensor]]]:
    """Replace the ops by ones that do nothing; return the list of their arguments, by name."""
    calls: list[tuple[str, list[Tensor]]] = []

    def update_moments_(*arguments: Any) -> None:
        for name, place in (("momenta", 0), ("second moments", 1), ("directions", 2), ("parameters", 5)):
            calls.append((name, arguments[place]))

    def kron_step_(groups: Any, *_: Any, **__: Any) -> None:
        for group in groups:
            sides = (group.left, group.right)
            calls.append(("sides", [t for side in sides for t in (side.factor, side.statistics, side.root)]))
            calls.append(("directions", group.directions))
            calls.append(("out", group.out))

    def apply_updates_(*arguments: Any) -> None:
        for name, place in (("parameters", 0), ("updates", 2), ("fallbacks", 3)):
            calls.append((name, arguments[place]))

    monkeypatch.setattr(reference, "update_moments_", update_moments_)
    monkeypatch.setattr(reference, "kron_step_", kron_step_)
    monkeypatch.setattr(reference, "apply_updates_", apply_updates_)
    monkeypatch.setattr(reference, "update_factor_", lambda *_: None)
    return calls


def is_same(a: Tensor, b: Tensor) -> bool:
    """Return True if two tensors are the same object, or have the same elements of the same memory."""
    return a is b or all(
        of(a) == of(b) for of in (Tensor.data_ptr, Tensor.size, Tensor.stride, lambda t: t.dtype)
    )


@pytest.mark.parametrize("nesterov", [True, False])
def test_ops_are_given_the_same_tensors_on_every_step(
    nesterov: bool, op_calls: list[tuple[str, list[Tensor]]]
) -> None:
    """Parameters, moments, buffers and blocks are the same; gradients are new."""
    params = parameters(*SHAPES)
    optimizer = KrADagrad(params, **(SMALL | {"root_every": 100}), nesterov=nesterov, backend="reference")
    optimizer.param_groups[0]["step"] = SETTLED
    seen = []
    for step in range(3):
        op_calls.clear()
        set_gradients(params, step)
        optimizer.step()
        seen.append(list(op_calls)[-10:])  # a first step updates factors, then computes roots
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


@pytest.mark.usefixtures("op_calls")
def test_a_step_makes_one_view_of_each_gradient_that_is_cut_and_nothing_else_of_a_parameter() -> None:
    few, many = (operations_of_a_step(layers, (8, 8), backend="reference") for layers in LAYERS)
    assert few == many, "blocks that are whole parameters"
    few, many = (operations_of_a_step(layers, (16, 24), backend="reference") for layers in LAYERS)
    assert many - few == {"as_strided": LAYERS[1] - LAYERS[0]}
    assert few <= many


def work_of_a_rank(rank: int, layers: int, in_shards: bool) -> tuple[Counter[str], Counter[str]]:
    """Return the counts of a step's operations, and of its function calls."""
    reference.update_moments_ = reference.apply_updates_ = reference.kron_step_ = lambda *_, **__: None
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
    """Count the calls of Python functions, ``call``, and calls from Python of other functions, ``c_call``."""
    counts: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, _: counts.update([event]))
    call()
    sys.setprofile(None)
    return counts


@pytest.mark.parametrize(("world", "in_shards"), [(1, False), (2, False), (2, True)])
def test_a_step_of_the_sharded_engine_does_no_work_parameter_by_parameter(
    world: int, in_shards: bool, tmp_path: Path
) -> None:
    """It calls no function of a parameter, except its hash, to find state, and a DTensor's local tensor."""
    added = 2 * (LAYERS[1] - LAYERS[0])
    of_ranks = []
    for layers in LAYERS:
        (tmp_path / str(layers)).mkdir()
        of_ranks.append(ranks.launch(world, work_of_a_rank, tmp_path / str(layers), layers, in_shards))
    for (few, few_calls), (many, many_calls) in zip(*of_ranks, strict=True):
        assert few == many
        assert many_calls["call"] - few_calls["call"] == added
        assert many_calls["c_call"] - few_calls["c_call"] <= added


@pytest.mark.usefixtures("op_calls")
def test_a_step_calls_one_function_of_a_parameter() -> None:
    """The function is the hash, which finds the parameter's state."""
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


def gradients_alive_after_a_step(**options: Any) -> int:
    params = parameters(*SHAPES)
    optimizer = KrADagrad(params, **SMALL, **options)
    train(optimizer, params, range(2))
    references = [weakref.ref(p.grad) for p in params if p.grad is not None]
    optimizer.zero_grad()
    return sum(grad() is not None for grad in references)


def holding_rank(rank: int) -> int:
    return gradients_alive_after_a_step(process_group=dist.group.WORLD)


def test_nothing_holds_gradients_after_a_step(tmp_path: Path) -> None:
    """Their memory is free for the model once the training loop drops them."""
    assert gradients_alive_after_a_step() == 0
    assert ranks.launch(2, holding_rank, tmp_path) == [0, 0]


def state_after_an_unknown_backend(**options: Any) -> int:
    """Return the number of parameters with state, plus the step counter, after a refused step."""
    params = parameters(*SHAPES)
    optimizer = KrADagrad(params, **SMALL, **options)
    optimizer.param_groups[0]["backend"] = "fast"
    with pytest.raises(ValueError, match="`backend` must be one of"):
        train(optimizer, params, range(1))
    return len(optimizer.state) + optimizer.param_groups[0]["step"]


def naming_rank(rank: int) -> int:
    return state_after_an_unknown_backend(process_group=dist.group.WORLD)


def test_there_is_no_state_after_a_step_with_an_unknown_backend(tmp_path: Path) -> None:
    assert state_after_an_unknown_backend() == 0
    assert ranks.launch(2, naming_rank, tmp_path) == [0, 0]
