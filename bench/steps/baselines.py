"""The compared optimizers and their race: the same gradients, one step each in turn, in one process.

The project's optimizer races against the published formulas, matrix-preconditioned baselines of other
packages, and torch's AdamW and Muon.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor
from tqdm import tqdm

from bench.common import Row, percentiles, usable_backends
from bench.workload import Workload, gpt2
from kradagrad_ext import KrADagrad, PublishedKrADagrad, roots
from kradagrad_ext.backends import resolve
from kradagrad_ext.schedule import SETTLED

Factory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]

ROOT_EVERY = 10
BLOCK = 256

RECIPES = {
    "default": {},
    "uncoupled": dict(coupling="none"),
    "products": dict(factor_update="products"),
}
"""Options by recipe. The default is coupled; on a CPU it updates factors by Cholesky."""

REFERENCE_RECIPES = ("default", "products")


@dataclass
class Contender:
    """One optimizer with a private copy of the parameters.

    Attributes:
        name: the optimizer's name.  implementation: its backend, or the package that it comes from.
        factory: makes the optimizer from parameters.  workload: the parameters that it trains.
        block: side of its blocks.
        extra_warmup: additional steps before the race, a multiple of `ROOT_EVERY`; for optimizers that
            compile on first use.
        profiled: time the matrix work inside the step as well, for `outside`.
        seconds: time of each timed step.  outside: the same without matrix products and roots.
    """

    name: str
    implementation: str
    factory: Factory
    workload: Workload = field(default_factory=gpt2)
    block: int = BLOCK
    extra_warmup: int = 0
    profiled: bool = False
    seconds: list[float] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.name} ({self.implementation})"

    def start(self) -> None:
        self.params = self.workload.parameters()
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
        return self.workload.elements // self.block**2

    def rows(self) -> list[Row]:
        """Return rows of a step's milliseconds and of their mean, with its spread over root periods."""
        length = min(ROOT_EVERY, len(self.seconds))
        windows = [self.seconds[i : i + length] for i in range(len(self.seconds) - length + 1)]
        fast, _, slow = percentiles([sum(window) / length for window in windows])
        where = (
            f"step {self.name}",
            self.implementation,
            "float32",
            self.workload.name,
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
    targets = [(backend, "kron_step_"), (backend, "update_factor_"), (roots, "refresh_due_")]
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


def race(contenders: Sequence[Contender], warmup: int, steps: int, limit: float = math.inf) -> None:
    """Step all contenders in turn and record their times.

    In every step all contenders get the same gradients, and another contender is first.

    Args:
        limit: seconds, after which a contender with a recorded step takes no further one.
    """
    workload = max((contender.workload for contender in contenders), key=lambda one: one.elements)
    spent = dict.fromkeys(range(len(contenders)), 0.0)
    for contender in contenders:
        contender.start()
        for step in range(contender.extra_warmup):
            contender.step(workload.gradients(step), record=False)
    for step in tqdm(range(1, warmup + steps + 1), "race", leave=False, disable=None):
        grads = workload.gradients(step)
        for place in range(len(contenders)):
            number = (step + place) % len(contenders)
            contender = contenders[number]
            if spent[number] < limit or not contender.seconds:
                start = time.perf_counter()
                contender.step(grads, record=step > warmup or spent[number] >= limit)
                spent[number] += time.perf_counter() - start
    for contender in contenders:
        contender.finish()


def kradagrad(recipe: str, backend: str, profiled: bool = False, block: int = BLOCK) -> Contender:
    options = dict(block_size=block, root_every=ROOT_EVERY, backend=backend, **RECIPES[recipe])
    name = f"KrADagrad {recipe}" + (" profiled" if profiled else "")

    def factory(params: list[torch.nn.Parameter]) -> KrADagrad:
        optimizer = KrADagrad(params, **options)
        optimizer.param_groups[0]["step"] = SETTLED  # a multiple of ROOT_EVERY, as the race counts steps
        return optimizer

    return Contender(name, backend, factory, block=block, profiled=profiled)


def unpreconditioned(backend: str) -> Contender:
    """Return a contender whose step has no blocks: guard, moments, graft, write and Python."""

    def factory(params: list[torch.nn.Parameter]) -> KrADagrad:
        return KrADagrad([{"params": params, "precondition": False}], backend=backend)

    return Contender("KrADagrad precondition=False", backend, factory)


def ours() -> list[Contender]:
    contenders = []
    for backend in usable_backends():
        recipes = REFERENCE_RECIPES if backend == "reference" else RECIPES
        contenders += [kradagrad(recipe, backend) for recipe in recipes]
    fastest = usable_backends()[0]
    return [*contenders, kradagrad("default", fastest, profiled=True), unpreconditioned(fastest)]


def published() -> Contender:
    options = dict(variant="star", lr=1e-3, block_size=BLOCK, root_every=ROOT_EVERY)
    return Contender("published formulas", "plain loop", functools.partial(PublishedKrADagrad, **options))


class MuonInFloat32(torch.optim.Muon):
    """Muon with float32 products: bfloat16 is much slower on a processor without it."""

    def step(self) -> None:
        with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
            super().step()


def torch_baselines() -> list[Contender]:
    adamw = functools.partial(torch.optim.AdamW, fused=True)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        muon = Contender("Muon", "torch", torch.optim.Muon)
    else:
        muon = Contender("Muon in float32", "torch", MuonInFloat32)
    return [Contender("AdamW fused", "torch", adamw), muon]


def matrix_baselines(whole: bool, block: int = BLOCK, compiled: bool = True) -> list[Contender]:
    """Return the matrix-preconditioned optimizers of other packages that are installed.

    All refresh every 10 steps. ScalableShampoo and those of heavyball use blocks as large as KrADagrad's;
    KL-SOAP and KL-Shampoo couple factors, like KrADagrad's default. pytorch_optimizer's SOAP has no blocks: a
    dimension limit would leave larger parameters without preconditioners, so it takes whole dimensions, its
    default.

    Args:
        whole: True to add heavyball's SOAP on whole dimensions (minutes of compilation).
        compiled: False for heavyball's without compilation.
    """
    baselines = []
    if importlib.util.find_spec("pytorch_optimizer"):
        from pytorch_optimizer import SOAP, ScalableShampoo

        shampoo = functools.partial(
            ScalableShampoo,
            block_size=block,
            preconditioning_compute_steps=ROOT_EVERY,
            start_preconditioning_step=1,
        )
        soap = functools.partial(SOAP, precondition_frequency=ROOT_EVERY)
        baselines.append(Contender("ScalableShampoo", "pytorch_optimizer", shampoo))
        baselines.append(Contender("SOAP whole dims", "pytorch_optimizer", soap))
    if importlib.util.find_spec("heavyball"):
        options = dict(max_precond_dim=block, split=True)
        for optimizer, name in (("SOAP", "SOAP"), ("KLSOAP", "KL-SOAP"), ("KLShampoo", "KL-Shampoo")):
            baselines.append(of_heavyball(optimizer, f"{name} blocks", compiled, **options))
        if whole:
            baselines.append(of_heavyball("SOAP", "SOAP whole dims", compiled, max_precond_dim=1 << 20))
    return baselines


def of_heavyball(optimizer: str, name: str, compiled: bool, **options: object) -> Contender:
    """Return an optimizer of heavyball, compiled as the package intends, but without minutes of tuning."""
    import heavyball

    def factory(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        heavyball.utils.compile_mode = "default" if compiled else None
        return getattr(heavyball, optimizer)(params, precondition_frequency=ROOT_EVERY, **options)

    return Contender(name, "heavyball", factory, extra_warmup=2 * ROOT_EVERY if compiled else 0)
