"""Host time of a step: all work except the ops, with a backend whose ops do nothing.

    python -m bench.steps.host_time                              # 400 parameters; prints Markdown
    python -m bench.steps.host_time --parameters 100 --steps 50 --block-size 16

The parameters are those of a miniature transformer, so that torch's arithmetic on the CPU takes almost no
time. Every step has other gradient tensors than the step before. The local and the sharded engine are
compared with `AdamW(foreach=True)`, whose time on a CPU includes its arithmetic.

Three parts of a step are work of a device or a network, not of the host, which waits for them here: the
gradients' norms, copies into and out of buffers, and collectives. Their times are reported separately. Each
is the minimum over all steps, which excludes delays by other processes. The host's time comes from the same
number of additional steps in which these parts do nothing: on a CPU, the memory that they access would evict
the host's data from the caches, which a device does not do. With one rank, gloo runs the collectives. The
collectives of the first of two ranks are fake.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import Parameter
from torch.testing._internal.distributed.fake_pg import FakeStore

from bench.common import percentiles, seconds_of
from kradagrad_ext import KrADagrad, backends
from kradagrad_ext.distributed import collectives
from kradagrad_ext.distributed.partition import Box
from kradagrad_ext.norms import GradientNorms
from kradagrad_ext.schedule import SETTLED

LAYER = ((32, 32),) * 4 + ((64, 32),) * 2 + ((32, 64),) + ((32,),) * 3
"""Shapes of one layer: attention, gated feed-forward, norms and a bias."""


NOT_THE_HOSTS: dict[str, list[tuple[Any, str]]] = {
    "norms": [(GradientNorms, "of")],
    "copies": [(torch, "_foreach_copy_")],
    "collectives": [
        (dist, "all_reduce"),
        (dist, "all_to_all_single"),
        (collectives, "all_gather"),
        (collectives.PendingExchange, "wait"),
    ],
}
"""Functions that stand for work of a device or a network, by kind."""

Parameters = list[Parameter]
RankBoxes = tuple[Sequence[tuple[int, ...]], Sequence[Box]]
"""Shapes of all parameters, and a rank's box of each."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextmanager
def timed_apart() -> Iterator[dict[str, float]]:
    """Yield the seconds spent so far in each kind of `NOT_THE_HOSTS`."""
    spent = dict.fromkeys(NOT_THE_HOSTS, 0.0)

    def timed(kind: str, call: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        def instead(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
            start = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                spent[kind] += time.perf_counter() - start

        return instead

    with ExitStack() as patches:
        for kind, functions in NOT_THE_HOSTS.items():
            for owner, name in functions:
                instead = timed(kind, getattr(owner, name))
                patches.enter_context(mock.patch.object(owner, name, instead))
        yield spent


@contextmanager
def left_out() -> Iterator[None]:
    """Replace the functions of `NOT_THE_HOSTS`: norms are 1, and buffers keep their content."""
    ones = functools.cache(functools.partial(torch.ones, dtype=torch.float64))

    def norms(_: GradientNorms, grads: list[Tensor], host_looks: bool) -> Tensor:
        return ones(len(grads))

    with ExitStack() as patches:
        for owner, name in itertools.chain.from_iterable(NOT_THE_HOSTS.values()):
            instead = norms if owner is GradientNorms else nothing
            patches.enter_context(mock.patch.object(owner, name, instead))
        yield


def nothing(*_: object, **__: object) -> None:
    """Do nothing."""


@dataclass
class StepTimes:
    """Seconds of steps.

    Attributes:
        whole: seconds of each step.  apart: of these, the seconds of a device or network, by kind.
        host: seconds of additional steps with only the host's work.
    """

    whole: list[float] = field(default_factory=list)
    apart: list[dict[str, float]] = field(default_factory=list)
    host: list[float] = field(default_factory=list)

    def row(self, label: str) -> str:
        """Return a table row in ms: percentiles and minimum of whole steps, minima of their parts."""
        shares = [min(apart[kind] for apart in self.apart) for kind in NOT_THE_HOSTS]
        values = [*percentiles(self.whole), min(self.whole), *shares, min(self.host)]
        return f"| {label} | " + " | ".join(f"{1e3 * value:.2f}" for value in values) + " |"


@dataclass(frozen=True)
class TimedOptimizer:
    """An optimizer and its parameters.

    Attributes:
        root_every: steps between refreshes of roots; 0 for an optimizer without roots.
    """

    label: str
    params: Parameters
    optimizer: torch.optim.Optimizer
    root_every: int = 0

    def seconds(self, steps: int) -> tuple[StepTimes, StepTimes]:
        """Return the times of steps without roots and of steps with roots."""
        kinds = StepTimes(), StepTimes()
        for times in self._of_kind(kinds, steps):
            with timed_apart() as apart:
                times.whole.append(seconds_of(self.optimizer.step))
            times.apart.append(apart)
        with left_out():
            for times in self._of_kind(kinds, steps):
                times.host.append(seconds_of(self.optimizer.step))
        return kinds

    def _of_kind(self, kinds: tuple[StepTimes, StepTimes], steps: int) -> Iterator[StepTimes]:
        """Set the gradients of each step, then yield the times of its kind."""
        gradients = [list(map(torch.ones_like, self.params)) for _ in range(2)]
        for number in range(1, steps + 1):
            for p, grad in zip(self.params, gradients[number % 2], strict=True):
                p.grad = grad
            yield kinds[bool(self.root_every) and number % self.root_every == 0]


def parameters(count: int) -> Parameters:
    return [Parameter(torch.zeros(shape)) for shape in itertools.islice(itertools.cycle(LAYER), count)]


def shards(count: int) -> Parameters:
    """Return the same parameters as shards, with the first half of the rows on this rank."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = [p.detach()[: len(p) // mesh.size()] for p in parameters(count)]
    return [Parameter(DTensor.from_local(local, mesh, [Shard(0)])) for local in rows]


def optimizers(count: int, block_size: int) -> Iterator[TimedOptimizer]:
    """Yield AdamW, and KrADagrad with either engine, after their first steps."""

    def ours(params: Parameters) -> KrADagrad:
        group = dist.group.WORLD if dist.is_initialized() else None
        of_a_gpu = {"factor_update": "products", "root_method": "polar"}
        return KrADagrad(params, block_size=block_size, backend="idle", process_group=group, **of_a_gpu)

    adamw = functools.partial(torch.optim.AdamW, foreach=True)
    yield _started("AdamW(foreach=True)", parameters(count), adamw)
    yield _started("KrADagrad, local engine", parameters(count), ours)
    with one_rank():
        yield _started("KrADagrad, sharded engine, 1 rank", parameters(count), ours)
    with first_of_two_ranks():
        yield _started("KrADagrad, sharded engine, of 2 ranks, replicas", parameters(count), ours)
        yield _started("KrADagrad, sharded engine, of 2 ranks, shards", shards(count), ours)


def _started(
    label: str, params: Parameters, make: Callable[[Parameters], torch.optim.Optimizer]
) -> TimedOptimizer:
    optimizer = make(params)
    timed = TimedOptimizer(label, params, optimizer, optimizer.defaults.get("root_every", 0))
    timed.seconds(2)
    if timed.root_every:  # later in training, roots are refreshed less often than at first
        optimizer.param_groups[0]["step"] = SETTLED
    return timed


@contextmanager
def idle_backend() -> Iterator[None]:
    """Register the backend ``idle``."""
    with mock.patch.dict(backends._REGISTRY, idle="bench.steps.idle_backend"):
        yield


@contextmanager
def one_rank() -> Iterator[None]:
    """Start a process group of this process alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"tcp://localhost:{free.getsockname()[1]}"
    dist.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def first_of_two_ranks() -> Iterator[None]:
    """Start a group whose other rank has equal parameters or the other half of the rows and sends nothing."""

    def of_the_other(box: Box, shape: tuple[int, ...]) -> Box:
        return box if box.shape == shape else replace(box, offset=(box.shape[0], *box.offset[1:]))

    def all_gather_object(gathered: list[RankBoxes], sent: RankBoxes, group: object = None) -> None:
        shapes, boxes = sent
        gathered[:] = [sent, (shapes, tuple(map(of_the_other, boxes, shapes)))]

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with mock.patch.object(dist, "all_gather_object", all_gather_object):
            yield
    finally:
        dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=400)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--block-size", type=int, default=128)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    name = f"{options.parameters} parameters, ms a step"
    columns = [name, "p20", "p50", "p80", "least", *NOT_THE_HOSTS, "the host"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    with idle_backend():
        for timed in optimizers(options.parameters, options.block_size):
            plain, rooted = timed.seconds(options.steps)
            print(plain.row(timed.label))
            if rooted.whole:
                print(rooted.row(f"{timed.label}, steps with roots"))


if __name__ == "__main__":
    main()
