"""A backend whose ops do nothing: only the host's work remains of a step (host_time.py)."""

from __future__ import annotations

import torch
from torch import Tensor

name = "idle"


def available(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Return None: the backend runs on every device."""
    return None


def update_factor_(*_: object) -> None:
    """Do nothing."""


def kron_step_(*_: object, update: bool, precondition: bool) -> None:
    """Do nothing."""


def guard_gradients_(
    scalars: Tensor, coefficients: Tensor, active: Tensor, restarts: Tensor, *_: object
) -> None:
    """Mark all gradients as active and leave them unscaled."""
    coefficients.fill_(1)
    active.fill_(True)
    restarts.fill_(False)


def update_moments_(*_: object) -> None:
    """Do nothing."""


def scale_updates_(*_: object) -> None:
    """Do nothing."""


def apply_updates_(*_: object) -> None:
    """Do nothing."""


def polar_roots_(*_: object) -> None:
    """Do nothing."""


def decomposed_roots(factors: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """Return the factors as their roots, with residuals of 0."""
    return factors, torch.zeros_like(factors[:, 0, 0])
