"""A backend whose ops do nothing: what is left of a step is the host's own work (`host_time`)."""

from __future__ import annotations

import torch
from torch import Tensor

name = "idle"


def available(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """None: it runs everywhere."""
    return None


def update_factor_(*_: object) -> None:
    """Nothing."""


def kron_step_(*_: object, update: bool, precondition: bool) -> None:
    """Nothing."""


def observe_gradients_(
    scalars: Tensor, coefficients: Tensor, active: Tensor, restarts: Tensor, *_: object
) -> None:
    """All gradients as they are."""
    coefficients.fill_(1)
    active.fill_(True)
    restarts.fill_(False)


def accumulate_(*_: object) -> None:
    """Nothing."""


def scale_updates_(*_: object) -> None:
    """Nothing."""


def parameter_step_(*_: object) -> None:
    """Nothing."""


def polar_roots_(*_: object) -> None:
    """Nothing."""


def decomposed_roots(factors: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """The factors as their roots, with residuals of 0."""
    return factors, torch.zeros_like(factors[:, 0, 0])
