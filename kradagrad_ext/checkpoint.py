"""Exact and checked state dicts of an optimizer whose state tensors are views.

`torch.optim.Optimizer` would save a view with the whole stacked tensor behind it, and would cast float32
factors to bfloat16 when it loads them for a bfloat16 parameter: `owned` and `exactly` prevent both. `check`
refuses a state dict that does not fit before anything is loaded.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import linalg
from .backends import resolve
from .blocking import Blocking, blocking_of, group_by_shape
from .config import OPTIONS, STRUCTURAL, Config, check_rate, is_int, plain, require
from .param_batch import ParamBatch, check_capturable
from .state import MOMENTUM, SCALARS, SECOND_MOMENT, TensorSpec, are_keys, compute_dtype, state_specs

FORMAT = 2
"""Version of the state and options, saved as ``format`` in each parameter group."""

KEYS_SINCE_1 = {"scalars": SCALARS, "momentum": MOMENTUM, "second_moment": SECOND_MOMENT}
"""Keys of a parameter's state in format 1, and their names since."""


def owned(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Copy a state dict so that every tensor has a separate storage; consolidated tensors become whole."""
    state = {index: copied(values) for index, values in state_dict["state"].items()}
    return {**state_dict, "state": state, "param_groups": list(map(copied, state_dict["param_groups"]))}


def copied(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Copy a dict and its tensors."""
    return {key: _copy(value) for key, value in values.items()}


def _copy(value: Any) -> Any:  # noqa: ANN401
    whole = getattr(value, "whole", None)  # set on a sharded tensor that was consolidated on this rank
    if whole is not None:
        return whole
    return value.detach().clone() if isinstance(value, Tensor) else value


@contextmanager
def whole_state(optimizer: Optimizer) -> Iterator[None]:
    """Put the state to be saved in `optimizer.state` while `torch.optim.Optimizer.state_dict` runs.

    It has the state of all parameters in parameter groups. A trainable parameter that has taken no step gets
    its initial state, so that a loader finds a place for every tensor.
    """
    state = optimizer.state
    optimizer.state = defaultdict(dict)
    for group in optimizer.param_groups:
        states = {p: state.get(p) for p in group["params"]}
        new = [p for p in states if not states[p] and p.requires_grad]
        config = Config.of(group) if new else None
        optimizer.state.update({p: tensors for p, tensors in states.items() if tensors})
        optimizer.state.update({p: initial_state(p, config) for p in new if config})
    try:
        yield
    finally:
        optimizer.state = state


def initial_state(p: Tensor, config: Config) -> dict[str, Tensor]:
    """Return the state of a parameter before its first step."""
    state: dict[str, Tensor] = {}
    ParamBatch([p], config, [blocking_of(p.shape, config)]).adopt([state])
    return state


@contextmanager
def exactly(
    optimizer: Optimizer, restore: Callable[[Mapping[Tensor, dict[str, Tensor]]], None]
) -> Iterator[None]:
    """Check a state dict and restore it bit for bit while `torch.optim.Optimizer.load_state_dict` runs.

    Two hooks do this, so that the user's hooks see and change the same as in any optimizer. Any exception
    leaves the optimizer as it was.

    Args:
        restore: called with the saved tensors of every parameter.
    """
    final: dict[str, Any] = {}
    kept = {name: vars(optimizer)[name] for name in ("state", "param_groups", "_engine", "_whole")}

    def before(_: Optimizer, state_dict: dict[str, Any]) -> None:
        groups = completed(optimizer.param_groups, state_dict)
        state_dict["state"], state_dict["param_groups"] = renamed(state_dict), groups
        check(optimizer.param_groups, state_dict)
        final.update(state_dict)

    handles = (
        optimizer.register_load_state_dict_pre_hook(before),
        optimizer.register_load_state_dict_post_hook(
            lambda _: restore(by_parameter(optimizer, final)), prepend=True
        ),
    )
    try:
        yield
    except BaseException:
        vars(optimizer).update(kept)
        raise
    finally:
        for handle in handles:
            handle.remove()


def completed(param_groups: Sequence[dict[str, Any]], state_dict: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the saved parameter groups; options missing in their version come from this optimizer.

    Raises:
        ValueError: the keys are missing, the number of groups differs, or the state dict is of another
            optimizer or a newer version.
    """
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError("KrADagrad: a state dict must have the keys `state` and `param_groups`")
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(param_groups):
        raise ValueError(
            f"KrADagrad: `param_groups` must hold {len(param_groups)} groups, got {len(saved_groups)}"
        )
    return [
        {**_missing(position, group, saved), **saved, "format": FORMAT}
        for position, (group, saved) in enumerate(zip(param_groups, saved_groups, strict=True))
    ]


def renamed(state_dict: dict[str, Any]) -> dict[Any, Any]:
    """The saved state with the keys of this format."""
    groups = [group for group in state_dict["param_groups"] if group["format"] == 1]
    old = {index for group in groups for index in group["params"]}
    return {
        index: {KEYS_SINCE_1.get(key, key): value for key, value in values.items()}
        if index in old
        else values
        for index, values in state_dict["state"].items()
    }


def _missing(position: int, group: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return this optimizer's options that a saved parameter group lacks; check the group's format."""
    number = saved.get("format")
    if not isinstance(number, int):
        raise ValueError(
            f"KrADagrad: `format` of parameter group {position} must be the number of one of KrADagrad's "
            f"formats, got {number!r}: the state dict is of another optimizer"
        )
    if number > FORMAT:
        unknown = sorted(saved.keys() - group.keys())
        raise ValueError(
            f"KrADagrad: `format` of parameter group {position} must be at most {FORMAT}, got {number}, with "
            f"the unknown options {unknown}: the state dict is of a newer version"
        )
    return {option: group[option] for option in OPTIONS if option not in saved}


def check(param_groups: Sequence[dict[str, Any]], state_dict: dict[str, Any]) -> None:
    """Raise, naming the key, unless `state_dict` fits these parameter groups and can be stepped with."""
    for position, (group, saved) in enumerate(zip(param_groups, state_dict["param_groups"], strict=True)):
        _check_group(position, group, saved)
        config = Config.of(saved)
        for index, p in zip(saved["params"], group["params"], strict=True):
            blocking = blocking_of(p.shape, config)
            check_capturable(config, [group.block_shape for group in group_by_shape([blocking])])
            resolve(config.backend, p.device, compute_dtype(p.dtype))
            if state_dict["state"].get(index):
                _check_state(index, p, config, blocking, state_dict["state"][index])
    known = {index for saved in state_dict["param_groups"] for index in saved["params"]}
    unknown = [index for index in state_dict["state"] if index not in known]
    if unknown:
        raise ValueError(f"KrADagrad: `state` must not hold parameters of no group, got {unknown}")


def _check_group(position: int, group: dict[str, Any], saved: dict[str, Any]) -> None:
    where = f"of parameter group {position}"
    if len(saved["params"]) != len(group["params"]):
        raise ValueError(
            f"KrADagrad: `params` {where} must list {len(group['params'])}, got {len(saved['params'])}"
        )
    check_rate("lr", plain(saved["lr"]))
    step = saved["step"].item() if isinstance(saved["step"], Tensor) else saved["step"]
    require(is_int(step) and step >= 0, "step", f"an integer >= 0 {where}", step)
    for option in STRUCTURAL:
        if plain(saved[option]) != plain(group[option]):
            raise ValueError(
                f"KrADagrad: `{option}` {where} must be {group[option]!r} as in this optimizer, "
                f"got {saved[option]!r}"
            )


def _check_state(index: int, p: Tensor, config: Config, blocking: Blocking, saved: dict[str, Any]) -> None:
    """Raise ValueError unless one parameter's saved tensors have the keys, shapes and dtypes of its specs."""
    expected = state_specs(blocking, config, p.dtype, p.device)
    if not are_keys(saved, expected):
        missing, extra = sorted(expected.keys() - saved.keys()), sorted(saved.keys() - expected.keys())
        raise ValueError(f"KrADagrad: `state` of parameter {index} lacks {missing} and has unknown {extra}")
    for key, value in saved.items():
        unused_residual = TensorSpec(blocking.shape, torch.int16)  # the only key that may be unexpected
        spec = expected.get(key, unused_residual)
        shapes = [spec.shape, *_other_storage(key, spec, config)]
        fits = isinstance(value, Tensor) and value.dtype == spec.dtype
        if not fits or all(_in_a_row(value.shape, len(shape)) != shape for shape in shapes):
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
            wanted = f"{spec.dtype} {list(spec.shape)}"
            raise ValueError(f"KrADagrad: `{key}` of parameter {index} must be {wanted}, got {got}")


def _other_storage(key: str, spec: TensorSpec, config: Config) -> list[tuple[int, ...]]:
    """Return the shape of a packed optimizer's factor in its other storage: as a triangle, or whole."""
    if not (config.packed and _is_factor(key)):
        return []
    n, *sides = spec.shape
    if len(sides) == 2:
        return [(n, sides[0] * (sides[0] + 1) // 2)]
    d = linalg.side_of(sides[0])
    return [(n, d, d)]


def _is_factor(key: str) -> bool:
    return key.startswith("factor_") and not key.startswith("factor_stats")


def _in_a_row(shape: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Return a shape with the dims of the block grid, which sharded states have, flattened into one."""
    grid = len(shape) - ndim + 1
    return tuple(shape) if grid < 2 else (math.prod(shape[:grid]), *shape[grid:])


def by_parameter(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[Tensor, dict[str, Tensor]]:
    """Return the saved tensors, not those that `torch.optim.Optimizer` cast to the parameters' dtype.

    Packed factors that were saved on another type of device are converted to the storage of this one.
    """
    states = {}
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        config = Config.of(group)
        for index, p in zip(saved["params"], group["params"], strict=True):
            if state_dict["state"].get(index):
                states[p] = dict(state_dict["state"][index])
                if config.packed:
                    _restore_packed(states[p], config.packs_factors(p.device))
    return states


def _restore_packed(state: dict[str, Tensor], triangles: bool) -> None:
    """Store factors as triangles, or whole; F F^T is the same in both forms."""
    for key in filter(_is_factor, state):
        factor, stats = state[key], state[key.replace("factor_", "factor_stats_")]
        is_sharded = stats.ndim > 2
        if is_sharded or (factor.ndim == 2) == triangles:
            continue
        if triangles:
            state[key] = linalg.pack_upper(_upper(factor))
        else:
            state[key] = linalg.unpack_upper(factor, linalg.side_of(factor.shape[-1]))


def _upper(factors: Tensor) -> Tensor:
    """Return the upper triangular U with U U^T = F F^T, from QR of F^T with its columns in reverse."""
    wide = factors if factors.dtype == torch.float64 else factors.float()
    r: Tensor = torch.linalg.qr(wide.flip(-2).mT, mode="r").R
    return r.mT.flip((-2, -1)).to(factors.dtype)
