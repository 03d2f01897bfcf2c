"""`param_groups` and `optimizer.state` are the truth: a step follows any removal, addition or change."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import weakref
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from marks import slow
from torch import Tensor, nn
from torch.distributed import checkpoint
from training import SMALL, parameters, relative_difference, set_gradients, train

from kradagrad_ext import KrADagrad, engine
from kradagrad_ext.whole_steps import BROKEN

SHAPES = ((20, 12), (7,), (12, 20), (3, 8, 5))


def state_tensors(optimizer: KrADagrad) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values()]


def test_offloaded_state_frees_its_memory_and_is_used_again_when_restored(backend: str) -> None:
    """Trainers do so between phases: they replace every tensor by a copy, and later by one on the device."""
    ours, plain = parameters(*SHAPES), parameters(*SHAPES)
    optimizer, other = (KrADagrad(params, **SMALL, backend=backend) for params in (ours, plain))
    train(optimizer, ours, range(4))
    train(other, plain, range(4))
    storages = [weakref.ref(value.untyped_storage()) for value in state_tensors(optimizer)]
    for state in optimizer.state.values():
        state.update({key: t.double() if key == "exp_avg" else t.clone() for key, t in state.items()})
    gc.collect()
    assert not any(storage() for storage in storages)
    train(optimizer, ours, range(4, 8))
    train(other, plain, range(4, 8))
    assert all(map(torch.equal, ours, plain))
    assert optimizer.state[ours[0]]["exp_avg"].dtype == torch.float32


def test_a_step_uses_edited_state(backend: str) -> None:
    params = parameters(*SHAPES)
    optimizer = KrADagrad(params, **SMALL, backend=backend)
    train(optimizer, params, range(3))
    optimizer.state[params[2]]["exp_avg"] = torch.full((12, 20), 7.0)
    set_gradients(params, 3)
    optimizer.step()
    assert params[2].grad is not None
    torch.testing.assert_close(
        optimizer.state[params[2]]["exp_avg"], 0.9 * 7 + 0.1 * params[2].grad, rtol=1e-5, atol=1e-5
    )


def test_a_parameter_that_moves_on_and_on_is_stepped_once(backend: str) -> None:
    """Groups without a gradient on a step keep their batches, also of parameters that have moved away."""
    moving, *others = parameters((7,), (12, 20), (20, 12))
    (alone,) = parameters((7,))
    optimizer = KrADagrad([{"params": [p]} for p in (moving, *others)], **SMALL, backend=backend)
    plain = KrADagrad([alone], **SMALL, backend=backend)
    first, second, third = optimizer.param_groups
    for number, (source, target) in enumerate(((first, second), (second, third), (third, first))):
        for p in (moving, alone):
            set_gradients([p], number)
        others[0].grad = None
        others[1].grad = torch.ones(20, 12)
        optimizer.step()
        plain.step()
        assert torch.equal(moving, alone)
        target["params"].insert(0, source["params"].pop(0))


def test_a_parameter_without_a_gradient_leaves_its_group(backend: str) -> None:
    """The group is shorter then, and the parameter's place in it is gone."""
    params = parameters((12, 20), (20, 12), (7,))
    optimizer = KrADagrad([{"params": [params[0]]}, {"params": params[1:]}], **SMALL, backend=backend)
    for _ in range(2):
        for p in params[:2]:
            p.grad = torch.ones_like(p)
        optimizer.step()
        before = params[2].detach().clone()
        optimizer.param_groups[0]["params"].append(optimizer.param_groups[1]["params"].pop())
        params[2].grad = torch.ones(7)
        optimizer.step()
        assert not torch.equal(params[2], before)
        params[2].grad = None
        optimizer.param_groups[1]["params"].append(optimizer.param_groups[0]["params"].pop())
        del optimizer.state[params[2]]


