"""Host time of a step: everything but the ops, which a backend that does nothing stands in for.

    python bench/host_time.py                              # 400 parameters; prints Markdown
    python bench/host_time.py --parameters 100 --steps 50 --block-size 16

The parameters are those of a transformer in miniature, so that torch's own arithmetic on the CPU takes next
to no time. Gradients are other tensors than on the step before. The local engine and the sharded one are
measured beside `AdamW(foreach=True)`, whose time on a CPU includes its arithmetic.

Three things in a step are not the host's own work but that of a device or a network, for which it waits here:
the gradients' norms, copies into buffers and out of them, and collectives. Their times are told apart, each
the least of all steps, to which a busy machine adds nothing. The host's own time is that of as many more
steps in which they do nothing either: the memory that they go through would take the host's out of the
processor's caches, as no device does. With one rank, gloo does collectives; those of the first of two ranks
are fake.
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
from common import percentiles, seconds_of
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import Parameter
from torch.testing._internal.distributed.fake_pg import FakeStore

from kradagrad_ext import KrADagrad, backends
from kradagrad_ext.clock import SETTLED
from kradagrad_ext.distributed import exchange
from kradagrad_ext.distributed.pieces import Box
from kradagrad_ext.norms import GradientNorms

LAYER = ((32, 32),) * 4 + ((64, 32),) * 2 + ((32, 64),) + ((32,),) * 3
"""Shapes of one layer: attention, gated feed-forward, norms and a bias."""


NOT_THE_HOSTS: dict[str, list[tuple[Any, str]]] = {
    "norms": [(GradientNorms, "of")],
    "copies": [(torch, "_foreach_copy_")],
    "collectives": [
        (dist, "all_reduce"),
        (dist, "all_to_all_single"),
        (exchange, "all_gather"),
        (exchange.Pending, "wait"),
    ],
}
"""Functions, by what they do."""

Made = list[Parameter]
Held = tuple[Sequence[tuple[int, ...]], Sequence[Box]]
"""Shapes of all parameters, and what a rank has of each."""

Given = ParamSpec("Given")
Result = TypeVar("Result")


@contextmanager
def timed_apart() -> Iterator[dict[str, float]]:
    """Seconds spent in each kind of `NOT_THE_HOSTS` so far."""
    spent = dict.fromkeys(NOT_THE_HOSTS, 0.0)

    def timed(kind: str, call: Callable[Given, Result]) -> Callable[Given, Result]:
        def instead(*arguments: Given.args, **options: Given.kwargs) -> Result:
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
    """Nothing of `NOT_THE_HOSTS` is done: norms are 1, and buffers hold what they held."""
    ones = functools.cache(functools.partial(torch.ones, dtype=torch.float64))

    def norms(_: GradientNorms, grads: list[Tensor], host_looks: bool) -> Tensor:
        return ones(len(grads))

    with ExitStack() as patches:
        for owner, name in itertools.chain.from_iterable(NOT_THE_HOSTS.values()):
            instead = norms if owner is GradientNorms else nothing
            patches.enter_context(mock.patch.object(owner, name, instead))
        yield


def nothing(*_: object, **__: object) -> None:
    """Nothing."""


@dataclass
class Times:
    """Seconds of steps.

    Attributes:
        whole: of each.  apart: of each how many were not the host's own, by kind.
        own: of more steps, in which nothing but the host's work was done.
    """

    whole: list[float] = field(default_factory=list)
    apart: list[dict[str, float]] = field(default_factory=list)
    own: list[float] = field(default_factory=list)

    def row(self, label: str) -> str:
        """Percentiles of the whole; the least of the whole, of its shares and of the host's own; in ms."""
        shares = [min(apart[kind] for apart in self.apart) for kind in NOT_THE_HOSTS]
        values = [*percentiles(self.whole), min(self.whole), *shares, min(self.own)]
        return f"| {label} | " + " | ".join(f"{1e3 * value:.2f}" for value in values) + " |"


