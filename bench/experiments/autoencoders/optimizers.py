"""The optimizers of the comparison: the paper's six, and ours with the paper's options and defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from bench.arena.parameters import ModelParameters
from bench.arena.protocol import beyond
from bench.arena.rivals import Rival
from bench.experiments.autoencoders.tasks import Autoencoder
from bench.experiments.shampoo import Shampoo
from kradagrad_ext import KrADagrad, PublishedKrADagrad, param_groups

MOMENTUM, WEIGHT_DECAY, ROOT_EVERY = 0.9, 5e-6, 20

PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "digits": {
        "sgd": (3e-3, 0.9),
        "adam": (3e-4, 1e-4),
        "shampoo": (1e-3, 1e-2),
        "star": (1e-3, 3e-4),
        "plain": (1e-2, 8e-4),
    },
    "curves": {
        "sgd": (1e-3, 0.9),
        "adam": (1e-3, 1e-3),
        "shampoo": (3e-3, 6e-4),
        "star": (3e-3, 3e-2),
        "plain": (1e-2, 5e-3),
    },
    "faces": {
        "sgd": (1e-1, 0.9),
        "adam": (3e-3, 1e-3),
        "shampoo": (3e-1, 4e-3),
        "star": (1e-1, 3e-4),
        "plain": (3e-1, 1e-4),
    },
}
"""Best rate and eps (SGD: momentum) of the authors' search on MNIST, CURVES and FACES, from their repository.

Rates are rounded to 1 or 3 times a power of ten, the others to one digit.
"""

OUR_RATE, FACTOR_DECAY, DAMPING = 1e-2, 0.8, 1e-3


@dataclass(frozen=True)
class PaperOptimizer(Rival):
    """An optimizer of the comparison.

    Attributes:
        dtype: of the model, the data and the optimizer.
    """

    dtype: torch.dtype = torch.float32


Factory = Callable[[ModelParameters, float, float], list[Optimizer]]


def sgd(parameters: ModelParameters, lr: float, momentum: float) -> list[Optimizer]:
    return [torch.optim.SGD(parameters.all, lr=lr, momentum=momentum, weight_decay=WEIGHT_DECAY)]


def adam(parameters: ModelParameters, lr: float, eps: float) -> list[Optimizer]:
    return [torch.optim.Adam(parameters.all, lr=lr, eps=eps, weight_decay=WEIGHT_DECAY)]


def shampoo(block_size: int) -> Factory:
    def make(parameters: ModelParameters, lr: float, eps: float) -> list[Optimizer]:
        options = dict(momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, root_every=ROOT_EVERY)
        return [Shampoo(parameters.all, lr, eps=eps, block_size=block_size, **options)]

    return make


def published(variant: str, block_size: int) -> Factory:
    def make(parameters: ModelParameters, lr: float, eps: float) -> list[Optimizer]:
        options = dict(momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, root_every=ROOT_EVERY)
        options |= dict(matrix_eps=eps, block_size=block_size)
        return [PublishedKrADagrad(parameters.all, variant=variant, lr=lr, **options)]

    return make


def papers_options(block_size: int) -> Factory:
    """Return KrADagrad with the paper's schedule, exponent, momentum and length; nothing is forgotten."""

    def make(parameters: ModelParameters, lr: float, damping: float) -> list[Optimizer]:
        made = KrADagrad(
            param_groups(parameters.model, show=None), lr=lr, betas=(MOMENTUM, 0.0), momentum_on="update",
            nesterov=False, graft="sgd", block_size=block_size, factor_decay=1.0, damping=damping,
            exponent=0.25, coupling="none", root_every=ROOT_EVERY, start_step=ROOT_EVERY,
            weight_decay=WEIGHT_DECAY, decoupled_weight_decay=False,
        )  # fmt: skip
        return [made]

    return make


def defaults(parameters: ModelParameters, lr: float, factor_decay: float) -> list[Optimizer]:
    """Return KrADagrad with its default options."""
    return [KrADagrad(param_groups(parameters.model, show=None), lr=lr, factor_decay=factor_decay)]


def around(rate: float) -> tuple[float, float, float]:
    """Return a rate, 1 or 3 times a power of ten, between the next lower and the next higher one."""
    return beyond(rate, -1), rate, beyond(rate, 1)


def optimizers_of(task: type[Autoencoder]) -> dict[str, PaperOptimizer]:
    """Return the optimizers of the comparison by their names; each tries three rates and one second value."""
    best, size = PUBLISHED[task.name], task.block_size
    ours = "kradagrad_ext"
    made = (
        ("sgd", "SGD", "torch", best["sgd"], "momentum", sgd),
        ("adam", "Adam", "torch", best["adam"], "eps", adam),
        ("shampoo64", "Shampoo, float64", "torch", best["shampoo"], "eps", shampoo(size)),
        ("shampoo32", "Shampoo, float32", "torch", best["shampoo"], "eps", shampoo(size)),
        ("star", "published star", ours, best["star"], "eps", published("star", size)),
        ("plain", "published plain", ours, best["plain"], "eps", published("plain", size)),
        (
            "papers_options",
            "KrADagrad, the paper's options",
            ours,
            (best["shampoo"][0], DAMPING),
            "damping",
            papers_options(size),
        ),
        ("defaults", "KrADagrad, its defaults", ours, (OUR_RATE, FACTOR_DECAY), "factor_decay", defaults),
    )
    return {
        name: PaperOptimizer(
            name, label, package, around(rate), second, (value,) * 3, make,
            dtype=torch.float64 if name == "shampoo64" else torch.float32,
        )
        for name, label, package, (rate, value), second, make in made
    }  # fmt: skip
