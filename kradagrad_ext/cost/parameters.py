"""What an optimizer would be given, read as shapes, dtypes and options: no values, no memory."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from kradagrad_ext.config import Config, default_block_size
from kradagrad_ext.optimizer import KrADagrad
from kradagrad_ext.plan import Shape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Of parameters: those that kernels on a GPU take."""

Given = nn.Module | Iterable[Any]


@dataclass(frozen=True)
class Parameter:
    """One parameter, as its plan and state are made from it.

    Attributes:
        position: of its parameter group.
    """

    shape: Shape
    dtype: torch.dtype
    position: int
    config: Config


def make_config(**options: object) -> Config:
    """The optimizer's defaults on a GPU with some options changed.

    Raises:
        ValueError: an option is out of range.
    """
    defaults = inspect.signature(KrADagrad).parameters
    known = {field.name: defaults[field.name].default for field in fields(Config) if field.name in defaults}
    known["block_size"] = default_block_size(torch.device("cuda"))
    return Config(**{**known, "precondition": True, **options})


def read_parameters(given: Given, dtype: torch.dtype, options: Mapping[str, Any]) -> list[Parameter]:
    """All parameters, by parameter groups as the optimizer would have them.

    Args:
        given: see `kradagrad_ext.cost`.
        dtype: of parameters that are given as shapes.
        options: of the optimizer.

    Raises:
        ValueError, TypeError: as `KrADagrad`, and for what no kernel takes or has no elements.
    """
    names = [field.name for field in fields(Config)]
    for name in options:
        if name not in names:
            raise ValueError(f"KrADagrad: options must be of {', '.join(names)}, got {name}")
    _check_dtype(dtype, "`dtype`")
    constructor = {name: value for name, value in options.items() if name != "precondition"}
    optimizer = KrADagrad(_groups(given, dtype, options.get("precondition", True)), **constructor)
    found = []
    for position, group in enumerate(optimizer.param_groups):
        for i, p in enumerate(group["params"]):
            _check_dtype(p.dtype, f"parameter {i} of parameter group {position}")
            found.append(Parameter(tuple(p.shape), p.dtype, position, Config.of(group)))
    if not any(p.numel() for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(f"KrADagrad: `model` must have parameters with elements, got {len(found)} without")
    return found


def _check_dtype(dtype: object, name: str) -> None:
    if dtype not in DTYPES.values():
        known = ", ".join(map(str, DTYPES.values()))
        raise ValueError(f"KrADagrad: {name} must be of {known}, which kernels on a GPU take, got {dtype}")


def _groups(given: Given, dtype: torch.dtype, precondition: object) -> list[dict[str, Any]]:
    """Parameter groups of tensors without memory, one for every tensor and every shape."""
    if isinstance(given, nn.Module):
        items: list[Any] = [p for p in given.parameters() if p.requires_grad]
    elif isinstance(given, Iterable) and not isinstance(given, (Tensor, str)):
        items = list(given)
    else:
        raise _not_parameters(given)
    grouped = bool(items) and all(isinstance(item, Mapping) for item in items)
    made: dict[int, Tensor] = {}  # a parameter that is given twice stays one, which the optimizer refuses

    def stand_in(item: Any) -> Tensor:  # noqa: ANN401
        named = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
        p = item[1] if named else item
        if isinstance(p, Tensor):
            return made.setdefault(id(p), torch.empty(p.shape, dtype=p.dtype, device="meta"))
        sound = isinstance(p, (tuple, list)) and all(type(side) is int and side >= 0 for side in p)
        if not sound:
            raise _not_parameters(p)
        return torch.empty(p, dtype=dtype, device="meta")

    groups = []
    for group in items if grouped else [{"params": items}]:
        own = group.get("params")
        if not isinstance(own, Iterable):
            raise TypeError(f"KrADagrad: `params` of a group must be parameters or shapes, got {own!r}")
        listed = [own] if isinstance(own, Tensor) else own
        groups.append({"precondition": precondition, **group, "params": [stand_in(p) for p in listed]})
    return groups


def _not_parameters(got: object) -> TypeError:
    return TypeError(
        "KrADagrad: `model` must be a module, parameters, parameter groups or shapes, "
        f"got {got if isinstance(got, (int, float, str, tuple, list)) else type(got).__name__}"
    )
