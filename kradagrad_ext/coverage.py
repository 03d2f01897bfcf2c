"""What of a model is preconditioned: options that would do nothing are refused; what is left out is told."""

from __future__ import annotations

import difflib
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .config import OPTIONS, Config, parameter_name
from .plan import plan_parameter

LEAST_SHARE = 0.9
"""Of the elements of matrices that is to be preconditioned."""

FLAT = 1 << 16
"""Elements from which a vector may be a model's weights, put in a row by a trainer."""

NAMED = 3
"""Parameters that a message names, the largest first."""


def check_options(position: int, group: Mapping[str, Any], config: Config) -> None:
    """Raise ValueError for an option of a parameter group that none of its parameters can take.

    Args:
        position: of the group.
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
    """Warn of the line that called the optimizer, which torch has wrapped."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(("kradagrad_ext.", "torch.")):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth)


@dataclass(frozen=True)
class LeftOut:
    """A parameter that has the size of a matrix and takes the grafting method alone."""

    name: str
    shape: tuple[int, ...]
    reason: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)} ({self.reason})"


def check_coverage(param_groups: Sequence[Mapping[str, Any]], strict: bool, first: int = 0) -> None:
    """See that most elements of matrices are preconditioned, where that is not turned off.

    Vectors do not count, unless they are so long that they may be weights in a row.

    Args:
        strict: whether to raise.  first: position of the first of these groups.

    Raises:
        ValueError: they are not, and `strict`; else it is a warning. The message says what is left out.
    """
    left_out: list[LeftOut] = []
    preconditioned = 0
    for position, group in enumerate(param_groups, first):
        config, names = Config.of(group), group.get("param_names")
        for i, p in enumerate(group["params"] if config.precondition else ()):
            if plan_parameter(p.shape, config).regions:
                preconditioned += math.prod(p.shape)
            elif reason := _reason(p, config):
                name = names[i] if names else parameter_name(position, i)
                left_out.append(LeftOut(name, tuple(p.shape), reason))
    whole = preconditioned + sum(own.elements for own in left_out)
    if preconditioned >= LEAST_SHARE * whole:
        return
    left_out.sort(key=lambda own: own.elements, reverse=True)
    named = "; ".join(map(str, left_out[:NAMED])) + (" and more" if len(left_out) > NAMED else "")
    message = (
        f"KrADagrad: {preconditioned / whole:.0%} of the elements of matrices are preconditioned; left out: "
        f"{named}. Groups with `precondition=False` do not count"
    )
    if strict:
        raise ValueError(message)
    warn(message)


def _reason(p: Tensor, config: Config) -> str | None:
    """Why a parameter without blocks has none; None for one of which nothing else is expected."""
    sides = [size for size in p.shape if size != 1]
    if len(sides) < 2:
        flat = "one-dimensional: a flat shard, as of ZeRO or FullyShardedDataParallel, has no blocks"
        return flat if p.numel() >= FLAT else None
    if p.numel() == 0:
        return None
    if sum(size != 1 for size in p.shape[config.batch_dims :]) < 2:
        return "`batch_dims` leaves vectors"
    return "all sides are longer than `max_factor_dim`"
