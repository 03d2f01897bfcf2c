"""The share of a model that is preconditioned: refuse options without effect, report what is left out."""

from __future__ import annotations

import difflib
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .blocking import blocking_of
from .config import OPTIONS, Config, parameter_name

LEAST_SHARE = 0.9
"""Least share of the elements of matrices that must be preconditioned."""

FLAT = 1 << 16
"""Number of elements from which a vector may be a flat shard of a model's weights."""

NAMED = 3
"""Number of parameters that a message names, the largest first."""


def check_options(position: int, group: Mapping[str, Any], config: Config) -> None:
    """Raise ValueError for a misspelt option of a parameter group, or one without effect on its parameters.

    Warn if `max_factor_dim` is smaller than `block_size`.

    Args:
        position: of the parameter group.
    """
    for key in sorted(set(group) - {"lr", "params", *OPTIONS}):
        meant = difflib.get_close_matches(key, ("params", *OPTIONS), n=1, cutoff=0.8)
        if meant:
            raise ValueError(
                f"KrADagrad: `{key}` of parameter group {position} must be an option; is `{meant[0]}` meant?"
            )
    if config.split == 1 and config.split_dim != 0:
        raise ValueError(
            f"KrADagrad: `split_dim` must come with `split`, got {config.split_dim} alone in parameter group "
            f"{position}"
        )
    needed = config.batch_dims + (1 if config.precondition_1d else 2)
    params = group["params"]
    if config.precondition and config.batch_dims and params and all(p.ndim < needed for p in params):
        raise ValueError(
            f"KrADagrad: `batch_dims` must leave a matrix of some parameter of parameter group {position}, "
            f"got {config.batch_dims} for shapes {[list(p.shape) for p in params[:NAMED]]}"
        )
    if config.max_factor_dim < config.block_size and config.precondition:
        warn(
            f"KrADagrad: `max_factor_dim` should be at least `block_size` ({config.block_size}), got "
            f"{config.max_factor_dim}: longer sides get no factor, so that no block is as long as it may be"
        )


def warn(message: str) -> None:
    """Issue a warning at the caller's line outside this package and torch, which wraps the optimizer."""
    frame, depth = sys._getframe(1), 2
    inside = (f"{__package__}.", "torch.")
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(inside):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth)


@dataclass(frozen=True)
class LeftOut:
    """A parameter of a matrix's size that is not preconditioned."""

    name: str
    shape: tuple[int, ...]
    reason: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)} ({self.reason})"


def check_coverage(param_groups: Sequence[Mapping[str, Any]], strict: bool, first: int = 0) -> None:
    """Warn if less than `LEAST_SHARE` of the elements of matrices are preconditioned.

    Parameter groups with ``precondition=False`` do not count, nor do vectors, unless they are long enough for
    flat shards. The message names the parameters that are left out.

    Args:
        strict: raise instead of warning.  first: position of the first of these parameter groups.

    Raises:
        ValueError: the share is too small and `strict` is set.
    """
    left_out: list[LeftOut] = []
    preconditioned = 0
    for position, group in enumerate(param_groups, first):
        config, names = Config.of(group), group.get("param_names")
        for i, p in enumerate(group["params"] if config.precondition else ()):
            if blocking_of(p.shape, config).grids:
                preconditioned += math.prod(p.shape)
            elif reason := _reason(p, config):
                name = names[i] if names else parameter_name(position, i)
                left_out.append(LeftOut(name, tuple(p.shape), reason))
    whole = preconditioned + sum(param.elements for param in left_out)
    if preconditioned >= LEAST_SHARE * whole:
        return
    left_out.sort(key=lambda param: param.elements, reverse=True)
    named = "; ".join(map(str, left_out[:NAMED])) + (" and more" if len(left_out) > NAMED else "")
    message = (
        f"KrADagrad: {preconditioned / whole:.0%} of the elements of matrices are preconditioned; left out: "
        f"{named}. Groups with `precondition=False` do not count"
    )
    if strict:
        raise ValueError(message)
    warn(message)


def has_matrices(group: Mapping[str, Any]) -> bool:
    """Return True if any parameter of a group has two dims or more."""
    return any(p.ndim > 1 for p in group["params"])


def check_not_flattened(position: int, group: Mapping[str, Any]) -> None:
    """Raise ValueError for a group of matrices in whose place there is one flat vector now.

    DeepSpeed's vector is no `torch.nn.Parameter`, unlike the bias of a group that its matrices have left.
    """
    params = group["params"]
    if len(params) == 1 and params[0].ndim == 1 and not isinstance(params[0], nn.Parameter):
        raise ValueError(
            f"KrADagrad: parameter group {position} must keep its matrices, got a flat vector "
            f"{list(params[0].shape)} in their place, as of DeepSpeed's ZeRO; `process_group` or "
            "torch.distributed.fsdp.fully_shard divides the state among ranks"
        )


def _reason(p: Tensor, config: Config) -> str | None:
    """Return why a parameter has no blocks; None for a vector or an empty tensor, which needs none."""
    sides = [size for size in p.shape if size != 1]
    if len(sides) < 2:
        flat = "one-dimensional: a flat shard, as of ZeRO or FullyShardedDataParallel, has no blocks"
        return flat if p.numel() >= FLAT else None
    if p.numel() == 0:
        return None
    if sum(size != 1 for size in p.shape[config.batch_dims :]) < 2:
        return "`batch_dims` leaves vectors"
    return "all sides are longer than `max_factor_dim`"
