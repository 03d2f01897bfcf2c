"""Comparison of optimizers: the same gradients, one step each in turn, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from common import Row, percentiles
from torch import Tensor
from tqdm import tqdm
from workload import LAYER_ELEMENTS, gradients, parameters

from kradagrad_ext import roots
from kradagrad_ext.backends import resolve

Factory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]

ROOT_EVERY = 10
BLOCK = 256


@dataclass
class Contender:
    """One optimizer with a private copy of the parameters.

    Attributes:
        name: the optimizer's name.  implementation: its backend, or the package that it comes from.
        factory: makes the optimizer from parameters.  layers: GPT-2 layers whose matrices it trains.
        extra_warmup: additional steps before the race, a multiple of `ROOT_EVERY`; for optimizers that
            compile on first use.
        profiled: time the matrix work inside the step as well, for `outside`.
        seconds: time of each timed step.  outside: the same without matrix products and roots.
    """

    name: str
    implementation: str
    factory: Factory
    layers: int = 1
    extra_warmup: int = 0
    profiled: bool = False
    seconds: list[float] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.name} ({self.implementation})"

    def start(self) -> None:
        self.params = parameters(self.layers)
        self.optimizer = self.factory(self.params)

    def finish(self) -> None:
        """Drop the optimizer and its state. Raise RuntimeError if a parameter is not finite."""
        if not all(torch.isfinite(p).all() for p in self.params):
            raise RuntimeError(f"{self.label}: parameters are not finite after the timed steps")
        del self.params, self.optimizer

    def step(self, grads: Sequence[Tensor], record: bool) -> None:
        """Take one step on the first of the gradients and keep its time if `record`.

        Gradients are copied, because some optimizers write into them.
        """
        for param, grad in zip(self.params, grads[: len(self.params)], strict=True):
            param.grad = grad.clone()
        inside: list[float] = []
        with matrix_work_timed(self.implementation, inside) if self.profiled else ExitStack():
            start = time.perf_counter()
            self.optimizer.step()
            elapsed = time.perf_counter() - start
        if record:
            self.seconds.append(elapsed)
            self.outside.append(elapsed - sum(inside))

    @property
    def mean(self) -> float:
        return sum(self.seconds) / len(self.seconds)

    @property
    def blocks(self) -> int:
        return self.layers * LAYER_ELEMENTS // BLOCK**2

    def rows(self) -> list[Row]:
        """Return rows of a step's milliseconds and of their mean, with its spread over root periods."""
        windows = [self.seconds[i : i + ROOT_EVERY] for i in range(len(self.seconds) - ROOT_EVERY + 1)]
        fast, _, slow = percentiles([sum(window) / ROOT_EVERY for window in windows])
        where = (
            f"step {self.name}",
            self.implementation,
            "float32",
            f"gpt2-layer x{self.layers}",
            self.blocks,
        )
        return [
            Row(*where, "ms", *(1e3 * value for value in percentiles(self.seconds))),
            Row(*where, "mean_ms", 1e3 * fast, 1e3 * self.mean, 1e3 * slow),
        ]


@contextmanager
def matrix_work_timed(backend_name: str, inside: list[float]) -> Iterator[None]:
    """Append the seconds of every factor update, product and refresh of roots to `inside`."""
    backend = resolve(backend_name, torch.device("cpu"), torch.float32)
    # A refresh calls the backend's decompositions, which are not in this list, so nothing is counted twice.
    targets = [(backend, "kron_step_"), (backend, "update_factor_"), (roots, "refresh_")]
    with ExitStack() as patches:
        for owner, name in targets:
            patches.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name), inside)))
        yield


def timed(function: Callable[..., object], inside: list[float]) -> Callable[..., object]:
    def call(*arguments: object, **options: object) -> object:
        start = time.perf_counter()
        result = function(*arguments, **options)
        inside.append(time.perf_counter() - start)
        return result

    return call


def race(contenders: Sequence[Contender], warmup: int, steps: int) -> None:
    """Step all contenders in turn and record their times.

    In every step all contenders get the same gradients, and another contender is first.
    """
    layers = max(contender.layers for contender in contenders)
    for contender in contenders:
        contender.start()
        for step in range(contender.extra_warmup):
            contender.step(gradients(layers, step), record=False)
    for step in tqdm(range(1, warmup + steps + 1), "race", disable=None):
        grads = gradients(layers, step)
        shift = step % len(contenders)
        for contender in [*contenders[shift:], *contenders[:shift]]:
            contender.step(grads, record=step > warmup)
    for contender in contenders:
        contender.finish()
