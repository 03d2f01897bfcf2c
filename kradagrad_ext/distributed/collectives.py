"""One collective that carries boxes of many tensors from the ranks that hold them to those that need them.

All boxes for one rank are consecutive in one buffer of bytes, whatever their dtypes.
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

from kradagrad_ext.param_batch import KEPT_BYTES

ALIGNMENT = 16

# torch 2.13 renamed it.
all_gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor


@dataclass(frozen=True)
class Segment:
    """A box of tensor number `slot`: the slices `index` of it, or the whole tensor if `index` is None."""

    slot: int
    index: tuple[slice, ...] | None
    shape: tuple[int, ...]
    dtype: torch.dtype

    @functools.cached_property
    def bytes(self) -> int:
        return -(-math.prod(self.shape) * self.dtype.itemsize // ALIGNMENT) * ALIGNMENT

    @functools.cached_property
    def stride(self) -> tuple[int, ...]:
        """Strides of a contiguous tensor of this shape."""
        return tuple(math.prod(self.shape[dim + 1 :]) for dim in range(len(self.shape)))


@dataclass(frozen=True)
class Buffer:
    """Bytes of the segments from or to every rank, consecutively.

    Attributes:
        sizes: bytes for each rank.  views: a view of every segment.
    """

    flat: Tensor
    sizes: list[int]
    views: list[Tensor]

    @classmethod
    def of(cls, lists: Sequence[Sequence[Segment]], device: torch.device, row: int | None = None) -> Buffer:
        """Allocate a buffer for one list of segments per rank.

        Args:
            row: bytes for each rank, at least those of its segments; None for as many as these need.
        """
        sizes = [row or _bytes(segments) for segments in lists]
        flat = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        typed = {dtype: flat.view(dtype) for dtype in {segment.dtype for segment in itertools.chain(*lists)}}
        views = []
        for first, segments in zip(itertools.accumulate(sizes, initial=0), lists, strict=False):
            start = first
            for segment in segments:
                offset = start // segment.dtype.itemsize
                views.append(typed[segment.dtype].as_strided(segment.shape, segment.stride, offset))
                start += segment.bytes
        return cls(flat, sizes, views)


@dataclass
class ExchangePlan:
    """The segments that this rank sends to, and receives from, every rank.

    Sender and receiver list the segments between them in the same order.

    Attributes:
        replicated: True if every rank gets the same segments: the buffer is sent once, not once per rank.
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

    def start(
        self, sources: list[Tensor], targets: list[Tensor], group: dist.ProcessGroup
    ) -> PendingExchange:
        """Pack and send `sources()`; `PendingExchange.finish` unpacks to `targets()`."""
        outgoing = self.outgoing()
        _copy(outgoing.views, sources)
        return self.send(outgoing, targets, group)

    def send(self, outgoing: Buffer, targets: list[Tensor], group: dist.ProcessGroup) -> PendingExchange:
        """Send a packed buffer; otherwise like `start`."""
        incoming = self._buffer("incoming", self.received)
        if self.replicated:
            work = all_gather(incoming.flat, outgoing.flat, group=group, async_op=True)
        else:
            work = dist.all_to_all_single(
                incoming.flat, outgoing.flat, incoming.sizes, outgoing.sizes, group=group, async_op=True
            )
        return PendingExchange(work, incoming.views, targets, outgoing)

    def sources(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the views that are sent; `tensors`: by slot."""
        return self._sources.of(tensors)

    def targets(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the views that are received into; `tensors`: by slot."""
        return self._targets.of(tensors)

    @functools.cached_property
    def _sources(self) -> Places:
        return Places.of_segments(self.sent)

    @functools.cached_property
    def _targets(self) -> Places:
        return Places.of_segments(self.received)

    def outgoing(self) -> Buffer:
        """Return the buffer of all that is sent."""
        return self._buffer("outgoing", self.sent)

    def _buffer(self, name: str, lists: Sequence[Sequence[Segment]]) -> Buffer:
        """Return a buffer; small ones are kept between steps.

        all_gather needs equal sizes, so every rank pads to the largest.
        """
        buffer = self._kept.get(name)
        if buffer is None:
            row = max(map(_bytes, self.received)) if self.replicated else None
            buffer = Buffer.of(lists, self.device, row)
            if buffer.flat.numel() <= KEPT_BYTES:
                self._kept[name] = buffer
        return buffer


@dataclass
class PendingExchange:
    """A collective in progress, and where to copy what it receives.

    Attributes:
        views: of the segments in the incoming buffer.  places: the views that they are copied to.
        outgoing: the outgoing buffer, kept alive until it has been sent; then None.
    """

    work: dist.Work
    views: list[Tensor]
    places: list[Tensor]
    outgoing: Buffer | None

    def finish(self) -> None:
        """Wait and unpack; raise the errors of `wait`."""
        self.wait()
        self.unpack()

    def wait(self) -> None:
        """Wait until the collective has completed.

        Raises:
            RuntimeError: a rank has died or did not come within the process group's timeout.
        """
        self.work.wait()
        self.outgoing = None

    def unpack(self) -> None:
        """Copy every received segment to its place."""
        _copy(self.places, self.views)


@dataclass(frozen=True)
class Places:
    """The places of segments in tensors.

    Attributes:
        slots: the tensor of each segment.
        indices: number and slices of every segment that is not a whole tensor.
    """

    slots: list[int]
    indices: list[tuple[int, tuple[slice, ...]]]

    @classmethod
    def of_segments(cls, lists: Sequence[Sequence[Segment]]) -> Places:
        segments = list(itertools.chain(*lists))
        numbered = enumerate(segments)
        indices = [(number, segment.index) for number, segment in numbered if segment.index is not None]
        return cls([segment.slot for segment in segments], indices)

    def of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return a view of every segment; `tensors`: by slot."""
        views = list(map(tensors.__getitem__, self.slots))
        for number, index in self.indices:
            views[number] = views[number][index]
        return views


def _bytes(segments: Sequence[Segment]) -> int:
    return sum(segment.bytes for segment in segments)


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
