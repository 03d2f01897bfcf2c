"""Health of an optimizer's factors and roots, read asynchronously or at once.

::

    reading = AsyncDiagnostics(optimizer)   the work is put in the device's queue; the host goes on
    ...                                     steps
    if reading.ready():
        print(reading.result())             no wait

The values cost a step no measurable time: the ops for roots and updates compute them anyway.

For X = F F^T with the eigenvalues l1 <= ... <= ld::

    ld <= min(|X|_F, largest row sum of |X|)
    l1 >= 1 / (1/l1 + ... + 1/ld) = 1 / tr(X^-1) = 1 / |F^-1|_F^2

Both bounds are computed in float64, so that rounding is far smaller than their slack.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import linalg, polar
from .backends import scalars as columns
from .backends.base import FALLBACKS, REFUSALS, RESIDUAL, RMS, WEIGHT, WHITENED
from .state import SCALARS

State = Mapping[str, Tensor]
"""``optimizer.state[p]``; a sharded optimizer has block tensors in pieces there."""


class Reduction(NamedTuple):
    """How many values become one: the function, the result for no values, and True for whole numbers."""

    join: Callable[[Tensor], Tensor]
    none: float
    counts: bool = False


STEPS, COUNT = Reduction(torch.amax, 0.0, counts=True), Reduction(torch.sum, 0.0, counts=True)
SMALLEST, LARGEST = Reduction(torch.amin, math.inf), Reduction(torch.amax, -math.inf)

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
"""The measures of a parameter group in the order of a row; docs/diagnostics.md defines them."""

SLICE_SHARE = 16
"""Slices of factors are this many times smaller than those of a refresh, as they are copied in float64."""


class _HostCopy:
    """A copy of a tensor on its way to the host, in the order of its device's current stream."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self._host = tensor.detach().to("cpu", copy=True)
            return
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._host.copy_(tensor.detach(), non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(tensor.device))

    def ready(self) -> bool:
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> Tensor:
        if self._event is not None:
            self._event.synchronize()
        return self._host


class AsyncDiagnostics:
    """The measures of an optimizer at the time of construction, which does not wait for the device.

    On CUDA devices, work and copy are queued on the current streams: they see the effect of everything queued
    before, and of nothing queued later. On other devices the host does the work or waits for it. Construct it
    between two steps, not during graph capture.

    Args:
        optimizer: a KrADagrad, or a wrapper with its `param_groups` and `state`.
        extra: one-element tensors to copy along, such as a loss, by their names in `metrics`.

    Raises:
        TypeError: `optimizer` is no KrADagrad, or `extra` has a value that is no tensor.
        ValueError: `extra` has a tensor that does not have exactly one element.
    """

    @torch.no_grad()
    def __init__(self, optimizer: Optimizer, extra: Mapping[str, Tensor] | None = None) -> None:
        _check(optimizer, extra or {})
        groups = optimizer.param_groups
        self._names = _names([group.get("name") for group in groups])
        rows = [
            measure_group(group, [optimizer.state[p] for p in group["params"] if optimizer.state.get(p)])
            for group in groups
        ]
        devices = dict.fromkeys(device for by_device in rows for device in by_device)
        self._rows = [
            _HostCopy(
                torch.stack([(by_device.get(device) or MetricsRow(device)).row() for by_device in rows])
            )
            for device in devices
        ]
        self._extra = {name: _HostCopy(tensor.reshape(())) for name, tensor in (extra or {}).items()}

    def ready(self) -> bool:
        """Return True if `result` and `metrics` will not wait."""
        return all(copy.ready() for copy in [*self._rows, *self._extra.values()])

    def result(self) -> list[dict[str, float]]:
        """Return one dict with all `MEASURES` for every parameter group; see `read_diagnostics`."""
        rows = torch.stack([copy.wait() for copy in self._rows])
        return [
            {name: _value(name, rows[:, i, j]) for j, name in enumerate(MEASURES)}
            for i in range(rows.shape[1])
        ]

    def metrics(self, prefix: str = "kradagrad") -> dict[str, float]:
        """Return all numbers in one dict for loggers: ``{prefix}/{group}/{measure}``, and those of `extra`.

        A parameter group is called by its ``name`` if no other has it, else ``group0``, ``group1``, ...
        Measures that it does not have, NaN in `result`, are left out.
        """
        numbers = {
            f"{prefix}/{group}/{name}": float(value)
            for group, measures in zip(self._names, self.result(), strict=True)
            for name, value in measures.items()
            if not math.isnan(value)
        }
        return numbers | {name: float(copy.wait()) for name, copy in self._extra.items()}


