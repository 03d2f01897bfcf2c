"""Ranks without work, late and dead ranks, counts of collectives, torch's state dict functions."""

from __future__ import annotations

import datetime
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from marks import slow, slow_after
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from watching import Operations

from kradagrad_ext import KrADagrad
from kradagrad_ext.distributed import collectives, sharded_params
from kradagrad_ext.schedule import SETTLED


def small_model() -> nn.Sequential:
    """Return a model with one block, one row more than a block, one element, no element; in two dtypes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 17, bias=False))
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    model.register_parameter("none", nn.Parameter(torch.zeros(0, 3)))
    model[1].to(torch.bfloat16)
    return model


def train_small(model: nn.Sequential, optimizer: KrADagrad, steps: int = 6) -> list[Tensor]:
    for step in range(steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        hidden = model[0](x) * model.scale
        loss = model[1](hidden.bfloat16()).float().square().mean() + (model.none * 2).sum()
        loss.backward()
        optimizer.step()
    return ranks.whole(model)


def idle_rank(rank: int) -> list[Tensor]:
    model = small_model()
    optimizer = KrADagrad(model.parameters(), block_size=16, process_group=dist.group.WORLD)
    return train_small(model, optimizer)


def test_ranks_without_blocks_take_part(tmp_path: Path) -> None:
    """There are four ranks for two blocks, and vectors with fewer elements than ranks."""
    model = small_model()
    alone = train_small(model, KrADagrad(model.parameters(), block_size=16))
    for parameters in ranks.launch(4, idle_rank, tmp_path):
        assert all(torch.equal(a, b) for a, b in zip(parameters, alone, strict=True))


def late_rank(rank: int) -> dict[str, Any]:
    """Take steps, of which rank 1 misses the third within the process group's timeout."""
    group = dist.new_group(timeout=datetime.timedelta(seconds=3))
    model = ranks.make_model()
    optimizer = KrADagrad(model.parameters(), **ranks.OPTIONS, process_group=group)
    for step in range(2):
        ranks.backward(model, step)
        optimizer.step()
    ranks.backward(model, 2)
    if rank == 1:
        time.sleep(6)
        return {}
    before = ranks.whole(model)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"[Tt]imed out|[Tt]imeout"):
        optimizer.step()
    waited = time.monotonic() - start
    return {"same": all(map(torch.equal, before, ranks.whole(model))), "waited": waited}


@slow
def test_a_late_rank_is_waited_for_until_the_timeout(tmp_path: Path) -> None:
    punctual, _ = ranks.launch(2, late_rank, tmp_path)
    assert punctual["same"]
    assert punctual["waited"] < 6


def dying_rank(rank: int, mode: str, collective: str) -> bool:
    """Let rank 1 die at a collective: the first norms, a chunk in transit, or the last all_gather."""
    model = ranks.make_model()
    optimizer = KrADagrad(model.parameters(), **ranks.OPTIONS, **ranks.shard(model, mode))
    ranks.backward(model, 0)
    optimizer.step()
    ranks.backward(model, 1)
    if rank == 1:
        setattr(collectives if collective == "all_gather" else dist, collective, lambda *_, **__: os._exit(1))
    before = [ranks.local(p).clone() for p in model.parameters()]
    with pytest.raises(RuntimeError):
        optimizer.step()
    return all(torch.equal(a, ranks.local(p)) for a, p in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("mode", "collective"),
    slow_after(1, [("fsdp", "all_to_all_single"), ("ddp", "all_gather"), ("fsdp", "all_reduce")]),
)
def test_a_rank_that_dies_in_a_step_raises_and_leaves_the_parameters(
    mode: str, collective: str, tmp_path: Path
) -> None:
    survivor, _ = ranks.launch(2, dying_rank, tmp_path, mode, collective, deaths=1)
    assert survivor


