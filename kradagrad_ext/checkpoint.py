"""What makes a `state_dict` of views exact and checked.

`torch.optim.Optimizer` would save one view of a batch as the whole batch, and cast float32 factors to
bfloat16 when it loads them for a bfloat16 parameter: `owned` and `exactly` undo that. `check` refuses what
does not fit before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import packing
from .config import STRUCTURAL, Config
from .plan import plan_parameter
from .state import Spec, state_specs


def owned(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The same state dict with every tensor of the state in a storage of its own, consolidated ones whole."""
    state = {
        index: {key: _copy(value) for key, value in values.items()}
        for index, values in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def _copy(value: Any) -> Any:  # noqa: ANN401
    whole = getattr(value, "whole", None)  # of what lies in pieces on the ranks
    if whole is not None:
        return whole
    return value.clone() if isinstance(value, Tensor) else value


@contextmanager
def exactly(
    optimizer: Optimizer, restore: Callable[[Mapping[Tensor, dict[str, Tensor]]], None]
) -> Iterator[None]:
    """While `torch.optim.Optimizer.load_state_dict` runs, check what it is given and restore it to the bit.

    It does so by hooks, so that the user's own see and change what they would in any optimizer.

    Args:
        restore: called with the saved tensors of every parameter.
    """
    final: dict[str, Any] = {}

    def before(_: Optimizer, given: dict[str, Any]) -> None:
        check(optimizer.param_groups, given)
        final.update(given)

    handles = (
        optimizer.register_load_state_dict_pre_hook(before),
        optimizer.register_load_state_dict_post_hook(
            lambda _: restore(by_parameter(optimizer, final)), prepend=True
        ),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check(param_groups: Sequence[dict[str, Any]], state_dict: dict[str, Any]) -> None:
    """Raise ValueError, naming the key, unless `state_dict` fits these parameter groups."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError("KrADagrad: a state dict must have the keys `state` and `param_groups`")
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(param_groups):
        raise ValueError(
            f"KrADagrad: `param_groups` must hold {len(param_groups)} groups, got {len(saved_groups)}"
        )
    if any("factor_scale" in saved for saved in saved_groups):
        raise ValueError(
            "KrADagrad: `state` must hold square roots of the factors, got one of an earlier version, which "
            "kept the factors themselves: go on from the parameters, with new state"
        )
    for position, (group, saved) in enumerate(zip(param_groups, saved_groups, strict=True)):
        _check_group(position, group, saved)
        config = Config.of(saved)
        for index, p in zip(saved["params"], group["params"], strict=True):
            if index in state_dict["state"]:
                _check_state(index, p, config, state_dict["state"][index])
    known = {index for saved in saved_groups for index in saved["params"]}
    unknown = [index for index in state_dict["state"] if index not in known]
    if unknown:
        raise ValueError(f"KrADagrad: `state` must not hold parameters of no group, got {unknown}")


def _check_group(position: int, group: dict[str, Any], saved: dict[str, Any]) -> None:
    where = f"of parameter group {position}"
    if len(saved["params"]) != len(group["params"]):
        raise ValueError(
            f"KrADagrad: `params` {where} must list {len(group['params'])}, got {len(saved['params'])}"
        )
    Config.of(saved)
    for option in STRUCTURAL:
        if saved[option] != group[option]:
            raise ValueError(
                f"KrADagrad: `{option}` {where} must be {group[option]!r} as in this optimizer, "
                f"got {saved[option]!r}"
            )


def _check_state(index: int, p: Tensor, config: Config, saved: dict[str, Any]) -> None:
    """Compare one parameter's saved tensors with what its plan holds."""
    expected = state_specs(plan_parameter(p.shape, config), config, p.dtype, p.device)
    if saved.keys() != expected.keys():
        missing, extra = sorted(expected.keys() - saved.keys()), sorted(saved.keys() - expected.keys())
        raise ValueError(f"KrADagrad: `state` of parameter {index} lacks {missing} and has unknown {extra}")
    for key, spec in expected.items():
        value = saved[key]
        shapes = [spec.shape, *_other_storage(key, spec, config)]
        fits = isinstance(value, Tensor) and value.dtype == spec.dtype
        if not fits or all(_in_a_row(value.shape, len(shape)) != shape for shape in shapes):
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
            wanted = f"{spec.dtype} {list(spec.shape)}"
            raise ValueError(f"KrADagrad: `{key}` of parameter {index} must be {wanted}, got {got}")


def _other_storage(key: str, spec: Spec, config: Config) -> list[tuple[int, ...]]:
    """The shape of a packed factor where it is stored whole, and the other way round."""
    if not (config.packed and _is_factor(key)):
        return []
    n, *sides = spec.shape
    if len(sides) == 2:
        return [(n, sides[0] * (sides[0] + 1) // 2)]
    d = packing.side_of(sides[0])
    return [(n, d, d)]


def _is_factor(key: str) -> bool:
    return key.startswith("factor_") and not key.startswith("factor_stats")


def _in_a_row(shape: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Blocks that lie in their grid, as those of sharded states do, counted one after the other."""
    grid = len(shape) - ndim + 1
    return tuple(shape) if grid < 2 else (math.prod(shape[:grid]), *shape[grid:])


def by_parameter(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[Tensor, dict[str, Tensor]]:
    """The saved tensors, not those that `torch.optim.Optimizer` cast to the parameters' dtype.

    Packed factors that were saved on a device of another kind come as they are stored on this one.
    """
    found = {}
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        config = Config.of(group)
        for index, p in zip(saved["params"], group["params"], strict=True):
            if index in state_dict["state"]:
                found[p] = dict(state_dict["state"][index])
                if config.packed:
                    _restore_packed(found[p], config.packs_factors(p.device))
    return found


def _restore_packed(state: dict[str, Tensor], triangles: bool) -> None:
    """Store factors as triangles, or whole; the same F F^T either way."""
    for key in filter(_is_factor, state):
        factor, stats = state[key], state[key.replace("factor_", "factor_stats_")]
        lies_in_grid = stats.ndim > 2
        if lies_in_grid or (factor.ndim == 2) == triangles:
            continue
        if triangles:
            state[key] = packing.pack_upper(_upper(factor))
        else:
            state[key] = packing.unpack_upper(factor, packing.side_of(factor.shape[-1]))


def _upper(factors: Tensor) -> Tensor:
    """The upper triangular U with U U^T = F F^T, from QR of F^T with its columns in reverse."""
    wide = factors if factors.dtype == torch.float64 else factors.float()
    r: Tensor = torch.linalg.qr(wide.flip(-2).mT, mode="r").R
    return r.mT.flip((-2, -1)).to(factors.dtype)
