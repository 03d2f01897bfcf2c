"""Inputs of ops, shared by tests and benches; every file may declare ops (op.py) in `OPS`."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

from kradagrad_ext.backends.base import Backend

from .op import ElementwiseOp, Kernel, Op

__all__ = ["elementwise", "kernels", "ops"]


@functools.cache
def ops() -> dict[str, Op]:
    """Return all declared ops by name, in the order of `Backend`."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    declared = {op.name: op for module in modules for op in getattr(module, "OPS", ())}
    return dict(sorted(declared.items(), key=lambda item: list(vars(Backend)).index(item[0])))


def elementwise() -> dict[str, ElementwiseOp]:
    """Return the ops on the elements of all parameters by name."""
    return {name: op for name, op in ops().items() if isinstance(op, ElementwiseOp)}


@functools.cache
def kernels() -> dict[str, Kernel]:
    """Return the CUDA kernels of all ops by name."""
    return {name: kernel for op in ops().values() for name, kernel in op.kernels.items()}
