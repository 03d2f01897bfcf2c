"""Plans are made once: they know all of a call's tensors but where these lie.

A plan is made from `Symbol`s, tensors without storage, whose addresses are numbers of their own. Its table
with the real addresses is made from it by one addition, when tensors have moved, and uploaded.
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
"""A symbol's address is its number from this bit on; no tensor is as large, no other word of a table."""
OFFSET_MASK = (1 << ADDRESS_BITS) - 1
ALIGNMENT = 16
MOST_KEPT = 128
"""Plans that are kept."""
MOST_TABLES = 4
"""Tables of one plan that are kept: for tensors that change places with each other."""


class Symbol(NamedTuple):
    """What a plan knows of a tensor, with the methods of one."""

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


class Symbols:
    """The tensors of a call, numbered as they come; one that comes again keeps its number."""

    def __init__(self) -> None:
        self._known: dict[int, Symbol] = {}
        self.addresses: list[int] = []

    def of(self, tensor: Tensor) -> Symbol:
        known = self._known.get(id(tensor))
        if known is None:
            address = tensor.data_ptr()
            own = (tensor.dtype, tuple(tensor.shape), tensor.stride(), address % ALIGNMENT)
            known = self._known[id(tensor)] = Symbol(len(self.addresses), *own)
            self.addresses.append(address)
        return known

    def all(self, tensors: Iterable[Tensor]) -> tuple[Symbol, ...]:
        return tuple(map(self.of, tensors))


class Table(NamedTuple):
    """On a device; and the host's memory that it is copied from, which a captured graph copies again."""

    device: Tensor
    pinned: Tensor


@dataclass
class Kept:
    """A plan, and its latest tables by device, stream and addresses."""

    plan: Plan
    tables: OrderedDict[Hashable, Table] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.words = torch.tensor(self.plan.words, dtype=torch.int64, device="cpu")
        self.places = (self.words.view(-1) > OFFSET_MASK).nonzero().view(-1)
        symbolic = self.words.view(-1)[self.places]
        self.numbers = (symbolic >> ADDRESS_BITS) - 1
        self.offsets = symbolic & OFFSET_MASK

    def table(self, addresses: list[int], device: torch.device) -> Table:
        """The words with real addresses, on their way to the device."""
        words = self.words.clone()
        aligned = [address - address % ALIGNMENT for address in addresses]
        starts = torch.tensor(aligned, dtype=torch.int64, device="cpu")
        words.view(-1)[self.places] = starts[self.numbers] + self.offsets
        pinned = words.pin_memory() if device.type == "cuda" else words
        return Table(pinned.to(device, non_blocking=True), pinned)


_KEPT: OrderedDict[Hashable, Kept] = OrderedDict()
_CAPTURED: list[Table] = []
"""What CUDA graphs use: for ever, since a graph may be replayed at any time."""
_LOCK = threading.Lock()


def forget() -> None:
    """Make all plans anew: what they were made from has changed."""
    _KEPT.clear()


def plan_of(
    key: Hashable, addresses: list[int], device: torch.device, make: Callable[[], Plan]
) -> tuple[Plan, Tensor]:
    """The plan of this key, and its table for these addresses on a device's current stream."""
    stream, capturing = 0, False
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device).cuda_stream
        capturing = torch.cuda.is_current_stream_capturing()
    place = (device, stream, tuple(addresses))
    with _LOCK:
        kept = _KEPT.pop(key, None) or Kept(make())
        _keep(_KEPT, key, kept, MOST_KEPT)
        known = kept.tables.pop(place, None)
        table = known or kept.table(addresses, device)
        if capturing:
            _CAPTURED.append(table)
        if known or not capturing:  # an upload that is captured happens when the graph runs, not before
            _keep(kept.tables, place, table, MOST_TABLES)
    return kept.plan, table.device


def _keep(kept: OrderedDict[Hashable, Any], key: Hashable, value: Any, most: int) -> None:  # noqa: ANN401
    """As the latest, with at most so many in all."""
    kept[key] = value
    if len(kept) > most:
        kept.popitem(last=False)


def run(
    key: Hashable,
    symbols: Symbols,
    make: Callable[[], Plan],
    taking_part: Tensor,
    scalars: Mapping[str, Any],
) -> None:
    """Launch the plan that `key` names, made from `symbols` where it is not kept."""
    plan, table = plan_of(key, symbols.addresses, taking_part.device, make)
    launch.run(plan, table, taking_part, scalars)
