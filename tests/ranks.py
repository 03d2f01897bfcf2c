"""Real processes for tests of what several ranks do together (gloo, on the CPU)."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from kradagrad_ext.distributed import collectives

OPTIONS: dict[str, Any] = {"lr": 3e-3, "block_size": 16, "root_every": 3, "max_factor_dim": 64}
"""Blocks that cross the borders of shards, a dim without factors, several refreshes of the roots."""

PRELOADED = [
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
]
"""Of torch alone: that process begins in the tree, whose package need not be the one that is tested."""


def launch(world: int, work: Callable[..., Any], folder: Path, *arguments: Any, deaths: int = 0) -> list[Any]:
    """What ``work(rank, *arguments)`` returns on every rank; None for one of `deaths` ranks that died."""
    # Ranks are forked from a process that has imported torch, which takes longer than most of their work.
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    given = (world, work, str(folder), arguments)
    ranks = [context.Process(target=_run, args=(rank, *given)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    alive = [process for process in ranks if process.is_alive()]
    for process in alive:
        process.kill()
    assert not alive, f"{len(alive)} of {world} ranks did not end"
    results = []
    for rank, process in enumerate(ranks):
        path = folder / f"{rank}.pt"
        assert process.exitcode == 0 or deaths > 0, f"rank {rank} ended with {process.exitcode}"
        results.append(torch.load(path, weights_only=False) if path.exists() else None)
    assert sum(result is None for result in results) == deaths
    return results


def _run(rank: int, world: int, work: Callable[..., Any], folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=20)
    method = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=world, timeout=timeout)
    torch.save(work(rank, *arguments), f"{folder}/{rank}.pt")
    with contextlib.suppress(RuntimeError):  # of a rank that died on purpose
        dist.barrier()
    os._exit(0)  # gloo's threads may wait for one that died


def make_model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(37, 72), nn.Tanh(), nn.Linear(72, 50), nn.Tanh(), nn.Linear(50, 5, bias=False)]
    return nn.Sequential(*layers).to(dtype)


def shard(model: nn.Sequential, mode: str) -> dict[str, Any]:
    """Shard a model over all ranks; the optimizer's option that belongs to it."""
    world = dist.get_world_size()
    if mode == "ddp":
        return {"process_group": dist.group.WORLD}
    if mode == "tp":
        mesh = init_device_mesh("cpu", (world,))
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        return {}
    shape = (world,) if mode == "fsdp" else (world // 2, 2)
    names = ("shard",) if mode == "fsdp" else ("replicate", "shard")
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return {}


def backward(model: nn.Sequential, step: int) -> None:
    """The gradient of one batch, the same on every rank."""
    generator = torch.Generator().manual_seed(step)
    dtype = next(model.parameters()).dtype
    x, y = (torch.randn(24, size, generator=generator).to(dtype) for size in (37, 5))
    model.zero_grad()
    (model(x) - y).square().mean().backward()


def local(p: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a parameter."""
    return (p.to_local() if isinstance(p, DTensor) else p).detach()


def count_collectives(counts: Counter[str], sizes: list[int]) -> None:
    """From now on, count this rank's collectives by name, and list the bytes of each one's largest buffer."""

    def counting(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            sizes.append(max(t.nbytes for t in arguments if isinstance(t, torch.Tensor)))
            return original(*arguments, **options)

        setattr(module, name, call)

    for name in ("all_reduce", "all_to_all_single", "all_gather_object"):
        counting(dist, name)
    counting(collectives, "all_gather")


def whole(model: nn.Module) -> list[torch.Tensor]:
    """All parameters, of all ranks."""
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]
