"""The compared optimizers: the project's, other matrix preconditioners, and cheap baselines."""

from __future__ import annotations

import functools
import importlib.util
from unittest import mock

import torch
from common import usable_backends
from contenders import BLOCK, ROOT_EVERY, Contender

from kradagrad_ext import KrADagrad, PublishedKrADagrad
from kradagrad_ext.schedule import SETTLED

RECIPES = {
    "default": {},
    "uncoupled": dict(coupling="none"),
    "products": dict(factor_update="products"),
}
"""Options by recipe. The default is coupled; on a CPU it updates factors by Cholesky."""

REFERENCE_RECIPES = ("default", "products")


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


def baselines() -> list[Contender]:
    adamw = functools.partial(torch.optim.AdamW, fused=True)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        muon = Contender("Muon", "torch", torch.optim.Muon)
    else:
        muon = Contender("Muon in float32", "torch", MuonInFloat32)
    return [Contender("AdamW fused", "torch", adamw), muon]


def matrix_rivals(whole: bool) -> list[Contender]:
    """Return the matrix-preconditioned optimizers of other packages that are installed.

    All refresh every 10 steps. ScalableShampoo and heavyball's SOAP and KL-SOAP use blocks of 256, like
    KrADagrad; KL-SOAP couples factors, like KrADagrad's default. pytorch_optimizer's SOAP has no blocks: a
    dimension limit of 256 would leave no parameter preconditioned, so it takes whole dimensions, its default.

    Args:
        whole: True to add heavyball's SOAP on whole dimensions (minutes of compilation).
    """
    rivals = []
    if importlib.util.find_spec("pytorch_optimizer"):
        from pytorch_optimizer import SOAP, ScalableShampoo

        shampoo = functools.partial(
            ScalableShampoo,
            block_size=BLOCK,
            preconditioning_compute_steps=ROOT_EVERY,
            start_preconditioning_step=1,
        )
        soap = functools.partial(SOAP, precondition_frequency=ROOT_EVERY)
        rivals.append(Contender("ScalableShampoo", "pytorch_optimizer", shampoo))
        rivals.append(Contender("SOAP whole dims", "pytorch_optimizer", soap))
    if importlib.util.find_spec("heavyball"):
        rivals.append(of_heavyball("SOAP", "SOAP blocks", max_precond_dim=BLOCK, split=True))
        rivals.append(of_heavyball("KLSOAP", "KL-SOAP blocks", max_precond_dim=BLOCK, split=True))
        if whole:
            rivals.append(of_heavyball("SOAP", "SOAP whole dims", max_precond_dim=1 << 20))
    return rivals


def of_heavyball(optimizer: str, name: str, **options: object) -> Contender:
    """Return an optimizer of heavyball, compiled as the package intends, but without minutes of tuning."""
    import heavyball

    heavyball.utils.compile_mode = "default"
    factory = functools.partial(getattr(heavyball, optimizer), precondition_frequency=ROOT_EVERY, **options)
    return Contender(name, "heavyball", factory, extra_warmup=2 * ROOT_EVERY)