def counted_rank(rank: int, layers: int) -> tuple[Counter[str], list[int], int]:
    """Return the collectives of one step in shards, the bytes that each sends, and the number of chunks."""
    sharded_params.CHUNK_BYTES = 1 << 14
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(layers)))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = KrADagrad(model.parameters(), block_size=16)
    counts: Counter[str] = Counter()
    sizes: list[int] = []
    for step in range(2):
        model.zero_grad()
        model(torch.randn(8, 32)).square().mean().backward()
        if step == 1:  # the first one builds the shard
            ranks.count_collectives(counts, sizes)
        optimizer.step()
    return counts, sizes, len(optimizer._engine._shards[0].chunks)


@pytest.mark.parametrize("layers", slow_after(1, [12, 4]))
def test_collectives_grow_with_bytes_and_buffers_are_bounded(layers: int, tmp_path: Path) -> None:
    """A step has two small ones, and two for each chunk; none is larger than a chunk and its alignment."""
    most = 1 << 14
    for counts, sizes, chunks in ranks.launch(2, counted_rank, tmp_path, layers):
        bytes_in = 2 * 4 * layers * (32 * 32 + 32) / 2
        assert bytes_in / most <= chunks <= 1.5 * bytes_in / most + 1
        assert counts == {"all_reduce": 2, "all_to_all_single": 2 * chunks}
        assert max(sizes) <= 1.1 * most


def traced_rank(rank: int, layers: int) -> Counter[str]:
    """Return the operations of a step after the first ones."""
    sharded_params.CHUNK_BYTES = 1 << 10
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(layers)))
    model[-1].bfloat16()
    optimizer = KrADagrad(model.parameters(), block_size=16, root_every=100, process_group=dist.group.WORLD)
    optimizer.param_groups[0]["step"] = SETTLED  # no roots on the steps that are counted
    with Operations() as operations:
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            operations.counts.clear()
            optimizer.step()
    return operations.counts


def test_a_step_creates_no_indices_and_few_norms(tmp_path: Path) -> None:
    """On a GPU, a tensor from a list makes the host wait, and a norm is a launch."""
    few, many = (ranks.launch(1, traced_rank, tmp_path, layers)[0] for layers in (3, 9))
    for counts in (few, many):
        assert counts["allreduce_"] == 2
        assert counts["lift_fresh"] == 0
        assert 1 <= counts["_foreach_norm"] + counts["linalg_vector_norm"] <= 2, "one a dtype"


def norms_rank(rank: int, values: list[float]) -> list[float]:
    params = [nn.Parameter(torch.zeros(4, 4)) for _ in values]
    optimizer = KrADagrad(params, process_group=dist.group.WORLD)
    for p, value in zip(params, values, strict=True):
        p.grad = torch.full_like(p, value)
    optimizer.step()
    norms: list[float] = optimizer._engine._shards[0]._local_norms([p.grad for p in params]).tolist()
    return norms


def test_norms_of_tiny_and_huge_gradients_are_exact(tmp_path: Path) -> None:
    values = [1e-30, 1e30, 3e-38, 3e38, 0.0]
    single = [float(torch.tensor(value)) for value in values]
    (norms,) = ranks.launch(1, norms_rank, tmp_path, values)
    assert norms == pytest.approx([4 * value for value in single], rel=1e-14)


SIZES = [(torch.float32, 1e-30), (torch.float32, 1e30), (torch.float64, 1e-150), (torch.float64, 1e150)]


def scaled_rank(rank: int) -> dict[str, list[list[Tensor]]]:
    """Return the parameters after three steps with gradients times constants, by dtype."""
    results: dict[str, list[list[Tensor]]] = {}
    for dtype, constant in [*SIZES, (torch.float32, 1.0), (torch.float64, 1.0)]:
        model = small_model().to(dtype)
        optimizer = KrADagrad(model.parameters(), block_size=16, process_group=dist.group.WORLD)
        for number in range(3):
            generator = torch.Generator().manual_seed(number)
            for p in model.parameters():
                p.grad = (
                    torch.randn(p.shape, generator=generator, dtype=torch.float64).mul(constant).to(dtype)
                )
            optimizer.step()
        results.setdefault(str(dtype), []).append([p.detach() for p in model.parameters()])
    return results


