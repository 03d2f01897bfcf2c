"""Health of an optimizer's factors and roots, read without holding up the steps, or at once.

::

    reading = Reading(optimizer)     the work is put in the device's queue; the host goes on
    ...                              steps
    if reading.ready():
        print(reading.result())      no wait

Keeping what is read costs a step nothing that counts: it is made where roots and updates are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from .measures import MEASURES, Tally, tally_group


class _Arrival:
    """A tensor's values on their way to the host, in the order of its device's current stream."""

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


class Reading:
    """The measures of an optimizer as they are when this is made, which does not wait for the device.

    On CUDA devices, work and copy are in the order of their current streams: what was queued before counts,
    what is queued later does not. On others the host does or awaits the work. It is to be made between two
    steps, not while a graph is captured.

    Args:
        optimizer: a KrADagrad, or a wrapper that shows its `param_groups` and `state`.
        also: one-element tensors to bring along, such as a loss, by the names that they get in `metrics`.

    Raises:
        TypeError: `optimizer` is another one, or `also` holds what is no tensor.
        ValueError: `also` holds a tensor of more or fewer elements.
    """

    @torch.no_grad()
    def __init__(self, optimizer: Optimizer, also: Mapping[str, Tensor] | None = None) -> None:
        _check(optimizer, also or {})
        groups = optimizer.param_groups
        self._names = _names([group.get("name") for group in groups])
        tallies = [
            tally_group(group, [optimizer.state[p] for p in group["params"] if optimizer.state.get(p)])
            for group in groups
        ]
        devices = dict.fromkeys(device for own in tallies for device in own)
        self._rows = [
            _Arrival(torch.stack([(own.get(device) or Tally(device)).row() for own in tallies]))
            for device in devices
        ]
        self._also = {name: _Arrival(tensor.reshape(())) for name, tensor in (also or {}).items()}

    def ready(self) -> bool:
        """Whether `result` and `metrics` return without a wait."""
        return all(arrival.ready() for arrival in [*self._rows, *self._also.values()])

    def result(self) -> list[dict[str, float]]:
        """One dict for every parameter group, with all of `measures.MEASURES`; see `report`."""
        rows = torch.stack([arrival.wait() for arrival in self._rows])
        return [
            {name: _value(name, rows[:, i, j]) for j, name in enumerate(MEASURES)}
            for i in range(rows.shape[1])
        ]

    def metrics(self, prefix: str = "kradagrad") -> dict[str, float]:
        """All numbers in one dict, for loggers: ``{prefix}/{group}/{measure}``, and those of `also`.

        A group goes by its ``name``, where the parameter group has one of its own, else as ``group0``,
        ``group1``, ... What a group does not have, NaN in `result`, is left out.
        """
        found = {
            f"{prefix}/{group}/{name}": float(value)
            for group, own in zip(self._names, self.result(), strict=True)
            for name, value in own.items()
            if not math.isnan(value)
        }
        return found | {name: float(arrival.wait()) for name, arrival in self._also.items()}


def report(optimizer: Optimizer) -> list[dict[str, float]]:
    """A `Reading` at once, which waits for the device.

    Counts are since the start of training. Eigenvalues, condition and residual are of blocks whose factors
    have been updated. Of a sharded optimizer, what is told of blocks is told of this rank's.

    Returns:
        One dict for every parameter group.

        - ``steps``: of the group.
        - ``non_finite_gradients``: gradients skipped because they held NaN or Inf, over all parameters.
        - ``gradient_spikes``: gradients scaled down because they were far larger than usual.
        - ``graft_fallbacks``: preconditioned updates that were zero or not finite, so that the grafting
          method's was taken.
        - ``factor_fallbacks``: factor updates whose Cholesky failed, so that a QR decomposition took its
          place, or that were left out because their result was not finite.
        - ``roots_kept``: refreshes of a block's root that failed their check.
        - ``smallest_eigenvalue``, ``largest_eigenvalue``: certified bounds for every X = F F^T, below and
          above; 0 below where an F is singular, infinite above where one is not finite.
        - ``condition``: the largest quotient of a factor's two bounds; infinite where the lower one is 0.
        - ``smallest_whitened``, ``largest_whitened``: of the mean squares of the blocks' last whitened
          gradients, which are near 1 where the factors fit the gradients.
        - ``root_residual``: the largest |P^p - X|_F / |X|_F of the last roots made, accepted or not.
        - ``smallest_graft_ratio``, ``largest_graft_ratio``: of the factors that gave parameters' last
          preconditioned updates their lengths.

        NaN stands for what a group does not have: no block with an updated factor, no preconditioned update.

    Raises:
        TypeError: as `Reading`.
    """
    return Reading(optimizer).result()


def _check(optimizer: Optimizer, also: Mapping[str, Tensor]) -> None:
    groups = getattr(optimizer, "param_groups", [{}])
    if not all("root_every" in group for group in groups):
        raise TypeError(f"KrADagrad: `optimizer` must be a KrADagrad, got {type(optimizer).__name__}")
    for name, tensor in also.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"KrADagrad: `also[{name!r}]` must be a tensor, got {type(tensor).__name__}")
        if tensor.numel() != 1:
            raise ValueError(
                f"KrADagrad: `also[{name!r}]` must be a one-element tensor, got {list(tensor.shape)}"
            )


def _names(given: list[str | None]) -> list[str]:
    """The groups' own names where they have one that no other has."""
    times = Counter(given)
    return [
        name if name is not None and times[name] == 1 else f"group{position}"
        for position, name in enumerate(given)
    ]


def _value(name: str, shares: Tensor) -> float:
    """One measure from its shares ``[devices]``, on the host."""
    fold = MEASURES[name]
    value = float(fold.join(shares))
    if fold.counts:
        return int(value)
    return math.nan if value == fold.none else value
