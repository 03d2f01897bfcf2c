"""The arguments of an optimizer, read as shapes, dtypes and options: no values, no memory."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kradagrad_ext.blocking import Shape
from kradagrad_ext.config import OPTIONS, Config, default_block_size, parameter_name
from kradagrad_ext.group_options import GROUP_DEFAULTS
from kradagrad_ext.optimizer import KrADagrad

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Dtypes of parameters that kernels on a GPU support."""

Given = nn.Module | Iterable[Any]


@dataclass(frozen=True)
class ParamShape:
    """One parameter, with what determines its blocking and state.

    Attributes:
        position: that of its parameter group.
    """

    shape: Shape
    dtype: torch.dtype
    position: int
    config: Config


def make_config(**options: object) -> Config:
    """Return the optimizer's defaults on a GPU, with some options changed.

    Raises:
        ValueError: an option is out of range.
    """
    named = inspect.signature(KrADagrad).parameters
    values: dict[str, Any] = {name: named[name].default for name in OPTIONS if name in named}
    values["block_size"] = default_block_size(torch.device("cuda"))
    return Config(**{**values, **GROUP_DEFAULTS, **options})


def read_parameters(model: Given, dtype: torch.dtype, options: Mapping[str, Any]) -> list[ParamShape]:
    """Return all parameters, in the order of the optimizer's parameter groups.

    Args:
        model: see `estimate_cost`.
        dtype: that of parameters that are given as shapes.
        options: those of the optimizer.

    Raises:
        ValueError, TypeError: as in `KrADagrad`, for unsupported dtypes, and without any elements.
    """
    for name in options:
        if name not in OPTIONS:
            raise ValueError(f"KrADagrad: options must be of {', '.join(OPTIONS)}, got {name}")
    _check_dtype(dtype, "`dtype`")
    optimizer = KrADagrad(_groups(model, dtype), **options)
    parameters = []
    for position, group in enumerate(optimizer.param_groups):
        for i, p in enumerate(group["params"]):
            _check_dtype(p.dtype, parameter_name(position, i))
            parameters.append(ParamShape(tuple(p.shape), p.dtype, position, Config.of(group)))
    if not any(0 not in p.shape for p in parameters):
        count = len(parameters)
        raise ValueError(f"KrADagrad: `model` must have parameters with elements, got {count} without")
    return parameters


def _check_dtype(dtype: object, name: str) -> None:
    if dtype not in DTYPES.values():
        names = ", ".join(map(str, DTYPES.values()))
        raise ValueError(f"KrADagrad: {name} must be of {names}, which kernels on a GPU take, got {dtype}")


def _groups(model: Given, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Return parameter groups of tensors without memory, one for every parameter and every shape."""
    if not isinstance(model, Iterable | nn.Module) or isinstance(model, Tensor | str):
        raise _not_parameters(model)
    trained = (p for p in model.parameters() if p.requires_grad) if isinstance(model, nn.Module) else model
    items: list[Any] = list(trained)
    grouped = bool(items) and all(isinstance(item, Mapping) for item in items)
    stand_ins: dict[int, Tensor] = {}  # by id: a parameter that occurs twice stays one, which is refused
    groups = []
    for group in items if grouped else [{"params": items}]:
        params = group.get("params")
        if not isinstance(params, Iterable):
            raise TypeError(f"KrADagrad: `params` of a group must be parameters or shapes, got {params!r}")
        listed = [params] if isinstance(params, Tensor) else params
        groups.append({**group, "params": [_stand_in(item, dtype, stand_ins) for item in listed]})
    return groups


def _stand_in(item: Any, dtype: torch.dtype, stand_ins: dict[int, Tensor]) -> Tensor:  # noqa: ANN401
    """Return a tensor without memory for a parameter, a named parameter or a shape."""
    named = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
    p = item[1] if named else item
    if isinstance(p, Tensor):
        return stand_ins.setdefault(id(p), torch.empty(p.shape, dtype=p.dtype, device="meta"))
    if not isinstance(p, tuple | list) or not all(type(side) is int and side >= 0 for side in p):
        raise _not_parameters(p)
    return torch.empty(p, dtype=dtype, device="meta")


def _not_parameters(got: object) -> TypeError:
    shown = got if isinstance(got, int | float | str | tuple | list) else type(got).__name__
    return TypeError(
        f"KrADagrad: `model` must be a module, parameters, parameter groups or shapes, got {shown}"
    )
