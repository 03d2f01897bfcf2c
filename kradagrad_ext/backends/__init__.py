"""Selection of the backend that runs the ops on tensors of a device and dtype.

A backend is one module of this package, listed by one line in the registry. It has the functions of
`base.Backend`, a `name`, and ``available(device, dtype)``, which returns None or the reason why the backend
cannot run. It can be imported without its dependencies beyond torch.
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

# `auto` tries them in this order. The package has another name as a kernel of Hugging Face's hub.
_REGISTRY = {
    "native": f"{__name__}.native",
    "triton": f"{__name__}.triton",
    "reference": f"{__name__}.reference",
}

_NEW_TENSOR_CORES = (9, 10)
"""Major compute capabilities with wgmma or tcgen05; later ones have mma.sync alone."""

logger = logging.getLogger("kradagrad_ext")


class _BackendModule(Backend, Protocol):
    def available(self, device: torch.device, dtype: torch.dtype | None = None) -> str | None: ...


def available_backends(device: torch.device) -> dict[str, str | None]:
    """Return for every backend, by name, None if it can run on the device, else the reason why it cannot."""
    return {name: _load(name).available(device) for name in _REGISTRY}


def resolve(name: str, device: torch.device, dtype: torch.dtype, side: int = 0) -> Backend:
    """Return the backend for tensors of a device and dtype.

    Args:
        name: a backend's name, or ``auto`` for the first backend that can run. The environment variable
            KRADAGRAD_BACKEND, if set, overrides it.
        device: the tensors' device.
        dtype: the factors' dtype, float32 or float64.
        side: longest side of the blocks; 0 for ops on whole parameters.

    Raises:
        ValueError: no backend has this name.
        RuntimeError: the backend requested by name cannot run; the message says why.
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
    """Return the backends' names in order of preference.

    Triton comes first for large blocks if it reaches tensor cores that `mma.sync` does not.
    """
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
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
    raise RuntimeError(f"no backend runs {dtype} on {device.type}: {reasons}")


@functools.cache
def _log_fallback(device_type: str, name: str, refusals: tuple[tuple[str, str], ...]) -> None:
    """Log each fallback once; as a warning if this build was meant to have the native backend."""
    build = build_info.read_build_info()
    missing = "native" in dict(refusals) and build.requested != "none"
    expected = missing and device_type in ("cpu", build.native)
    why = "; ".join(f"{refused}: {reason}" for refused, reason in refusals)
    why += f" ({build.reason})" if build.reason else ""
    level = logging.WARNING if expected else logging.INFO
    logger.log(level, "using the %s backend on %s: %s", name, device_type, why)


def _load(name: str) -> _BackendModule:
    return cast(_BackendModule, importlib.import_module(_REGISTRY[name]))
