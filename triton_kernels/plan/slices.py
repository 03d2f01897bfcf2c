"""Slices: ranges of blocks that are processed together, so that scratch memory is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

from .groups import KernelGroup

SCRATCH_BYTES = 1 << 30
"""Scratch memory of one slice: the intermediates of a billion parameters together would take 30 GB. A launch
costs the host tens of microseconds, so there must be few slices."""


class Sliced(Protocol):
    """The plan of a group."""

    group: KernelGroup

    def scratch_of_block(self) -> int:
        """Return an upper bound of the bytes that one block's works take."""


Plans = TypeVar("Plans", bound=Sliced)


def slices_of(plans: list[Plans], scratch_bytes: int) -> Iterator[list[tuple[Plans, int, int]]]:
    """Yield slices: groups' plans with the first block in the slice, and the one after the last."""
    parts: list[tuple[Plans, int, int]] = []
    left = scratch_bytes
    for plan in plans:
        each, start = plan.scratch_of_block(), 0
        while start < plan.group.blocks:
            if parts and left < each:
                yield parts
                parts, left = [], scratch_bytes
            count = min(max(left // each, 1), plan.group.blocks - start)
            parts.append((plan, start, start + count))
            left -= count * each
            start += count
    if parts:
        yield parts