def test_gradients_times_a_constant_give_the_same_steps(tmp_path: Path) -> None:
    for results in ranks.launch(2, scaled_rank, tmp_path):
        for *scaled, plain in results.values():
            for parameters in scaled:
                for a, b in zip(parameters, plain, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def reshaped_rank(rank: int) -> str:
    """Change the shape of a DTensor whose first rank has the same number of rows before and after."""
    mesh = init_device_mesh("cpu", (2,))

    def rows(count: int) -> DTensor:
        return distribute_tensor(torch.ones(count, 4), mesh, [Shard(0)])

    p = nn.Parameter(rows(5))
    optimizer = KrADagrad([p], lr=0.1)
    p.grad = rows(5)
    optimizer.step()
    p.grad, p.data = None, rows(6)
    p.grad = rows(6)
    with pytest.raises(ValueError, match="shape") as caught:
        optimizer.step()
    return str(caught.value)


@slow
def test_a_changed_shape_is_refused_by_all_ranks(tmp_path: Path) -> None:
    """All ranks refuse it, even one whose shard has the same shape as before."""
    first, second = ranks.launch(2, reshaped_rank, tmp_path)
    assert first == second
    assert "parameter 0 of parameter group 0" in first


def flat_rank(rank: int) -> str:
    model = FullyShardedDataParallel(nn.Linear(6, 4), use_orig_params=True, device_id=torch.device("cpu"))
    with pytest.raises(TypeError) as refused:
        KrADagrad(model.parameters())
    return str(refused.value)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # that wrapper is deprecated
def test_flat_shards_are_refused(tmp_path: Path) -> None:
    for message in ranks.launch(2, flat_rank, tmp_path):
        assert message.startswith(
            "KrADagrad: parameter 0 of parameter group 0 must keep its shape, got a flat shard"
        )
        assert message.endswith("use torch.distributed.fsdp.fully_shard")


def by_name_rank(rank: int, mode: str, flatten: bool, folder: str) -> tuple[list[Tensor], list[Tensor]]:
    """Save and restore by parameters' names, as trainers do with torch's state dict functions."""

    def make() -> tuple[nn.Module, KrADagrad]:
        model = ranks.make_model()
        options = ranks.OPTIONS | ranks.shard(model, mode)
        return model, KrADagrad(model.parameters(), **options)

    def steps(model: nn.Module, optimizer: KrADagrad, numbers: range) -> None:
        for step in numbers:
            ranks.backward(model, step)
            optimizer.step()

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, optimizer = make()
    steps(model, optimizer, range(4))
    parts = get_state_dict(model, optimizer, options=options)
    checkpoint.save(dict(zip(("model", "optimizer"), parts, strict=True)), checkpoint_id=folder)
    steps(model, optimizer, range(4, 8))
    resumed, other = make()
    parts = get_state_dict(resumed, other, options=options)
    saved = dict(zip(("model", "optimizer"), parts, strict=True))
    checkpoint.load(saved, checkpoint_id=folder)
    set_state_dict(
        resumed,
        other,
        model_state_dict=saved["model"],
        optim_state_dict=saved["optimizer"],
        options=options,
    )
    steps(resumed, other, range(4, 8))
    return ranks.whole(model), ranks.whole(resumed)


@pytest.mark.parametrize(
    ("mode", "flatten"), slow_after(1, [("fsdp", True), ("fsdp", False), ("ddp", False)])
)
def test_torchs_state_dict_functions(mode: str, flatten: bool, tmp_path: Path) -> None:
    for unbroken, resumed in ranks.launch(2, by_name_rank, tmp_path, mode, flatten, str(tmp_path / "saved")):
        assert all(map(torch.equal, unbroken, resumed))
