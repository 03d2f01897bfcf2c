"""What makes a `state_dict` of views exact and checked.

`torch.optim.Optimizer` would save one view of a batch as the whole batch, and cast float32 factors to
bfloat16 when it loads them for a bfloat16 parameter: `owned` and `exactly` undo that. `check` refuses what
does not fit before anything is loaded.
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

from . import packing
from .backends import resolve
from .bucket import Bucket, check_capturable
from .config import OPTIONS, STRUCTURAL, Config, check_rate, is_int, plain, require
from .plan import ParameterPlan, group_blocks, plan_parameter
from .state import Spec, are_keys, compute_dtype, state_specs

FORMAT = 1
"""Of the state and options of this version, as ``format`` in each parameter group."""


def owned(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The same state dict with every tensor in a storage of its own, consolidated ones whole."""
    state = {index: copied(values) for index, values in state_dict["state"].items()}
    return {**state_dict, "state": state, "param_groups": list(map(copied, state_dict["param_groups"]))}


def copied(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """A dict with tensors of its own."""
    return {key: _copy(value) for key, value in values.items()}


def _copy(value: Any) -> Any:  # noqa: ANN401
    whole = getattr(value, "whole", None)  # of what lies in pieces on the ranks
    if whole is not None:
        return whole
    return value.detach().clone() if isinstance(value, Tensor) else value


@contextmanager
def whole_state(optimizer: Optimizer) -> Iterator[None]:
    """While `torch.optim.Optimizer.state_dict` runs, `optimizer.state` is what is to be saved.

    That is the state of all parameters in a group. Those that are to be trained have one in any case, before
    their first step the initial one, so that a loader finds a place for every tensor.
    """
    state = optimizer.state
    optimizer.state = defaultdict(dict)
    for group in optimizer.param_groups:
        held = {p: state.get(p) for p in group["params"]}
        new = [p for p in held if not held[p] and p.requires_grad]
        config = Config.of(group) if new else None
        optimizer.state.update({p: own for p, own in held.items() if own})
        optimizer.state.update({p: initial_state(p, config) for p in new if config})
    try:
        yield
    finally:
        optimizer.state = state


def initial_state(p: Tensor, config: Config) -> dict[str, Tensor]:
    """The state of a parameter before its first step."""
    state: dict[str, Tensor] = {}
    Bucket([p], config, [plan_parameter(p.shape, config)]).adopt([state])
    return state


@contextmanager
def exactly(
    optimizer: Optimizer, restore: Callable[[Mapping[Tensor, dict[str, Tensor]]], None]
) -> Iterator[None]:
    """While `torch.optim.Optimizer.load_state_dict` runs, check what it is given and restore it to the bit.

    It does so by hooks, so that the user's own see and change what they would in any optimizer. Whatever is
    raised leaves the optimizer as it was.

    Args:
        restore: called with the saved tensors of every parameter.
    """
    final: dict[str, Any] = {}
    kept = {name: vars(optimizer)[name] for name in ("state", "param_groups", "_engine", "_whole")}

    def before(_: Optimizer, given: dict[str, Any]) -> None:
        given["param_groups"] = completed(optimizer.param_groups, given)
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
    except BaseException:
        vars(optimizer).update(kept)
        raise
    finally:
        for handle in handles:
            handle.remove()


def completed(param_groups: Sequence[dict[str, Any]], state_dict: dict[str, Any]) -> list[dict[str, Any]]:
    """The saved parameter groups; options that their version did not have are as in this optimizer.

    Raises:
        ValueError: they are no parameter groups, not as many, or of another optimizer or a newer version.
    """
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError("KrADagrad: a state dict must have the keys `state` and `param_groups`")
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(param_groups):
        raise ValueError(
            f"KrADagrad: `param_groups` must hold {len(param_groups)} groups, got {len(saved_groups)}"
        )
    return [
        {**_missing(position, group, saved), **saved}
        for position, (group, saved) in enumerate(zip(param_groups, saved_groups, strict=True))
    ]


def _missing(position: int, group: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Our options that a saved group lacks."""
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
    """Raise, naming the key, unless `state_dict` fits these parameter groups and could be stepped with."""
    for position, (group, saved) in enumerate(zip(param_groups, state_dict["param_groups"], strict=True)):
        _check_group(position, group, saved)
        config = Config.of(saved)
        for index, p in zip(saved["params"], group["params"], strict=True):
            plan = plan_parameter(p.shape, config)
            check_capturable(config, [group.block_shape for group in group_blocks([plan])])
            resolve(config.backend, p.device, compute_dtype(p.dtype))
            if state_dict["state"].get(index):
                _check_state(index, p, config, plan, state_dict["state"][index])
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


def _check_state(index: int, p: Tensor, config: Config, plan: ParameterPlan, saved: dict[str, Any]) -> None:
    """Compare one parameter's saved tensors with what its plan holds."""
    expected = state_specs(plan, config, p.dtype, p.device)
    if not are_keys(saved, expected):
        missing, extra = sorted(expected.keys() - saved.keys()), sorted(saved.keys() - expected.keys())
        raise ValueError(f"KrADagrad: `state` of parameter {index} lacks {missing} and has unknown {extra}")
    for key, value in saved.items():
        spec = expected.get(key, Spec(plan.shape, torch.int16))  # of residuals that are of no use any more
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
            if state_dict["state"].get(index):
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