def read_diagnostics(optimizer: Optimizer) -> list[dict[str, float]]:
    """Read the measures of `AsyncDiagnostics` at once, waiting for the device.

    Counts are since the start of training. Eigenvalues, condition and residual are of blocks whose factors
    have been updated. In a sharded optimizer, measures of blocks are of this rank's blocks.

    Returns:
        One dict for every parameter group.

        - ``steps``: number of steps of the parameter group.
        - ``non_finite_gradients``: gradients skipped because they had NaN or Inf, over all parameters.
        - ``gradient_spikes``: gradients scaled down because they were far larger than usual.
        - ``graft_fallbacks``: preconditioned updates that were zero or not finite and were replaced by the
          grafting method's update.
        - ``factor_fallbacks``: factor updates whose Cholesky failed and was replaced by a QR decomposition,
          or that were left out because their result was not finite.
        - ``roots_kept``: refreshes of a block's root that failed their check.
        - ``smallest_eigenvalue``, ``largest_eigenvalue``: certified bounds for every X = F F^T, below and
          above; 0 below where an F is singular, infinite above where one is not finite.
        - ``condition``: the largest quotient of a factor's two bounds; infinite where the lower one is 0.
        - ``smallest_whitened``, ``largest_whitened``: of the mean squares of the blocks' last whitened
          gradients, which are near 1 where the factors fit the gradients.
        - ``root_residual``: the largest |P^p - X|_F / |X|_F of the last computed roots, accepted or not.
        - ``smallest_graft_ratio``, ``largest_graft_ratio``: of the multipliers that gave parameters' last
          preconditioned updates their lengths.

        NaN is the value of a measure that a parameter group does not have: it has no block with an updated
        factor, or no preconditioned update.

    Raises:
        TypeError: as for `AsyncDiagnostics`.
    """
    return AsyncDiagnostics(optimizer).result()


def _check(optimizer: Optimizer, extra: Mapping[str, Tensor]) -> None:
    groups = getattr(optimizer, "param_groups", [{}])
    if not all("root_every" in group for group in groups):
        raise TypeError(f"KrADagrad: `optimizer` must be a KrADagrad, got {type(optimizer).__name__}")
    for name, tensor in extra.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"KrADagrad: `extra[{name!r}]` must be a tensor, got {type(tensor).__name__}")
        if tensor.numel() != 1:
            raise ValueError(
                f"KrADagrad: `extra[{name!r}]` must be a one-element tensor, got {list(tensor.shape)}"
            )


def _names(names: list[str | None]) -> list[str]:
    """Replace missing names and those of several parameter groups by ``group0``, ``group1``, ..."""
    times = Counter(names)
    return [
        name if name is not None and times[name] == 1 else f"group{position}"
        for position, name in enumerate(names)
    ]


def _value(name: str, shares: Tensor) -> float:
    """Return one measure from its values of all devices ``[devices]``, on the host."""
    reduction = MEASURES[name]
    value = float(reduction.join(shares))
    if reduction.counts:
        return int(value)
    return math.nan if value == reduction.none else value


