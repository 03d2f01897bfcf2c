"""One collective that carries boxes of many tensors from the ranks that hold them to those that need them.

All boxes for one rank lie one after the other in one buffer of bytes, whatever their dtypes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

ALIGNMENT = 16

# torch 2.13 gave it a new name.
all_gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor


@dataclass(frozen=True)
class Segment:
    """A box of the tensor number `slot`: `part` of it."""

    slot: int
    part: tuple[slice, ...]
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(part.stop - part.start for part in self.part)

    @property
    def bytes(self) -> int:
        return -(-math.prod(self.shape) * self.dtype.itemsize // ALIGNMENT) * ALIGNMENT


@dataclass
class Route:
    """What this rank sends to every other, and receives; both sides list a pair's segments in one order.

    Attributes:
        replicated: every rank gets the same, so that the buffer is sent once and not once a rank.
    """

    ranks: int
    replicated: bool = False
    sent: list[list[Segment]] = field(default_factory=list)
    received: list[list[Segment]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sent = [[] for _ in range(1 if self.replicated else self.ranks)]
        self.received = [[] for _ in range(self.ranks)]

    def start(
        self, sources: Sequence[Tensor], targets: Sequence[Tensor], group: dist.ProcessGroup
    ) -> Pending:
        """Pack and send; `Pending.finish` unpacks. `sources` and `targets`: by the segments' slots."""
        device = (sources or targets)[0].device
        outgoing, sizes = _buffer(self.sent, device)
        _copy(_views(outgoing, self.sent), [sources[s.slot][s.part] for s in itertools.chain(*self.sent)])
        incoming, expected = _buffer(self.received, device)
        if self.replicated:
            incoming, views, work = self._gather(outgoing, expected, group)
        else:
            views = _views(incoming, self.received)
            work = dist.all_to_all_single(incoming, outgoing, expected, sizes, group=group, async_op=True)
        places = [targets[s.slot][s.part] for s in itertools.chain(*self.received)]
        return Pending(work, views, places, (incoming, outgoing))

    def copy(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """All of it at once, where no rank sends to another."""
        pairs = zip(itertools.chain(*self.sent), itertools.chain(*self.received), strict=True)
        copies = [(targets[to.slot][to.part], sources[own.slot][own.part]) for own, to in pairs]
        _copy([target for target, _ in copies], [source for _, source in copies])

    def _gather(
        self, own: Tensor, expected: list[int], group: dist.ProcessGroup
    ) -> tuple[Tensor, list[Tensor], dist.Work]:
        """As all ranks must send as much, each sends as much as the one with the most."""
        most = max(expected)
        padded = torch.nn.functional.pad(own, (0, most - own.numel()))
        incoming = own.new_empty(most * self.ranks)
        work = all_gather(incoming, padded, group=group, async_op=True)
        rows = incoming.view(self.ranks, most)
        views = [
            view
            for row, segments in zip(rows, self.received, strict=True)
            for view in _views(row, [segments])
        ]
        return incoming, views, work


@dataclass
class Pending:
    """A collective under way, and what is to be done with what it brings."""

    work: dist.Work
    views: list[Tensor]
    places: list[Tensor]
    buffers: tuple[Tensor, Tensor]

    def finish(self) -> None:
        """Wait and unpack.

        Raises:
            RuntimeError: a rank has died or did not come within the process group's timeout.
        """
        self.work.wait()
        _copy(self.places, self.views)


def _buffer(lists: Sequence[Sequence[Segment]], device: torch.device) -> tuple[Tensor, list[int]]:
    sizes = [sum(segment.bytes for segment in segments) for segments in lists]
    return torch.empty(sum(sizes), dtype=torch.uint8, device=device), sizes


def _views(buffer: Tensor, lists: Sequence[Sequence[Segment]]) -> list[Tensor]:
    """The segments' places in a buffer."""
    views, start = [], 0
    for segment in itertools.chain(*lists):
        flat = buffer[start : start + math.prod(segment.shape) * segment.dtype.itemsize]
        views.append(flat.view(segment.dtype).view(segment.shape))
        start += segment.bytes
    return views


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
