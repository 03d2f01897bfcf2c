"""What can be told of factors, roots and updates where they lie, without the host looking at a value.

For a symmetric X with the eigenvalues l1 <= ... <= ld and, where it is positive definite, X = L L^T::

    ld <= min(|X|_F, largest row sum of |X|)
    l1 >= 1 / (1/l1 + ... + 1/ld) = 1 / tr(X^-1) = 1 / |L^-1|_F^2

Both are worked out in float64, so that rounding is far below what they leave open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import grafting, packing, roots
from .config import Config

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
    "graft_fallbacks": COUNT,
    "factor_fallbacks": COUNT,
    "roots_kept": COUNT,
    "smallest_eigenvalue": SMALLEST,
    "largest_eigenvalue": LARGEST,
    "condition": LARGEST,
    "asymmetry": LARGEST,
    "root_residual": LARGEST,
    "smallest_graft_ratio": SMALLEST,
    "largest_graft_ratio": LARGEST,
}
"""Of a parameter group, in the order of a row; docs/diagnostics.md says what each means."""

SLICE_SHARE = 8
"""Slices are so many times smaller than those of a refresh, and twice that for triangles to be made whole."""


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
    config, step = Config.of(param_group), torch.as_tensor(param_group["step"])
    tallies: dict[torch.device, Tally] = {}

    def on(device: torch.device) -> Tally:
        if device not in tallies:
            tallies[device] = Tally(device)
        return tallies[device]

    on(step.device).add("steps", step)
    for state in states:
        scalars = state["scalars"]
        tally, ratio = on(scalars.device), scalars[grafting.RATIO]
        tally.add("non_finite_gradients", scalars[grafting.SKIPPED])
        tally.add("graft_fallbacks", scalars[grafting.FALLBACKS])
        for name in ("smallest_graft_ratio", "largest_graft_ratio"):
            tally.add(name, ratio, ratio > 0)
        for factors, statistics, checks in _batches(state):
            _add_blocks(tally, factors, statistics, checks, config)
    return tallies


def _batches(state: State) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Factors, statistics and checks of the blocks on this rank, region by region and mode by mode."""
    for key in state:
        if key.startswith("factor_"):
            place = key.removeprefix("factor_")
            tensors = (state[key], state[f"statistics_{place}"], state[f"checks_{place}"])
            for own in zip(*(getattr(tensor, "parts", [tensor]) for tensor in tensors), strict=True):
                grid = own[1].ndim - 1  # in which the blocks of a sharded state lie
                factors, statistics, checks = (tensor.flatten(0, grid - 1) for tensor in own)
                yield factors, statistics, checks


def _add_blocks(tally: Tally, factors: Tensor, statistics: Tensor, checks: Tensor, config: Config) -> None:
    tally.add("factor_fallbacks", statistics[:, 1])
    tally.add("roots_kept", checks[:, roots.REFUSALS])
    counted = statistics[:, 0] != 0
    tally.add("root_residual", checks[:, roots.RESIDUAL], counted)
    for part in roots.slices(factors, factorised=False, share=SLICE_SHARE * (1 + config.packed)):
        whole = factors[part]
        whole = packing.unpack(whole, packing.side(whole)) if config.packed else whole
        for name, values in factor_bounds(whole).items():
            tally.add(name, values, counted[part])


def factor_bounds(factors: Tensor) -> dict[str, Tensor]:
    """The measures of every factor.

    Args:
        factors: X ``[N, d, d]``, floating. Eigenvalues are those of the symmetric part.

    Returns:
        ``[N]`` float64 each: ``smallest_eigenvalue``, a lower bound, 0 where X is not positive definite;
        ``largest_eigenvalue``, an upper bound; ``condition``, their quotient; ``asymmetry``,
        |X - X^T|_F / |X|_F. The last three are infinite where X is not finite.
    """
    x = factors.double()
    size = _frobenius(x)
    asymmetry = _frobenius(x - x.mT) / size.clamp_min(torch.finfo(x.dtype).tiny)
    x = (x + x.mT) / 2
    largest = torch.minimum(_frobenius(x), x.abs().sum(-1).amax(-1))
    lower, failed = torch.linalg.cholesky_ex(x)
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x)
    inverse_trace = torch.linalg.solve_triangular(lower, identity, upper=False).square().sum((-2, -1))
    definite = (failed == 0) & inverse_trace.isfinite()
    smallest = torch.where(definite, 1 / inverse_trace, 0)
    condition = torch.where(definite, largest * inverse_trace, math.inf)
    return {
        "smallest_eigenvalue": smallest,
        "largest_eigenvalue": largest.nan_to_num(nan=math.inf, posinf=math.inf),
        "condition": condition,
        "asymmetry": asymmetry.nan_to_num(nan=math.inf, posinf=math.inf),
    }


def _frobenius(matrices: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1))
    return norms
