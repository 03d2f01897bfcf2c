"""What can be told of factors, roots and updates where they lie, without the host looking at a value.

For X = F F^T with the eigenvalues l1 <= ... <= ld::

    ld <= min(|X|_F, largest row sum of |X|)
    l1 >= 1 / (1/l1 + ... + 1/ld) = 1 / tr(X^-1) = 1 / |F^-1|_F^2

Both are worked out in float64, so that rounding is far below what they leave open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import packing, polar
from .backends import scalars as columns
from .backends.base import FALLBACKS, REFUSALS, RESIDUAL, RMS, WEIGHT, WHITENED

State = Mapping[str, Tensor]
"""What ``optimizer.state[p]`` holds of a parameter; of a sharded optimizer, block tensors in pieces."""


class Fold(NamedTuple):
    """How many values become one, what none of them give, and whether it is a whole number."""

    join: Callable[[Tensor], Tensor]
    none: float
    counts: bool = False


STEPS, COUNT = Fold(torch.amax, 0.0, counts=True), Fold(torch.sum, 0.0, counts=True)
SMALLEST, LARGEST = Fold(torch.amin, math.inf), Fold(torch.amax, -math.inf)

MEASURES = {
    "steps": STEPS,
    "non_finite_gradients": COUNT,
    "gradient_spikes": COUNT,
    "graft_fallbacks": COUNT,
    "factor_fallbacks": COUNT,
    "roots_kept": COUNT,
    "smallest_eigenvalue": SMALLEST,
    "largest_eigenvalue": LARGEST,
    "condition": LARGEST,
    "smallest_whitened": SMALLEST,
    "largest_whitened": LARGEST,
    "root_residual": LARGEST,
    "smallest_graft_ratio": SMALLEST,
    "largest_graft_ratio": LARGEST,
}
"""Of a parameter group, in the order of a row; docs/diagnostics.md says what each means."""

SLICE_SHARE = 16
"""Slices are so many times smaller than those of a refresh: what is made of them is in float64."""


class Tally:
    """A row that is being worked out on one device."""

    def __init__(self, device: torch.device) -> None:
        self._values = {
            name: torch.full((), fold.none, dtype=torch.float64, device=device)
            for name, fold in MEASURES.items()
        }

    def add(self, name: str, values: Tensor, counted: Tensor | None = None) -> None:
        """Take in some values of a measure, those that are `counted` (bool, of their shape)."""
        fold, values = MEASURES[name], values.double()
        if counted is not None:
            values = torch.where(counted, values, fold.none)
        self._values[name] = fold.join(torch.cat((self._values[name][None], values.flatten())))

    def row(self) -> Tensor:
        """``[len(MEASURES)]`` float64."""
        return torch.stack(list(self._values.values()))


def tally_group(param_group: Mapping[str, Any], states: Iterable[State]) -> dict[torch.device, Tally]:
    """The measures of one parameter group on every device that it lies on.

    Args:
        states: of those of its parameters that have one.
    """
    step = param_group["step"]
    step = step if isinstance(step, Tensor) else torch.tensor(step, device="cpu")
    tallies: dict[torch.device, Tally] = {}

    def on(device: torch.device) -> Tally:
        if device not in tallies:
            tallies[device] = Tally(device)
        return tallies[device]

    on(step.device).add("steps", step)
    for state in states:
        scalars = state["scalars"]
        tally, ratio = on(scalars.device), scalars[:, columns.RATIO]
        tally.add("non_finite_gradients", scalars[:, columns.SKIPPED])
        tally.add("gradient_spikes", scalars[:, columns.SPIKES])
        tally.add("graft_fallbacks", scalars[:, columns.FALLBACKS])
        for name in ("smallest_graft_ratio", "largest_graft_ratio"):
            tally.add(name, ratio, ratio > 0)
        for of_blocks in _batches(state):
            _add_blocks(tally, *of_blocks)
    return tallies


def _batches(state: State) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Factors, their statistics and the roots' of the blocks on this rank, region by region, mode by mode."""
    for key in state:
        if key.startswith("factor_stats_"):
            place = key.removeprefix("factor_stats_")
            tensors = (state[f"factor_{place}"], state[key], state[f"root_stats_{place}"])
            for of_blocks in zip(*(getattr(tensor, "parts", [tensor]) for tensor in tensors), strict=True):
                grid = of_blocks[1].ndim - 1  # in which the blocks of a sharded state lie
                factors, factor_stats, root_stats = (tensor.flatten(0, grid - 1) for tensor in of_blocks)
                yield factors, factor_stats, root_stats


def _add_blocks(tally: Tally, factors: Tensor, factor_stats: Tensor, root_stats: Tensor) -> None:
    tally.add("factor_fallbacks", factor_stats[:, FALLBACKS])
    tally.add("roots_kept", root_stats[:, REFUSALS])
    counted, whitened = factor_stats[:, WEIGHT] > 0, factor_stats[:, WHITENED]
    for name in ("smallest_whitened", "largest_whitened"):
        tally.add(name, whitened, whitened > 0)
    tally.add("root_residual", root_stats[:, RESIDUAL], counted)
    length = polar.slice_length(factors, SLICE_SHARE)
    pairs = zip(*(torch.split(own, length) for own in (factors, counted, factor_stats[:, RMS])), strict=True)
    for whole, taken, rms in pairs:
        square = packing.unpack_upper(whole, packing.side_of(whole.shape[-1])) if whole.ndim == 2 else whole
        for name, values in factor_bounds(square * rms[:, None, None]).items():
            tally.add(name, values, taken)


def factor_bounds(factors: Tensor) -> dict[str, Tensor]:
    """The measures of every factor.

    Args:
        factors: F ``[N, d, d]``, floating, times the root mean square of the gradients that they have seen,
            which leaves them no units; eigenvalues are those of X = F F^T.

    Returns:
        ``[N]`` float64 each: ``smallest_eigenvalue``, a lower bound, 0 where F is singular;
        ``largest_eigenvalue``, an upper bound; ``condition``, their quotient. The last two are infinite where
        F is not finite.
    """
    f = factors.double()
    x = f @ f.mT
    largest = torch.minimum(torch.linalg.matrix_norm(x), x.abs().sum(-1).amax(-1))
    inverse, failed = torch.linalg.inv_ex(f)
    inverse_trace = inverse.square().sum((-2, -1))
    definite = (failed == 0) & inverse_trace.isfinite() & largest.isfinite()
    return {
        "smallest_eigenvalue": torch.where(definite, 1 / inverse_trace, 0),
        "largest_eigenvalue": largest.nan_to_num(nan=math.inf, posinf=math.inf),
        "condition": torch.where(definite, largest * inverse_trace, math.inf),
    }
