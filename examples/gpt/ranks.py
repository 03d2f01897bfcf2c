"""The ranks of a run, one process or those of torchrun, and the device of each, a GPU if there is one."""

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
"""Values of --parallel: parameters and gradients on every rank, or in shards."""


def leave(status: int) -> NoReturn:
    """End the process; on ranks that torchrun started, skip the finalization of the interpreter.

    Under FSDP, gloo's threads outlive the process group. If one of them waits for the interpreter's lock
    during finalization, it aborts the process, which torchrun treats as a failure.
    """
    if not dist.is_torchelastic_launched():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def seconds(start: Moment, end: Moment) -> float:
    """Return the seconds between two moments of one rank; wait for the second."""
    if isinstance(start, float) or isinstance(end, float):
        return float(end) - float(start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _why_no_gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA"
    return "torch finds no usable GPU"


class Ranks:
    """All ranks of a run, from the view of one of them; as a context, their process group.

    Attributes:
        launched: True if torchrun started the ranks; else there is one rank and no communication.
        rank, world: index of this rank, number of ranks.
        device: device of parameters and batches, set by `choose_device`.
    """

    def __init__(self) -> None:
        self.launched = dist.is_torchelastic_launched()
        self.rank, self.world = 0, 1
        self.device = torch.device("cpu")

    def __enter__(self) -> Ranks:
        if self.launched:
            # Numbers on the host go through gloo, also if gradients go through NCCL.
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
            self.rank, self.world = dist.get_rank(), dist.get_world_size()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # A rank with an error does not wait for the others: its end makes torchrun end them.
        if self.launched and (kind is None or issubclass(kind, SystemExit)):
            # All ranks end together here, each with its status: torchrun would end the rest after a failure.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.largest(0)
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """True for the rank that prints and writes for all."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        return self.world // int(os.environ["LOCAL_WORLD_SIZE"]) if self.launched else 1

    def choose_device(self, wanted: str | None) -> None:
        """Set the device of --device: the CPU, a GPU, or by default a GPU if there is one.

        Raise UsageError if the device does not exist, or if this machine has more ranks than GPUs.
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
        """Steps between reads of losses and times: on a GPU, a read waits for all steps."""
        return STEPS_IN_FLIGHT if self.device.type == "cuda" else 1

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Make the body fail on all ranks or on none: each rank raises a UsageError of any rank.

        The body must not wait for other ranks.
        """
        message: str | None = None
        try:
            yield
        except UsageError as error:
            message = str(error)
        messages: list[Any] = [message] * self.world
        if self.launched:
            dist.all_gather_object(messages, message)
        for text in messages:
            if text is not None:
                raise UsageError(text)

    def sum(self, value: float) -> float:
        return self._reduce(value, torch.float64, dist.ReduceOp.SUM) if self.launched else value

    def largest(self, value: int) -> int:
        return int(self._reduce(value, torch.int64, dist.ReduceOp.MAX)) if self.launched else value

    def share(self, rows: Tensor) -> Tensor:
        """Return this rank's share of the rows on its device; the copy to a GPU is asynchronous."""
        part = rows[self.rank :: self.world]
        return part.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else part

    def moment(self) -> Moment:
        """Return the current time; on a GPU, an event in its queue, without a wait of the host."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def shard(self, model: GPT) -> None:
        """Apply FSDP2 layer by layer: parameters become DTensors."""
        mesh = init_device_mesh(self.device.type, (self.world,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def _reduce(self, value: float, dtype: torch.dtype, operation: Any) -> float:  # noqa: ANN401
        on_host = torch.tensor(value, dtype=dtype)
        dist.all_reduce(on_host, op=operation)
        return on_host.item()