@pytest.mark.parametrize("shape", [(12, 20), (4, 3)])
def test_a_parameter_of_another_shape_is_named_before_anything_changes(
    shape: tuple[int, ...], backend: str
) -> None:
    params = parameters((20, 12), (5, 5))
    optimizer = KrADagrad([{"params": params[1:]}, {"params": params[:1]}], **SMALL, backend=backend)
    train(optimizer, params, range(2))
    params[0].data = torch.ones(shape)
    set_gradients(params, 2)
    before = copy.deepcopy([params, optimizer.param_groups[0]["step"]])
    with pytest.raises(ValueError, match="in the state of parameter 0 of parameter group 1 must be"):
        optimizer.step()
    torch.testing.assert_close([params, optimizer.param_groups[0]["step"]], before, rtol=0, atol=0)
    del optimizer.state[params[0]]
    optimizer.step()


def test_a_parameter_may_change_its_dtype(backend: str) -> None:
    params = parameters((20, 12), (7,))
    optimizer = KrADagrad(params, **SMALL, backend=backend)
    train(optimizer, params, range(3))
    momentum = optimizer.state[params[0]]["exp_avg"].clone()
    for dtype, compute in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        for p in params:
            p.grad, p.data = None, p.data.to(dtype)
        set_gradients(params, 3)
        optimizer.step()
        assert optimizer.state[params[0]]["exp_avg"].dtype == compute
        assert params[0].isfinite().all()
    assert not torch.equal(optimizer.state[params[0]]["exp_avg"].float(), momentum)


@pytest.mark.parametrize("silent", [30, pytest.param(1000, marks=slow)])
@pytest.mark.parametrize("recipe", [{}, {"graft": "rms"}, {"factor_update": "products"}], ids=str)
def test_experts_of_any_scale_are_stepped_as_if_alone(
    recipe: dict[str, Any], silent: int, backend: str
) -> None:
    """Experts have gradients of scale 1e-6, 1 and 1e3; one has its first gradient late."""
    (ours,), alone = parameters((4, 32, 24)), parameters(*[(32, 24)] * 4)
    for i, p in enumerate(alone):
        p.data.copy_(ours.data[i])
    options = SMALL | {"block_size": 16, "root_every": 10} | recipe
    optimizer = KrADagrad([ours], **options, batch_dims=1, backend=backend)
    others = [KrADagrad([p], **options, backend=backend) for p in alone]
    scales = torch.tensor([1e-6, 1.0, 1e3, 1.0])[:, None, None]
    for step in range(silent + 10):
        set_gradients([ours], step)
        assert ours.grad is not None
        ours.grad *= scales
        ours.grad[3] *= step >= silent
        for i, (p, other) in enumerate(zip(alone, others, strict=True)):
            p.grad = ours.grad[i].clone()
            other.step()
        optimizer.step()
    for i, p in enumerate(alone):
        torch.testing.assert_close(ours[i].detach(), p.detach(), rtol=1e-4, atol=1e-5, msg=f"expert {i}")


def test_parts_of_a_fused_matrix_have_separate_lengths(backend: str) -> None:
    ours, parts = parameters((24, 12)), parameters((8, 12), (8, 12), (8, 12))
    for i, p in enumerate(parts):
        p.data.copy_(ours[0].data[8 * i : 8 * i + 8])
    optimizer = KrADagrad(ours, **SMALL, split=3, backend=backend)
    other = KrADagrad(parts, **SMALL, backend=backend)
    for step in range(6):
        set_gradients(parts, step)
        for i, p in enumerate(parts):
            assert p.grad is not None
            p.grad *= 10.0 ** (3 * i)
        ours[0].grad = torch.cat([p.grad for p in parts])
        optimizer.step()
        other.step()
    torch.testing.assert_close(ours[0].detach(), torch.cat(parts).detach(), rtol=1e-5, atol=1e-6)


def test_parameters_that_join_one_by_one_move_little_state() -> None:
    """Each state moves at most once for every doubling of the number of parameters."""
    params = parameters(*[(8, 8)] * 64)
    optimizer = KrADagrad(params, **SMALL, backend="reference")
    moved: list[int] = []
    adopt = engine.ParamBatch.adopt

    def counting(batch: engine.ParamBatch, states: Any) -> None:
        moved.append(len(states))
        adopt(batch, states)

    with mock.patch.object(engine.ParamBatch, "adopt", counting):
        for count in range(1, 65):
            set_gradients(params[:count], count)
            optimizer.step()
    assert sum(moved) <= 64 * 7
    assert len(optimizer._engine._by_position[0].placed) <= 7


