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

from kradagrad_ext.state import KEPT_BYTES

ALIGNMENT = 16

# torch 2.13 gave it a new name.
all_gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor


@dataclass(frozen=True)
class Segment:
    """A box of the tensor number `slot`: `part` of it, or all of it where that is None."""

    slot: int
    part: tuple[slice, ...] | None
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return -(-math.prod(self.shape) * self.dtype.itemsize // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Buffer:
    """Bytes for all segments from or to every rank, one after the other.

    Attributes:
        sizes: bytes of each rank's.  views: of the segments.
    """

    flat: Tensor
    sizes: list[int]
    views: list[Tensor]

    @classmethod
    def of(cls, lists: Sequence[Sequence[Segment]], device: torch.device, row: int | None = None) -> Buffer:
        """For a list of segments a rank; `row`: bytes of each rank's, where its segments' may be fewer."""
        sizes = [row or sum(segment.bytes for segment in segments) for segments in lists]
        flat = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        views = []
        for part, segments in zip(torch.split(flat, sizes), lists, strict=True):
            start = 0
            for segment in segments:
                own = part[start : start + math.prod(segment.shape) * segment.dtype.itemsize]
                views.append(own.view(segment.dtype).view(segment.shape))
                start += segment.bytes
        return cls(flat, sizes, views)


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
        self._kept: tuple[Buffer, Buffer] | None = None
        self.sent = [[] for _ in range(1 if self.replicated else self.ranks)]
        self.received = [[] for _ in range(self.ranks)]

    def start(
        self, sources: Sequence[Tensor], targets: Sequence[Tensor], group: dist.ProcessGroup
    ) -> Pending:
        """Pack and send; `Pending.finish` unpacks. `sources` and `targets`: by the segments' slots."""
        outgoing, incoming = self._buffers((sources or targets)[0].device)
        _copy(outgoing.views, _parts(sources, self.sent))
        if self.replicated:
            work = all_gather(incoming.flat, outgoing.flat, group=group, async_op=True)
        else:
            work = dist.all_to_all_single(
                incoming.flat, outgoing.flat, incoming.sizes, outgoing.sizes, group=group, async_op=True
            )
        return Pending(work, incoming.views, _parts(targets, self.received), outgoing)

    def copy(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """All of it at once, where no rank sends to another."""
        _copy(_parts(targets, self.received), _parts(sources, self.sent))

    def _buffers(self, device: torch.device) -> tuple[Buffer, Buffer]:
        """Outgoing and incoming, kept if they are small.

        As all ranks must send as much to all, each sends as much as the one with the most.
        """
        if self._kept is not None:
            return self._kept
        row = None
        if self.replicated:
            row = max(sum(segment.bytes for segment in segments) for segments in self.received)
        made = Buffer.of(self.sent, device, row), Buffer.of(self.received, device, row)
        if sum(buffer.flat.numel() for buffer in made) <= KEPT_BYTES:
            self._kept = made
        return made


@dataclass
class Pending:
    """A collective under way, and what is to be done with what it brings.

    Attributes:
        outgoing: to be there until it has been sent.
    """

    work: dist.Work
    views: list[Tensor]
    places: list[Tensor]
    outgoing: Buffer

    def finish(self) -> None:
        """Wait and unpack.

        Raises:
            RuntimeError: a rank has died or did not come within the process group's timeout.
        """
        self.work.wait()
        _copy(self.places, self.views)


def _parts(tensors: Sequence[Tensor], lists: Sequence[Sequence[Segment]]) -> list[Tensor]:
    """The segments' parts of the tensors in their slots."""
    return [
        tensors[own.slot] if own.part is None else tensors[own.slot][own.part]
        for own in itertools.chain(*lists)
    ]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
