"""The optimizers that are compared: ours, other matrix preconditioners, and cheap baselines."""

from __future__ import annotations

import functools
import importlib.util
from unittest import mock

import torch
from common import usable_backends
from contenders import BLOCK, ROOT_EVERY, Contender

from kradagrad_ext import KrADagrad, PublishedKrADagrad
from kradagrad_ext.clock import SETTLED

RECIPES = {
    "default": {},
    "uncoupled": dict(coupling="none"),
    "products": dict(factor_update="products"),
}
"""The default is coupled; on a CPU it updates factors by Cholesky."""

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
    """Everything of a step but the blocks: guard, moments, graft, write and Python."""

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
    """Muon whose products are not in bfloat16, which is far slower where the processor lacks it."""

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
    """Matrix-preconditioned optimizers of other packages, where these are installed.

    All refresh every 10 steps. ScalableShampoo, heavyball's SOAP, and its KL-SOAP, which couples factors
    as our default does, cut into blocks of 256 as ours does. pytorch_optimizer's SOAP cannot: a dimension
    limit of 256 would leave nothing preconditioned, so it takes whole dimensions, its default.

    Args:
        whole: heavyball's SOAP on whole dimensions as well (minutes of compilation).
    """
    found = []
    if importlib.util.find_spec("pytorch_optimizer"):
        from pytorch_optimizer import SOAP, ScalableShampoo

        shampoo = functools.partial(
            ScalableShampoo,
            block_size=BLOCK,
            preconditioning_compute_steps=ROOT_EVERY,
            start_preconditioning_step=1,
        )
        soap = functools.partial(SOAP, precondition_frequency=ROOT_EVERY)
        found.append(Contender("ScalableShampoo", "pytorch_optimizer", shampoo))
        found.append(Contender("SOAP whole dims", "pytorch_optimizer", soap))
    if importlib.util.find_spec("heavyball"):
        found.append(of_heavyball("SOAP", "SOAP blocks", max_precond_dim=BLOCK, split=True))
        found.append(of_heavyball("KLSOAP", "KL-SOAP blocks", max_precond_dim=BLOCK, split=True))
        if whole:
            found.append(of_heavyball("SOAP", "SOAP whole dims", max_precond_dim=1 << 20))
    return found


def of_heavyball(optimizer: str, name: str, **options: object) -> Contender:
    """Compiled, as the package means it to run, but without minutes of kernel search."""
    import heavyball

    heavyball.utils.compile_mode = "default"
    factory = functools.partial(getattr(heavyball, optimizer), precondition_frequency=ROOT_EVERY, **options)
    return Contender(name, "heavyball", factory, extra_warmup=2 * ROOT_EVERY)
