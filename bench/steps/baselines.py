"""The compared optimizers and their race: the same gradients, one step each in turn, in one process.

The project's optimizer races against the published formulas, matrix-preconditioned baselines of other
packages, and torch's AdamW and Muon.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor
from tqdm import tqdm

from bench.common import Row, percentiles, usable_backends
from bench.workload import LAYER_ELEMENTS, gradients, parameters
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


def kradagrad(recipe: str, backend: str, profiled: bool = False) -> Contender:
    options = dict(block_size=BLOCK, root_every=ROOT_EVERY, backend=backend, **RECIPES[recipe])
    name = f"KrADagrad {recipe}" + (" profiled" if profiled else "")

    def factory(params: list[torch.nn.Parameter]) -> KrADagrad:
        optimizer = KrADagrad(params, **options)
        optimizer.param_groups[0]["step"] = SETTLED  # a multiple of ROOT_EVERY, as the race counts steps
        return optimizer

    return Contender(name, backend, factory, profiled=profiled)


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


def matrix_baselines(whole: bool) -> list[Contender]:
    """Return the matrix-preconditioned optimizers of other packages that are installed.

    All refresh every 10 steps. ScalableShampoo and heavyball's SOAP and KL-SOAP use blocks of 256, like
    KrADagrad; KL-SOAP couples factors, like KrADagrad's default. pytorch_optimizer's SOAP has no blocks: a
    dimension limit of 256 would leave no parameter preconditioned, so it takes whole dimensions, its default.

    Args:
        whole: True to add heavyball's SOAP on whole dimensions (minutes of compilation).
    """
    baselines = []
    if importlib.util.find_spec("pytorch_optimizer"):
        from pytorch_optimizer import SOAP, ScalableShampoo

        shampoo = functools.partial(
            ScalableShampoo,
            block_size=BLOCK,
            preconditioning_compute_steps=ROOT_EVERY,
            start_preconditioning_step=1,
        )
        soap = functools.partial(SOAP, precondition_frequency=ROOT_EVERY)
        baselines.append(Contender("ScalableShampoo", "pytorch_optimizer", shampoo))
        baselines.append(Contender("SOAP whole dims", "pytorch_optimizer", soap))
    if importlib.util.find_spec("heavyball"):
        baselines.append(of_heavyball("SOAP", "SOAP blocks", max_precond_dim=BLOCK, split=True))
        baselines.append(of_heavyball("KLSOAP", "KL-SOAP blocks", max_precond_dim=BLOCK, split=True))
        if whole:
            baselines.append(of_heavyball("SOAP", "SOAP whole dims", max_precond_dim=1 << 20))
    return baselines


def of_heavyball(optimizer: str, name: str, **options: object) -> Contender:
    """Return an optimizer of heavyball, compiled as the package intends, but without minutes of tuning."""
    import heavyball

    heavyball.utils.compile_mode = "default"
    factory = functools.partial(getattr(heavyball, optimizer), precondition_frequency=ROOT_EVERY, **options)
    return Contender(name, "heavyball", factory, extra_warmup=2 * ROOT_EVERY)