def test_a_late_parameter_has_its_root_on_its_first_step(backend: str) -> None:
    ours, alone = parameters((12, 8), (8, 8)), parameters((12, 8), (8, 8))
    optimizer = KrADagrad(ours, **SMALL | {"root_every": 50}, backend=backend)
    train(optimizer, ours[:1], range(60))
    other = KrADagrad(alone[1:], **SMALL | {"root_every": 50}, backend=backend)
    set_gradients(ours, 7)
    set_gradients(alone, 7)
    optimizer.step()
    other.step()
    assert relative_difference(ours[1:], alone[1:]) < 1e-6


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_step_that_breaks_off_raises_and_later_ones_are_refused(after: int) -> None:
    params = parameters((8, 8), (6,))
    optimizer = KrADagrad(params, **SMALL, backend="reference")
    train(optimizer, params, range(2))
    saved, values = optimizer.state_dict(), [p.detach().clone() for p in params]
    names = ["update_moments_", "kron_step_", "apply_updates_"]
    with (
        mock.patch(f"kradagrad_ext.backends.reference.{names[after]}", side_effect=MemoryError),
        pytest.raises(RuntimeError, match="broke off after it had begun") as caught,
    ):
        train(optimizer, params, range(2, 3))
    assert isinstance(caught.value.__cause__, MemoryError)
    for refused in (optimizer.step, optimizer.state_dict, lambda: pickle.dumps(optimizer)):
        with pytest.raises(RuntimeError, match=BROKEN[:40]):
            refused()
    optimizer.load_state_dict(saved)
    for p, value in zip(params, values, strict=True):
        p.data.copy_(value)
    other_params = parameters((8, 8), (6,))
    other = KrADagrad(other_params, **SMALL, backend="reference")
    train(other, other_params, range(3))
    train(optimizer, params, range(2, 3))
    assert all(map(torch.equal, params, other_params))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_end_of_a_step(number: int) -> None:
    """It waits in whatever op of the step it comes."""

    class InterruptError(Exception):
        pass

    def handler(*_: object) -> None:
        raise InterruptError

    from kradagrad_ext.backends import reference

    params = parameters((8, 8))
    optimizer = KrADagrad(params, **SMALL, backend="reference")
    before = signal.signal(number, handler)
    try:
        for name in ("update_moments_", "kron_step_", "apply_updates_"):
            op = getattr(reference, name)

            def interrupting(*arguments: Any, op: Any = op, **options: Any) -> None:
                os.kill(os.getpid(), number)
                op(*arguments, **options)

            with mock.patch.object(reference, name, interrupting), pytest.raises(InterruptError):
                train(optimizer, params, range(1))
            assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert optimizer.param_groups[0]["step"] == 3
    optimizer.state_dict()
    train(optimizer, params, range(1))


def test_bad_options_do_not_prevent_saving_and_rolling_back() -> None:
    params = parameters((8, 8))
    optimizer = KrADagrad(params, **SMALL)
    train(optimizer, params, range(2))
    saved = optimizer.state_dict()
    optimizer.param_groups[0]["lr"] = float("nan")
    optimizer.state_dict()
    with pytest.raises(ValueError, match="`lr` must be"):
        optimizer.step()
    optimizer.load_state_dict(saved)
    train(optimizer, params, range(2, 3))
    assert optimizer.param_groups[0]["step"] == 3


def test_a_failed_load_does_not_repair_a_broken_step() -> None:
    params = parameters((8, 8))
    optimizer = KrADagrad(params, **SMALL, backend="reference")
    train(optimizer, params, range(1))
    saved = optimizer.state_dict()
    with (
        mock.patch("kradagrad_ext.backends.reference.kron_step_", side_effect=MemoryError),
        pytest.raises(RuntimeError, match="broke off"),
    ):
        train(optimizer, params, range(1, 2))
    with (
        mock.patch.object(engine.LocalEngine, "restore", side_effect=MemoryError),
        pytest.raises(MemoryError),
    ):
        optimizer.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="broke off"):
        optimizer.step()
    optimizer.load_state_dict(saved)
    train(optimizer, params, range(1, 2))


