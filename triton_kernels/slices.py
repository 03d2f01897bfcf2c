"""Slices: the blocks that are worked off together, so that scratch memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

from .groups import Group

SCRATCH_BYTES = 1 << 30
"""Of one slice of blocks: all intermediates of a billion parameters would take 30 GB. A launch costs the host
tens of microseconds, so that slices must not be many."""


class Sliced(Protocol):
    """The plan of a group."""

    group: Group

    def scratch_of_block(self) -> int:
        """Bytes that one block's works take (an upper bound)."""


Plans = TypeVar("Plans", bound=Sliced)


def slices_of(plans: list[Plans], scratch_bytes: int) -> Iterator[list[tuple[Plans, int, int]]]:
    """Groups' plans with the blocks, from the first to before the last, that a slice has of them."""
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
