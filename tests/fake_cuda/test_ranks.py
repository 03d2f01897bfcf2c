"""Sharded steps on fake GPUs: with a process group that does nothing, and with gloo between processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import launch
from torch.testing._internal.distributed.fake_pg import FakeStore

from kradagrad_ext.distributed import sharded_params

from . import recorded
from .training import BACKENDS, assert_free_of_waits, kernels, make, needs_fake_gpu, parameters, steady

pytestmark = needs_fake_gpu


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch):
    """Yield the group of rank 0 of two; the other rank has the same objects and sends nothing."""

    def all_gather_object(object_list: list[object], obj: object, group: object = None) -> None:
        object_list[:] = [obj] * len(object_list)

    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    monkeypatch.setattr(sharded_params, "CHUNK_BYTES", 1 << 15)  # several chunks
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("gpu_backend", BACKENDS)
def test_a_sharded_step_waits_for_nothing(two_ranks: dist.ProcessGroup, gpu_backend: str) -> None:
    optimizer = make(parameters(), gpu_backend, process_group=two_ranks)
    recording = steady(optimizer.step)
    assert_free_of_waits(recording)
    assert len(optimizer._engine._shards[0].chunks) > 1


def test_a_gradient_that_comes_and_goes_is_no_wait(two_ranks: dist.ProcessGroup) -> None:
    params = parameters()
    optimizer, grad = make(params, "native", process_group=two_ranks), params[0].grad
    optimizer.step()

    def step() -> None:
        params[0].grad = None if params[0].grad is grad else grad
        optimizer.step()

    assert_free_of_waits(steady(step))


def test_norms_are_few_launches_however_many_parameters(two_ranks: dist.ProcessGroup) -> None:
    def norms(count: int) -> int:
        params = parameters(shapes=[(8, 8)] * count)
        optimizer = make(params, "native", process_group=two_ranks)
        optimizer.step()
        with recorded() as recording:
            optimizer._engine._shards[0]._local_norms([p.grad for p in params])
        return len(recording.launches)

    assert norms(4) == norms(40)


def rank_on_gloo(rank: int) -> tuple[list[str], dict[str, int], int]:
    optimizer = make(parameters(), "native", process_group=dist.group.WORLD)
    recording = steady(optimizer.step)
    return recording.refusals, dict(kernels(recording)), torch.cuda.device_count()


def test_two_processes_step_on_gloo(tmp_path: Path) -> None:
    """Gloo's copies between the host and the device wait, so only refused calls are faults here."""
    for refusals, launched, _ in launch(2, rank_on_gloo, tmp_path):
        assert refusals == []
        assert launched["apply_updates"] >= 1