def test_parameters_without_a_step_do_not_prevent_saving_with_bad_options() -> None:
    params = parameters((8, 8), (4, 4))
    optimizer = KrADagrad(params, **SMALL)
    train(optimizer, params[:1], range(1))
    optimizer.param_groups[0]["lr"] = float("nan")
    assert set(optimizer.state_dict()["state"]) == {0, 1}


def test_a_group_that_is_refused_leaves_no_trace() -> None:
    optimizer = KrADagrad(parameters((8, 8)), **SMALL)
    group: dict[str, Any] = {"params": parameters((4, 4)), "damping": -1.0}
    before = dict(group)
    with pytest.raises(ValueError, match="damping"):
        optimizer.add_param_group(group)
    assert group == before
    assert len(optimizer.param_groups) == 1
    interrupted = mock.patch("kradagrad_ext.optimizer.blocking_of", side_effect=KeyboardInterrupt)
    with interrupted, pytest.raises(KeyboardInterrupt):
        optimizer.add_param_group({"params": parameters((4, 4))})
    assert len(optimizer.param_groups) == 1


def test_a_state_dict_owns_step_and_learning_rate() -> None:
    params = parameters((8, 8))
    optimizer = KrADagrad(params, lr=torch.tensor(0.1), block_size=8, capturable=True)
    train(optimizer, params, range(2))
    saved = optimizer.state_dict()["param_groups"][0]
    train(optimizer, params, range(2, 4))
    optimizer.param_groups[0]["lr"].fill_(0.5)
    assert int(saved["step"]) == 2
    assert float(saved["lr"]) == pytest.approx(0.1)
    assert not {"not_options", "self", "given"} & saved.keys()


def test_options_that_an_older_checkpoint_lacks_are_this_optimizers() -> None:
    params = parameters((8, 8))
    optimizer = KrADagrad(params, **SMALL, spike_limit=7.0)
    train(optimizer, params, range(2))
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["spike_limit"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["spike_limit"] == 7.0
    train(optimizer, params, range(2, 3))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpoints_of_one_process_without_a_group(tmp_path: Any) -> None:
    ours, resumed = parameters(*SHAPES), parameters(*SHAPES)
    optimizer, other = KrADagrad(ours, **SMALL), KrADagrad(resumed, **SMALL)
    train(optimizer, ours, range(4))
    checkpoint.save({"optimizer": optimizer.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    state = {"optimizer": other.state_dict()}
    checkpoint.load(state, checkpoint_id=tmp_path, no_dist=True)
    other.load_state_dict(state["optimizer"])
    for p, q in zip(ours, resumed, strict=True):
        q.data.copy_(p.data)
    train(optimizer, ours, range(4, 6))
    train(other, resumed, range(4, 6))
    assert all(map(torch.equal, ours, resumed))


def test_pickles_are_as_large_as_the_state() -> None:
    params = parameters(*[(8, 8)] * 40)
    optimizer = KrADagrad(params, **SMALL)
    train(optimizer, params, range(1))
    state = sum(value.nbytes for value in state_tensors(optimizer))
    values = sum(p.nbytes for p in params)
    assert len(pickle.dumps(optimizer)) < 3 * (state + values)


def test_numbers_of_numpy_are_numbers(backend: str) -> None:
    ours, plain = parameters((8, 8)), parameters((8, 8))
    numbers = {"lr": np.float32(0.5), "damping": np.array(1e-3), "root_every": np.int64(3)}
    optimizer = KrADagrad(ours, block_size=np.int32(8), **numbers, backend=backend)
    other = KrADagrad(plain, block_size=8, lr=0.5, damping=1e-3, root_every=3, backend=backend)
    train(optimizer, ours, range(4))
    train(other, plain, range(4))
    assert all(map(torch.equal, ours, plain))


def test_a_parameter_that_overlaps_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="parameter 0 of parameter group 0 must have an element of memory"):
        KrADagrad([nn.Parameter(torch.ones(1, 4).expand(3, 4))])
