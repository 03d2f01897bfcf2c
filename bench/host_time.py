"""Host time of a step: everything but the ops, which a backend that does nothing stands in for.

    python bench/host_time.py                              # 400 parameters; prints Markdown
    python bench/host_time.py --parameters 100 --steps 50 --block-size 16

The parameters are those of a transformer in miniature, so that torch's own arithmetic on the CPU takes next
to no time. Gradients are new tensors on every step. The local engine and the sharded one, of one rank, are
measured beside `AdamW(foreach=True)`, whose time on a CPU includes its arithmetic.
"""

from __future__ import annotations

import argparse
import itertools
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from common import percentiles, seconds_of
from torch.nn import Parameter

from kradagrad_ext import KrADagrad, backends
from kradagrad_ext.clock import SETTLED

LAYER = ((32, 32),) * 4 + ((64, 32),) * 2 + ((32, 64),) + ((32,),) * 3
"""Shapes of one layer: attention, gated feed-forward, norms and a bias."""


@dataclass(frozen=True)
class Contender:
    """An optimizer and its parameters.

    Attributes:
        root_every: steps between those that make roots; 0 for an optimizer without any.
    """

    label: str
    params: Sequence[Parameter]
    optimizer: torch.optim.Optimizer
    root_every: int = 0

    def seconds(self, steps: int) -> tuple[list[float], list[float]]:
        """Of every step, those without roots and those with roots."""
        plain: list[float] = []
        rooted: list[float] = []
        for number in range(1, steps + 1):
            for p in self.params:
                p.grad = torch.ones_like(p)
            elapsed = seconds_of(self.optimizer.step)
            (rooted if self.root_every and number % self.root_every == 0 else plain).append(elapsed)
        return plain, rooted


def parameters(count: int) -> list[Parameter]:
    return [Parameter(torch.zeros(shape)) for shape in itertools.islice(itertools.cycle(LAYER), count)]


def contenders(count: int, block_size: int) -> Iterator[Contender]:
    """AdamW, and KrADagrad with either engine; each has taken its first steps."""
    yield _started("AdamW(foreach=True)", parameters(count), lambda own: torch.optim.AdamW(own, foreach=True))
    groups = {"local engine": None, "sharded engine, 1 rank": dist.group.WORLD}
    for label, group in groups.items():

        def make(own: list[Parameter], group: dist.ProcessGroup | None = group) -> KrADagrad:
            return KrADagrad(own, block_size=block_size, backend="idle", process_group=group)

        yield _started(f"KrADagrad, {label}", parameters(count), make)


def _started(
    label: str, params: list[Parameter], make: Callable[[list[Parameter]], torch.optim.Optimizer]
) -> Contender:
    optimizer = make(params)
    contender = Contender(label, params, optimizer, optimizer.defaults.get("root_every", 0))
    contender.seconds(2)
    if contender.root_every:  # as later in training: at first, roots are made more often
        optimizer.param_groups[0]["step"] = SETTLED
    return contender


@contextmanager
def idle_backend_and_one_rank() -> Iterator[None]:
    """The backend ``idle`` by its name, and a process group of this process alone."""
    backends._REGISTRY["idle"] = "idle_backend"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"tcp://localhost:{free.getsockname()[1]}"
    dist.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
        del backends._REGISTRY["idle"]


def row(label: str, seconds: Sequence[float]) -> str:
    return f"| {label} | " + " | ".join(f"{1e3 * value:.2f}" for value in percentiles(seconds)) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=400)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--block-size", type=int, default=128)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with idle_backend_and_one_rank():
        print(f"| {options.parameters} parameters, ms a step | p20 | p50 | p80 |\n|---|---|---|---|")
        for contender in contenders(options.parameters, options.block_size):
            plain, rooted = contender.seconds(options.steps)
            print(row(contender.label, plain))
            if rooted:
                print(row(f"{contender.label}, steps with roots", rooted))


if __name__ == "__main__":
    main()
