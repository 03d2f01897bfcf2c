"""Real processes for tests of several ranks (gloo, on the CPU)."""

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
"""Options for blocks that cross shard borders, a dim without factors, and several refreshes of the roots."""

PRELOADED = [
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
]
"""Modules that the fork server imports. Only torch's: the server starts in the source tree, whose package may
differ from the installed one under test."""


def launch(world: int, work: Callable[..., Any], folder: Path, *arguments: Any, deaths: int = 0) -> list[Any]:
    """Return the result of ``work(rank, *arguments)`` of every rank; None for each of `deaths` dead ranks."""
    # Ranks are forked from a process that has imported torch: the import takes longer than most ranks' work.
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    common = (world, work, str(folder), arguments)
    ranks = [context.Process(target=_run, args=(rank, *common)) for rank in range(world)]
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
    with contextlib.suppress(RuntimeError):  # a rank may have died on purpose
        dist.barrier()
    os._exit(0)  # a normal exit would wait for gloo's threads, which may wait for a dead rank


def make_model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(37, 72), nn.Tanh(), nn.Linear(72, 50), nn.Tanh(), nn.Linear(50, 5, bias=False)]
    return nn.Sequential(*layers).to(dtype)


def shard(model: nn.Sequential, mode: str) -> dict[str, Any]:
    """Shard a model over all ranks and return the optimizer's options for it."""
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
    """Compute the gradients of one batch of data, the same on every rank."""
    generator = torch.Generator().manual_seed(step)
    dtype = next(model.parameters()).dtype
    x, y = (torch.randn(24, size, generator=generator).to(dtype) for size in (37, 5))
    model.zero_grad()
    (model(x) - y).square().mean().backward()


def local(p: torch.Tensor) -> torch.Tensor:
    """Return this rank's shard of a parameter."""
    return (p.to_local() if isinstance(p, DTensor) else p).detach()


def count_collectives(counts: Counter[str], sizes: list[int]) -> None:
    """Patch this rank's collectives: count them by name, and append each one's largest buffer to `sizes`."""

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
    """Return copies of all parameters, gathered from all ranks."""
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]
