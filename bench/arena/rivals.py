"""The arena's optimizers: how each is made, its learning rates, and three values of one more hyperparameter.

All options that are not named here are the defaults of the optimizer's package, except that nobody decays
weights and that preconditioners are refreshed every ten steps. The factories import their packages.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from bench.arena.parameters import ModelParameters
from bench.steps.baselines import MuonInFloat32
from kradagrad_ext import KrADagrad, param_groups

BETA1 = 0.9
REFRESH = 10
"""Steps between two refreshes of a preconditioner, for all that have one."""

WIDE = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Rates of optimizers whose updates have the size of Adam's."""

HIGH = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

Make = Callable[[ModelParameters, float, float], list[Optimizer]]


@dataclass(frozen=True)
class Rival:
    """One optimizer.

    Attributes:
        name: its key in tables and files.  label: its name in prose.  package: its package on PyPI.
        rates: five learning rates, ascending.
        second, values: the other hyperparameter and its three values.
        make: returns optimizers from parameters, rate and value.
        averages: True for an optimizer that averages its iterates: its rate stays after the warm-up, and its
            methods `train` and `eval` select the weights.
    """

    name: str
    label: str
    package: str
    rates: tuple[float, ...]
    second: str
    values: tuple[float, float, float]
    make: Make
    averages: bool = False

    @property
    def middle(self) -> float:
        return self.values[1]

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


def adamw(parameters: ModelParameters, lr: float, beta2: float) -> list[Optimizer]:
    return [torch.optim.AdamW(parameters.all, lr=lr, betas=(BETA1, beta2), weight_decay=0.0)]


def nadamw(parameters: ModelParameters, lr: float, beta2: float) -> list[Optimizer]:
    options = dict(betas=(BETA1, beta2), weight_decay=0.0, decoupled_weight_decay=True)
    return [torch.optim.NAdam(parameters.all, lr=lr, **options)]


def sgd(parameters: ModelParameters, lr: float, momentum: float) -> list[Optimizer]:
    return [torch.optim.SGD(parameters.all, lr=lr, momentum=momentum, nesterov=True)]