class MetricsRow:
    """The row of a parameter group's measures on one device, while values are added."""

    def __init__(self, device: torch.device) -> None:
        self._values = {
            name: torch.full((), reduction.none, dtype=torch.float64, device=device)
            for name, reduction in MEASURES.items()
        }

    def add(self, name: str, values: Tensor, counted: Tensor | None = None) -> None:
        """Add values to a measure, all of them or only those that are `counted` (bool, of their shape)."""
        reduction, values = MEASURES[name], values.double()
        if counted is not None:
            values = torch.where(counted, values, reduction.none)
        self._values[name] = reduction.join(torch.cat((self._values[name][None], values.flatten())))

    def row(self) -> Tensor:
        """Return all measures, ``[len(MEASURES)]`` float64."""
        return torch.stack(list(self._values.values()))


def measure_group(param_group: Mapping[str, Any], states: Iterable[State]) -> dict[torch.device, MetricsRow]:
    """Compute the measures of one parameter group on every device that it has state on.

    Args:
        states: the states of its parameters that have one.
    """
    step = param_group["step"]
    step = step if isinstance(step, Tensor) else torch.tensor(step, device="cpu")
    rows: dict[torch.device, MetricsRow] = {}

    def on(device: torch.device) -> MetricsRow:
        if device not in rows:
            rows[device] = MetricsRow(device)
        return rows[device]

    on(step.device).add("steps", step)
    for state in states:
        scalars = state[SCALARS]
        row, ratio = on(scalars.device), scalars[:, columns.RATIO]
        row.add("non_finite_gradients", scalars[:, columns.SKIPPED])
        row.add("gradient_spikes", scalars[:, columns.SPIKES])
        row.add("graft_fallbacks", scalars[:, columns.FALLBACKS])
        for name in ("smallest_graft_ratio", "largest_graft_ratio"):
            row.add(name, ratio, ratio > 0)
        for of_blocks in _batches(state):
            _add_blocks(row, *of_blocks)
    return rows


def _batches(state: State) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield factors, their statistics and the roots' statistics of this rank, per block grid and mode."""
    for key in state:
        if key.startswith("factor_stats_"):
            place = key.removeprefix("factor_stats_")
            tensors = (state[f"factor_{place}"], state[key], state[f"root_stats_{place}"])
            for of_blocks in zip(*(getattr(tensor, "tensors", [tensor]) for tensor in tensors), strict=True):
                grid = of_blocks[1].ndim - 1  # sharded states keep the dims of the block grid
                factors, factor_stats, root_stats = (tensor.flatten(0, grid - 1) for tensor in of_blocks)
                yield factors, factor_stats, root_stats


def _add_blocks(row: MetricsRow, factors: Tensor, factor_stats: Tensor, root_stats: Tensor) -> None:
    row.add("factor_fallbacks", factor_stats[:, FALLBACKS])
    row.add("roots_kept", root_stats[:, REFUSALS])
    counted, whitened = factor_stats[:, WEIGHT] > 0, factor_stats[:, WHITENED]
    for name in ("smallest_whitened", "largest_whitened"):
        row.add(name, whitened, whitened > 0)
    row.add("root_residual", root_stats[:, RESIDUAL], counted)
    length = polar.slice_length(factors, SLICE_SHARE)
    tensors = (factors, counted, factor_stats[:, RMS])
    for stored, is_counted, rms in zip(*(torch.split(tensor, length) for tensor in tensors), strict=True):
        square = linalg.unpack_upper(stored, linalg.side_of(stored.shape[-1])) if stored.ndim == 2 else stored
        for name, values in factor_bounds(square * rms[:, None, None]).items():
            row.add(name, values, is_counted)


def factor_bounds(factors: Tensor) -> dict[str, Tensor]:
    """Return bounds of the eigenvalues and of the condition of X = F F^T, for every factor F.

    Args:
        factors: F ``[N, d, d]``, floating, times the root mean square of the gradients that they have seen;
            the product has no units.

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
