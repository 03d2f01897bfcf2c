"""Cache of plans: a plan depends on all properties of a call's tensors except their addresses.

A plan is made from `SymbolicTensor`s: tensors without storage, which have distinct symbolic addresses. When
tensors have moved, one addition makes the table with the real addresses from it, and the table is uploaded.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import launch
from .launch import Plan

ADDRESS_BITS = 44
"""Bit from which a spec's address contains its number; all sizes and other fields of a table are smaller."""
OFFSET_MASK = (1 << ADDRESS_BITS) - 1
ALIGNMENT = 16
MOST_PLANS = 128
"""Number of plans that are kept."""
MOST_TABLES = 4
"""Number of tables of one plan that are kept, for tensors that swap their memory."""


class SymbolicTensor(NamedTuple):
    """The properties of a tensor that a plan may use, with a tensor's methods."""

    number: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    misalignment: int

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def stride(self, dim: int | None = None) -> Any:  # noqa: ANN401
        return self.strides if dim is None else self.strides[dim]

    def numel(self) -> int:
        return math.prod(self.shape)

    def element_size(self) -> int:
        return self.dtype.itemsize

    def data_ptr(self) -> int:
        return ((self.number + 1) << ADDRESS_BITS) + self.misalignment


class SymbolicTensors:
    """The tensors of a call, numbered in the order of their first use."""

    def __init__(self) -> None:
        self._known: dict[int, SymbolicTensor] = {}
        self.addresses: list[int] = []

    def of(self, tensor: Tensor) -> SymbolicTensor:
        known = self._known.get(id(tensor))
        if known is None:
            address = tensor.data_ptr()
            layout = (tensor.dtype, tuple(tensor.shape), tensor.stride(), address % ALIGNMENT)
            known = self._known[id(tensor)] = SymbolicTensor(len(self.addresses), *layout)
            self.addresses.append(address)
        return known

    def all(self, tensors: Iterable[Tensor]) -> tuple[SymbolicTensor, ...]:
        return tuple(map(self.of, tensors))


class UploadedTable(NamedTuple):
    """A table on a device, and the host memory of its upload: a captured graph repeats the upload."""

    device: Tensor
    pinned: Tensor


@dataclass
class CachedPlan:
    """A plan, and its latest tables by device, stream and addresses."""

    plan: Plan
    tables: OrderedDict[Hashable, UploadedTable] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.entries = torch.tensor(self.plan.entries, dtype=torch.int64, device="cpu")
        self.pointers = (self.entries.view(-1) > OFFSET_MASK).nonzero().view(-1)
        symbolic = self.entries.view(-1)[self.pointers]
        self.numbers = (symbolic >> ADDRESS_BITS) - 1
        self.offsets = symbolic & OFFSET_MASK

    def table(self, addresses: list[int], device: torch.device) -> UploadedTable:
        """Return the entries with real addresses, and start their upload to the device."""
        entries = self.entries.clone()
        aligned = [address - address % ALIGNMENT for address in addresses]
        starts = torch.tensor(aligned, dtype=torch.int64, device="cpu")
        entries.view(-1)[self.pointers] = starts[self.numbers] + self.offsets
        pinned = entries.pin_memory() if device.type == "cuda" else entries
        return UploadedTable(pinned.to(device, non_blocking=True), pinned)


_PLANS: OrderedDict[Hashable, CachedPlan] = OrderedDict()
_CAPTURED: list[UploadedTable] = []
"""Tables that CUDA graphs use; they are never freed, since a graph may be replayed at any time."""
_LOCK = threading.Lock()


def forget() -> None:
    """Drop all plans, because something that they were made from has changed."""
    _PLANS.clear()


def plan_of(
    key: Hashable, addresses: list[int], device: torch.device, make: Callable[[], Plan]
) -> tuple[Plan, Tensor]:
    """Return the plan of this key, and its table for these addresses on a device's current stream."""
    stream, capturing = 0, False
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device).cuda_stream
        capturing = torch.cuda.is_current_stream_capturing()
    table_key = (device, stream, tuple(addresses))
    with _LOCK:
        cached = _PLANS.pop(key, None) or CachedPlan(make())
        _keep(_PLANS, key, cached, MOST_PLANS)
        known = cached.tables.pop(table_key, None)
        table = known or cached.table(addresses, device)
        if capturing:
            _CAPTURED.append(table)
        if known or not capturing:  # a captured upload runs only when the graph is replayed
            _keep(cached.tables, table_key, table, MOST_TABLES)
    return cached.plan, table.device


def _keep(kept: OrderedDict[Hashable, Any], key: Hashable, value: Any, most: int) -> None:  # noqa: ANN401
    """Add a value as the latest, and drop the oldest one if there are more than `most`."""
    kept[key] = value
    if len(kept) > most:
        kept.popitem(last=False)


def run(
    key: Hashable,
    specs: SymbolicTensors,
    make: Callable[[], Plan],
    taking_part: Tensor,
    scalars: Mapping[str, Any],
) -> None:
    """Launch the plan that `key` names; `make` makes it from `specs` if it is not kept."""
    plan, table = plan_of(key, specs.addresses, taking_part.device, make)
    launch.run(plan, table, taking_part, scalars)