def muon(parameters: ModelParameters, lr: float, auxiliary: float) -> list[Optimizer]:
    """Return Muon on the hidden matrices, by float32 products, and AdamW with its rate on all others.

    Products in bfloat16 are many times slower on a processor without them. Updates have the size of AdamW's.
    """
    rest = [*parameters.ends, *parameters.vectors]
    matrices = MuonInFloat32(parameters.matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [matrices, *adamw_of(rest, auxiliary)]


def adamw_of(rest: list[nn.Parameter], lr: float) -> list[Optimizer]:
    return [torch.optim.AdamW(rest, lr=lr, betas=(BETA1, 0.99), weight_decay=0.0)] if rest else []


def soap(parameters: ModelParameters, lr: float, beta2: float) -> list[Optimizer]:
    from pytorch_optimizer import SOAP

    options = dict(betas=(0.95, beta2), weight_decay=0.0, precondition_frequency=REFRESH)
    return [SOAP(parameters.all, lr=lr, **options)]


def of_heavyball(name: str, parameters: ModelParameters, lr: float, **options: object) -> list[Optimizer]:
    """Return an optimizer of heavyball without compilation, which would take minutes for every model."""
    import heavyball

    heavyball.utils.compile_mode = heavyball.utils.compile_mode_recommended_to_none = None
    warnings.filterwarnings("ignore", "Learning rate changed between steps")  # the schedule changes it
    make = getattr(heavyball, name)
    return [make(parameters.all, lr=lr, weight_decay=0.0, precondition_frequency=REFRESH, **options)]


def kl_soap(parameters: ModelParameters, lr: float, beta2: float) -> list[Optimizer]:
    return of_heavyball("KLSOAP", parameters, lr, betas=(BETA1, beta2), merge_dims=False)


def kl_shampoo(parameters: ModelParameters, lr: float, decay: float) -> list[Optimizer]:
    return of_heavyball(
        "KLShampoo", parameters, lr, betas=(BETA1, decay), shampoo_beta=decay, merge_dims=False
    )


def shampoo(parameters: ModelParameters, lr: float, beta2: float) -> list[Optimizer]:
    """Return Shampoo in blocks of 256 with RMSProp's length and a mean of gradients as momentum."""
    from pytorch_optimizer import ScalableShampoo
    from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting

    made = ScalableShampoo(
        parameters.all,
        lr=lr,
        betas=(BETA1, beta2),
        moving_average_for_momentum=True,
        block_size=256,
        preconditioning_compute_steps=REFRESH,
        start_preconditioning_step=1,
        graft_type=LayerWiseGrafting.RMSPROP,
    )
    return [made]


def kron(parameters: ModelParameters, lr: float, precondition_lr: float) -> list[Optimizer]:
    """Return PSGD's Kron of pytorch_optimizer; heavyball's takes twice as long without compilation."""
    from pytorch_optimizer import Kron

    made = Kron(parameters.all, lr=lr)
    for group in made.param_groups:
        group["precondition_lr"] = precondition_lr
    return [made]


def schedule_free(parameters: ModelParameters, lr: float, beta1: float) -> list[Optimizer]:
    from schedulefree import AdamWScheduleFree

    return [AdamWScheduleFree(parameters.all, lr=lr, betas=(beta1, 0.99), weight_decay=0.0)]


def kradagrad(parameters: ModelParameters, lr: float, factor_decay: float) -> list[Optimizer]:
    """Return this project's optimizer, with the groups that `param_groups` makes by itself."""
    groups = param_groups(parameters.model, show=None)
    return [KrADagrad(groups, lr=lr, factor_decay=factor_decay)]


OURS = "kradagrad"
BASELINE = "adamw"
BETA2 = (0.95, 0.99, 0.999)
FAST_BETA2 = (0.9, 0.95, 0.99)

RIVALS: dict[str, Rival] = {
    rival.name: rival
    for rival in (
        Rival(BASELINE, "AdamW", "torch", WIDE, "beta2", BETA2, adamw),
        Rival("nadamw", "NAdamW", "torch", WIDE, "beta2", BETA2, nadamw),
        Rival("sgd", "SGD", "torch", (1e-2, 3e-2, 1e-1, 3e-1, 1.0), "momentum", (0.8, 0.9, 0.95), sgd),
        Rival("muon", "Muon", "torch", HIGH, "auxiliary rate", (1e-3, 3e-3, 1e-2), muon),
        Rival("soap", "SOAP", "pytorch_optimizer", HIGH, "beta2", FAST_BETA2, soap),
        Rival("kl_soap", "KL-SOAP", "heavyball", HIGH, "beta2", FAST_BETA2, kl_soap),
        Rival("kl_shampoo", "KL-Shampoo", "heavyball", WIDE, "factors' decay", FAST_BETA2, kl_shampoo),
        Rival("shampoo", "ScalableShampoo", "pytorch_optimizer", WIDE, "beta2", BETA2, shampoo),
        Rival("kron", "PSGD-Kron", "pytorch_optimizer", WIDE, "precondition_lr", (0.03, 0.1, 0.3), kron),
        Rival(
            "schedule_free",
            "Schedule-Free AdamW",
            "schedulefree",
            HIGH,
            "beta1",
            (0.9, 0.95, 0.98),
            schedule_free,
            averages=True,
        ),
        Rival(OURS, "KrADagrad", "kradagrad_ext", HIGH, "factor_decay", (0.7, 0.8, 0.9), kradagrad),
    )
}


def missing() -> dict[str, str]:
    """Return the rivals that cannot be made here, with the reason."""
    return {
        name: f"{rival.package} is not installed: pip install '.[arena]'"
        for name, rival in RIVALS.items()
        if not rival.installed
    }
