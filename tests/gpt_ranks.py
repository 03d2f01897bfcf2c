"""Run train_gpt.py on the ranks of torchrun's agent, which are forked so that torch is imported only once.

Each line of stdin asks for runs, as JSON: ``{"world": ranks or null for one process, "runs": [...]}``. A run
has the command line as ``arguments`` and may have

- ``stop``: [rank, step], the rank that gets SIGTERM before that step;
- ``kill``: [rank, step, name, number], the rank that gets SIGKILL in the checkpoint after that step: in call
  `number` of torch.save, after a part has been written, or before call `number` of os.fsync.

Each line of stdout is the answer: the results of the runs, a list for each rank, or a text if a rank died.

All tensors are float64: over a few steps, rounding changes a run far less than a mistake would.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the ranks' first step would import it
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import train_gpt
from gpt.store import Store
from gpt.trainer import Trainer

INIT, SAVE, TRAIN_STEP, SAVE_CHECKPOINT = dist.init_process_group, torch.save, Trainer.train_step, Store.save


def launch(world: int | None, runs: list[dict[str, Any]]) -> list[list[dict[str, Any]]] | str:
    """Return the results of each run by rank, or the error if a rank died."""
    config = LaunchConfig(
        run_id="runs",
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world or 1,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        max_restarts=0,
    )
    try:
        if world is None:
            with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
                return [pool.submit(run_all, runs).result()]
        ended = elastic_launch(config, run_all)(runs)
    except (BrokenProcessPool, ChildFailedError) as error:
        return str(error)
    return [ended[rank] for rank in range(world)]


def run_all(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rank = 0
    if dist.is_torchelastic_launched():
        rank = int(os.environ["RANK"])
        separate_rendezvous()
    return [run(rank, **request) for request in runs]


def separate_rendezvous() -> None:
    """Give each run a separate prefix in the store: torch would find the last run's addresses otherwise."""
    store, rank, world = next(iter(dist.rendezvous("env://")))
    timeout = datetime.timedelta(seconds=60)
    runs = []

    def init_process_group(backend: str) -> None:
        run_store = dist.PrefixStore(f"run{len(runs)}", store)
        INIT(backend, store=run_store, rank=rank, world_size=world, timeout=timeout)
        runs.append(run_store)

    dist.init_process_group = init_process_group


def run(
    rank: int, arguments: list[str], stop: list[int] | None = None, kill: list[Any] | None = None
) -> dict[str, Any]:
    Trainer.train_step = TRAIN_STEP
    if stop is not None and stop[0] == rank:
        stop_before(stop[1])
    if kill is not None and kill[0] == rank:
        kill_in_checkpoint(*kill[1:])
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = train_gpt.main(arguments)
    return {"status": status, "out": output.getvalue(), "err": errors.getvalue()}


def stop_before(step: int) -> None:
    def train_step(trainer: Trainer) -> Any:
        if trainer.step + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        return TRAIN_STEP(trainer)

    Trainer.train_step = train_step


def kill_in_checkpoint(step: int, name: str, number: int) -> None:
    def save(store: Store, trainer: Trainer) -> None:
        if trainer.step == step:
            module, broken_off = {"save": (torch, write_half), "fsync": (os, lambda *_: None)}[name]
            setattr(module, name, kill_in(number, getattr(module, name), broken_off))
        SAVE_CHECKPOINT(store, trainer)

    Store.save = save


def kill_in(
    number: int, original: Callable[..., None], broken_off: Callable[..., None]
) -> Callable[..., None]:
    calls = []

    def call(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == number:
            broken_off(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments)

    return call


def write_half(state: Any, file: Any) -> None:
    whole = io.BytesIO()
    SAVE(state, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(launch(**json.loads(line))), flush=True)
