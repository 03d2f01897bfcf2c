"""Which backend runs the ops of a group.

A backend is one module here with the functions of `base.Backend`, a `name` and ``available(device, dtype)``,
which gives None or the reason why it cannot run, and one line in the registry. It imports without whatever it
needs beyond torch.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from typing import Protocol, cast

import torch

from kradagrad_ext import build_info

from .base import WHOLE_SIDE, Backend

# In the order in which `auto` tries them.
_REGISTRY = {
    "native": "kradagrad_ext.backends.native",
    "triton": "kradagrad_ext.backends.triton",
    "reference": "kradagrad_ext.backends.reference",
}

_NEW_TENSOR_CORES = (9, 10)
"""Major compute capabilities of wgmma and tcgen05; those after them have mma.sync alone."""

logger = logging.getLogger("kradagrad_ext")


class _BackendModule(Backend, Protocol):
    def available(self, device: torch.device, dtype: torch.dtype | None = None) -> str | None: ...


def available_backends(device: torch.device) -> dict[str, str | None]:
    """Every backend by name: None where it can run on the device, else the reason why it cannot."""
    return {name: _load(name).available(device) for name in _REGISTRY}


def resolve(name: str, device: torch.device, dtype: torch.dtype, side: int = 0) -> Backend:
    """The backend for tensors of a device and dtype.

    Args:
        name: of a backend, or ``auto`` for the first that can run. The environment variable
            KRADAGRAD_BACKEND, where it is set, takes its place.
        device: of the tensors.
        dtype: of the factors, float32 or float64.
        side: the longest of the blocks; 0 for ops on whole parameters.

    Raises:
        ValueError: there is no backend of this name.
        RuntimeError: the backend asked for by name cannot run; the message says why.
    """
    override = os.environ.get("KRADAGRAD_BACKEND")
    option, name = ("KRADAGRAD_BACKEND", override) if override else ("`backend`", name)
    if name == "auto":
        return _first_available(_order(device, side), device, dtype)
    if name not in _REGISTRY:
        raise ValueError(f"{option} must be one of auto, {', '.join(_REGISTRY)}, got {name!r}")
    backend = _load(name)
    reason = backend.available(device, dtype)
    if reason is not None:
        raise RuntimeError(f"{option} {name} cannot run {dtype} on {device.type}: {reason}")
    return backend


def _order(device: torch.device, side: int) -> list[str]:
    """Triton first for large blocks where it reaches tensor cores that `mma.sync` does not."""
    names = list(_REGISTRY)
    large = side > WHOLE_SIDE and device.type == "cuda"
    if large and torch.cuda.get_device_capability(device)[0] in _NEW_TENSOR_CORES:
        names.sort(key=lambda name: name != "triton")
    return names


def _first_available(names: list[str], device: torch.device, dtype: torch.dtype) -> Backend:
    refusals: dict[str, str] = {}
    for name in names:
        backend = _load(name)
        reason = backend.available(device, dtype)
        if reason is None:
            if refusals:
                _log_fallback(device.type, name, tuple(refusals.items()))
            return backend
        refusals[name] = reason
    told = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
    raise RuntimeError(f"no backend runs {dtype} on {device.type}: {told}")


@functools.cache
def _log_fallback(device_type: str, name: str, refusals: tuple[tuple[str, str], ...]) -> None:
    """Once for each fallback; a warning where this build was meant to have the native backend."""
    build = build_info.read()
    missing = "native" in dict(refusals) and build.requested != "none"
    expected = missing and device_type in ("cpu", build.native)
    why = "; ".join(f"{refused}: {reason}" for refused, reason in refusals)
    why += f" ({build.reason})" if build.reason else ""
    level = logging.WARNING if expected else logging.INFO
    logger.log(level, "using the %s backend on %s: %s", name, device_type, why)


def _load(name: str) -> _BackendModule:
    return cast(_BackendModule, importlib.import_module(_REGISTRY[name]))