@dataclass(frozen=True)
class Contender:
    """An optimizer and its parameters.

    Attributes:
        root_every: steps between those that make roots; 0 for an optimizer without any.
    """

    label: str
    params: Made
    optimizer: torch.optim.Optimizer
    root_every: int = 0

    def seconds(self, steps: int) -> tuple[Times, Times]:
        """Of every step, those without roots and those with roots."""
        found = Times(), Times()
        for times in self._of_kind(found, steps):
            with timed_apart() as apart:
                times.whole.append(seconds_of(self.optimizer.step))
            times.apart.append(apart)
        with left_out():
            for times in self._of_kind(found, steps):
                times.own.append(seconds_of(self.optimizer.step))
        return found

    def _of_kind(self, found: tuple[Times, Times], steps: int) -> Iterator[Times]:
        """Sets gradients for so many steps, each of which enters what is given."""
        gradients = [list(map(torch.ones_like, self.params)) for _ in range(2)]
        for number in range(1, steps + 1):
            for p, grad in zip(self.params, gradients[number % 2], strict=True):
                p.grad = grad
            yield found[bool(self.root_every) and number % self.root_every == 0]


def parameters(count: int) -> Made:
    return [Parameter(torch.zeros(shape)) for shape in itertools.islice(itertools.cycle(LAYER), count)]


def shards(count: int) -> Made:
    """The same, of which this rank holds the first half of the rows."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = [p.detach()[: len(p) // mesh.size()] for p in parameters(count)]
    return [Parameter(DTensor.from_local(own, mesh, [Shard(0)])) for own in rows]


def contenders(count: int, block_size: int) -> Iterator[Contender]:
    """AdamW, and KrADagrad with either engine; each has taken its first steps."""

    def ours(own: Made) -> KrADagrad:
        group = dist.group.WORLD if dist.is_initialized() else None
        of_a_gpu = {"factor_update": "products", "root_method": "polar"}
        return KrADagrad(own, block_size=block_size, backend="idle", process_group=group, **of_a_gpu)

    yield _started("AdamW(foreach=True)", parameters(count), lambda own: torch.optim.AdamW(own, foreach=True))
    yield _started("KrADagrad, local engine", parameters(count), ours)
    with one_rank():
        yield _started("KrADagrad, sharded engine, 1 rank", parameters(count), ours)
    with first_of_two_ranks():
        yield _started("KrADagrad, sharded engine, of 2 ranks, replicas", parameters(count), ours)
        yield _started("KrADagrad, sharded engine, of 2 ranks, shards", shards(count), ours)


def _started(label: str, params: Made, make: Callable[[Made], torch.optim.Optimizer]) -> Contender:
    optimizer = make(params)
    contender = Contender(label, params, optimizer, optimizer.defaults.get("root_every", 0))
    contender.seconds(2)
    if contender.root_every:  # as later in training: at first, roots are made more often
        optimizer.param_groups[0]["step"] = SETTLED
    return contender


@contextmanager
def idle_backend() -> Iterator[None]:
    """The backend ``idle`` by its name."""
    with mock.patch.dict(backends._REGISTRY, idle="idle_backend"):
        yield


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
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
    """A process group whose other rank has the same, or the other half of the rows, and sends nothing."""

    def of_the_other(box: Box, shape: tuple[int, ...]) -> Box:
        return box if box.shape == shape else replace(box, offset=(box.shape[0], *box.offset[1:]))

    def all_gather_object(found: list[Held], own: Held, group: object = None) -> None:
        shapes, boxes = own
        found[:] = [own, (shapes, tuple(map(of_the_other, boxes, shapes)))]

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
    columns = [name, "p20", "p50", "p80", "least", *NOT_THE_HOSTS, "the host's own"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    with idle_backend():
        for contender in contenders(options.parameters, options.block_size):
            plain, rooted = contender.seconds(options.steps)
            print(plain.row(contender.label))
            if rooted.whole:
                print(rooted.row(f"{contender.label}, steps with roots"))


if __name__ == "__main__":
    main()
