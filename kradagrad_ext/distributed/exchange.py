"""One collective that carries boxes of many tensors from the ranks that hold them to those that need them.

All boxes for one rank lie one after the other in one buffer of bytes, whatever their dtypes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from kradagrad_ext.bucket import KEPT_BYTES

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

    @functools.cached_property
    def bytes(self) -> int:
        return -(-math.prod(self.shape) * self.dtype.itemsize // ALIGNMENT) * ALIGNMENT

    @functools.cached_property
    def stride(self) -> tuple[int, ...]:
        """Of a contiguous tensor."""
        return tuple(math.prod(self.shape[dim + 1 :]) for dim in range(len(self.shape)))


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
        sizes = [row or _bytes(segments) for segments in lists]
        flat = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        typed = {dtype: flat.view(dtype) for dtype in {own.dtype for own in itertools.chain(*lists)}}
        views = []
        for first, segments in zip(itertools.accumulate(sizes, initial=0), lists, strict=False):
            start = first
            for own in segments:
                offset = start // own.dtype.itemsize
                views.append(typed[own.dtype].as_strided(own.shape, own.stride, offset))
                start += own.bytes
        return cls(flat, sizes, views)


@dataclass
class Route:
    """What this rank sends to every other, and receives; both sides list a pair's segments in one order.

    Attributes:
        replicated: every rank gets the same, so that the buffer is sent once and not once a rank.
    """

    ranks: int
    device: torch.device
    replicated: bool = False
    sent: list[list[Segment]] = field(default_factory=list)
    received: list[list[Segment]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._kept: dict[str, Buffer] = {}
        self.sent = [[] for _ in range(1 if self.replicated else self.ranks)]
        self.received = [[] for _ in range(self.ranks)]

    def start(self, sources: list[Tensor], targets: list[Tensor], group: dist.ProcessGroup) -> Pending:
        """Pack and send; `Pending.finish` unpacks. Both as the methods of that name find them."""
        outgoing = self.outgoing()
        _copy(outgoing.views, sources)
        return self.send(outgoing, targets, group)

    def send(self, outgoing: Buffer, targets: list[Tensor], group: dist.ProcessGroup) -> Pending:
        """As `start`, what is packed already."""
        incoming = self._buffer("incoming", self.received)
        if self.replicated:
            work = all_gather(incoming.flat, outgoing.flat, group=group, async_op=True)
        else:
            work = dist.all_to_all_single(
                incoming.flat, outgoing.flat, incoming.sizes, outgoing.sizes, group=group, async_op=True
            )
        return Pending(work, incoming.views, targets, outgoing)

    def sources(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What is sent, from the tensors by their slots."""
        return self._sources.of(tensors)

    def targets(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Where what is received goes, in the tensors by their slots."""
        return self._targets.of(tensors)

    @functools.cached_property
    def _sources(self) -> Places:
        return Places.of_segments(self.sent)

    @functools.cached_property
    def _targets(self) -> Places:
        return Places.of_segments(self.received)

    def outgoing(self) -> Buffer:
        """For all that is sent."""
        return self._buffer("outgoing", self.sent)

    def _buffer(self, name: str, lists: Sequence[Sequence[Segment]]) -> Buffer:
        """A new one, or the one that is kept where it is small.

        As all ranks must send as much to all, each sends as much as the one with the most.
        """
        found = self._kept.get(name)
        if found is None:
            row = max(map(_bytes, self.received)) if self.replicated else None
            found = Buffer.of(lists, self.device, row)
            if found.flat.numel() <= KEPT_BYTES:
                self._kept[name] = found
        return found


@dataclass
class Pending:
    """A collective under way, and what is to be done with what it brings.

    Attributes:
        outgoing: to be there until it has been sent; None from then on.
    """

    work: dist.Work
    views: list[Tensor]
    places: list[Tensor]
    outgoing: Buffer | None

    def finish(self) -> None:
        """Wait and unpack; raises as `wait`."""
        self.wait()
        self.unpack()

    def wait(self) -> None:
        """Wait until it is there.

        Raises:
            RuntimeError: a rank has died or did not come within the process group's timeout.
        """
        self.work.wait()
        self.outgoing = None

    def unpack(self) -> None:
        """Copy everything to its place."""
        _copy(self.places, self.views)


@dataclass(frozen=True)
class Places:
    """Where segments are: their slots, and of those that are not all of a tensor, their part of it."""

    slots: list[int]
    parts: list[tuple[int, tuple[slice, ...]]]

    @classmethod
    def of_segments(cls, lists: Sequence[Sequence[Segment]]) -> Places:
        segments = list(itertools.chain(*lists))
        parts = [(number, own.part) for number, own in enumerate(segments) if own.part is not None]
        return cls([own.slot for own in segments], parts)

    def of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The segments in the tensors of these slots."""
        found = list(map(tensors.__getitem__, self.slots))
        for number, part in self.parts:
            found[number] = found[number][part]
        return found


def _bytes(segments: Sequence[Segment]) -> int:
    return sum(segment.bytes for segment in segments)


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
