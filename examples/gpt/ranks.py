"""The ranks of a run: one process, or those of torchrun, and the device of each, a GPU where there is one."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from .errors import UsageError
from .model import GPT

DEVICES = re.compile(r"(auto|cpu|cuda)(?:(?<=cuda):(\d+))?")
STEPS_IN_FLIGHT = 10
Moment = float | torch.cuda.Event

MODES = ("ddp", "fsdp")
"""Of --parallel: parameters and gradients on every rank, or in shards."""


def leave(status: int) -> NoReturn:
    """End the process; on ranks that torchrun started without the interpreter's own end.

    Under FSDP gloo's threads outlive the process group. One that waits for the interpreter's lock when the
    interpreter ends aborts the process, which torchrun takes for a failure.
    """
    if not dist.is_torchelastic_launched():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def seconds(start: Moment, end: Moment) -> float:
    """Between two moments of one rank; waits for the second."""
    if isinstance(start, float) or isinstance(end, float):
        return float(end) - float(start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _why_no_gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA"
    return "torch finds no usable GPU"


class Ranks:
    """All ranks of a run, seen from one of them; as a context, their process group.

    Attributes:
        launched: whether torchrun started them; else there is one, and nothing is sent.
        rank, world: which one this is, of how many.
        device: of parameters and batches, once `choose_device` was called.
    """

    def __init__(self) -> None:
        self.launched = dist.is_torchelastic_launched()
        self.rank, self.world = 0, 1
        self.device = torch.device("cpu")

    def __enter__(self) -> Ranks:
        if self.launched:
            # The host's own numbers go through gloo even where NCCL carries the gradients.
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
            self.rank, self.world = dist.get_rank(), dist.get_world_size()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # After an error of its own, a rank waits for no other: its end is what ends them.
        if self.launched and (kind is None or issubclass(kind, SystemExit)):
            # All end alike here, each with its status; once one has failed, torchrun ends those still there.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.largest(0)
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints and writes for all."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        return self.world // int(os.environ["LOCAL_WORLD_SIZE"]) if self.launched else 1

    def choose_device(self, wanted: str | None) -> None:
        """Take the device of --device: the CPU, a GPU, or by default a GPU where there is one.

        Raises UsageError where there is no such device, or there are too few for the ranks of this machine.
        """
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        match = DEVICES.fullmatch(wanted or "auto")
        if match is None:
            raise UsageError(f"--device must be auto, cpu, cuda or cuda:N, got {wanted}")
        kind, index = match[1], match[2]
        if kind == "cpu" or (kind == "auto" and not gpus):
            return
        if not gpus:
            raise UsageError(f"--device {wanted}: {_why_no_gpu()}")
        if index is not None and self.launched:
            raise UsageError(f"--device must be auto, cpu or cuda under torchrun, a GPU a rank, got {wanted}")
        local = int(os.environ["LOCAL_WORLD_SIZE"]) if self.launched else 1
        if local > gpus:
            raise UsageError(f"torchrun: --nproc-per-node must be at most {gpus}, a GPU a rank, got {local}")
        number = int(os.environ["LOCAL_RANK"]) if self.launched else int(index or 0)
        if number >= gpus:
            raise UsageError(f"--device must be below cuda:{gpus}, the number of GPUs here, got {wanted}")
        self.device = torch.device("cuda", number)
        torch.cuda.set_device(self.device)

    @property
    def steps_in_flight(self) -> int:
        """Steps after which the host reads losses and times: on a GPU that waits for all of them."""
        return STEPS_IN_FLIGHT if self.device.type == "cuda" else 1

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is done within fails on all ranks or on none: each raises a UsageError that any raised.

        Nothing within may wait for other ranks.
        """
        message: str | None = None
        try:
            yield
        except UsageError as error:
            message = str(error)
        messages: list[Any] = [message] * self.world
        if self.launched:
            dist.all_gather_object(messages, message)
        for found in messages:
            if found is not None:
                raise UsageError(found)

    def sum(self, value: float) -> float:
        return self._reduce(value, torch.float64, dist.ReduceOp.SUM) if self.launched else value

    def largest(self, value: int) -> int:
        return int(self._reduce(value, torch.int64, dist.ReduceOp.MAX)) if self.launched else value

    def share(self, rows: Tensor) -> Tensor:
        """This rank's rows of those of all, on its device, or on their way there."""
        own = rows[self.rank :: self.world]
        return own.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else own

    def moment(self) -> Moment:
        """Now, on a GPU as a mark in its queue: the host does not wait."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def shard(self, model: GPT) -> None:
        """FSDP2, a layer at a time: parameters become DTensors."""
        mesh = init_device_mesh(self.device.type, (self.world,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def _reduce(self, value: float, dtype: torch.dtype, operation: Any) -> float:  # noqa: ANN401
        on_host = torch.tensor(value, dtype=dtype)
        dist.all_reduce(on_host, op=operation)
        return on_host.item()
