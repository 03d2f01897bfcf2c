"""What ranks exchange on a step (distributed/shard.py), in bytes.

A gradient and a parameter come to the owner of a piece from the ranks that hold them, and the parameter goes
back. Left out are two small sums over all ranks, of norms, and what fills up to 16 bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from kradagrad_ext.distributed.pieces import CHUNK_BYTES, Piece, in_chunks

from .gpus import Cost
from .parameters import Parameter


@dataclass
class Traffic:
    """Of one rank.

    Attributes:
        sent, received: to and from other ranks.
        held: parameters that lie on it.  owned: of its pieces.
    """

    sent: int = 0
    received: int = 0
    held: int = 0
    owned: int = 0

    def copies(self, replicated: bool) -> Cost:
        """Into the buffers of the collectives and out of them: every copy is read and written.

        Of replicas: gradient and parameter of own pieces, these packed and filled up, all parameters staged
        and written. Of shards: gradient and parameter packed and unpacked, the parameter packed, staged and
        written.
        """
        size = 2 * (4 * self.owned + 2 * self.held) if replicated else 2 * (3 * self.owned + 4 * self.held)
        return Cost("torch: foreach_copy", "exchange", 0, size)


def traffic_of(
    parameters: Sequence[Parameter], dealt: Sequence[Sequence[Piece]], replicated: bool
) -> list[Traffic]:
    """Of every rank.

    Args:
        dealt: the pieces of every rank.
        replicated: parameters and gradients lie on all ranks; else in shards of rows, as `fully_shard` cuts
            them.
    """
    ranks = [Traffic() for _ in dealt]
    if len(ranks) > 1:
        exchange = _exchange_replicas if replicated else _exchange_shards
        exchange(parameters, dealt, ranks)
    return ranks


def _exchange_replicas(
    parameters: Sequence[Parameter], dealt: Sequence[Sequence[Piece]], ranks: list[Traffic]
) -> None:
    """All have the gradients; in every chunk all send as many parameters as the one with the most."""
    sizes = [p.dtype.itemsize for p in parameters]

    def size(pieces: Sequence[Piece]) -> int:
        return sum(piece.box.numel * sizes[piece.parameter] for piece in pieces)

    chunks = itertools.zip_longest(*(in_chunks(own, sizes, CHUNK_BYTES) for own in dealt), fillvalue=())
    passed = (len(ranks) - 1) * sum(max(map(size, chunk)) for chunk in chunks)
    held = sum(math.prod(p.shape) * p.dtype.itemsize for p in parameters)
    for own, pieces in zip(ranks, dealt, strict=True):
        own.sent = own.received = passed
        own.held, own.owned = held, size(pieces)


def _exchange_shards(
    parameters: Sequence[Parameter], dealt: Sequence[Sequence[Piece]], ranks: list[Traffic]
) -> None:
    """Two go to the owner of what another rank holds, one comes back."""
    for owner, pieces in zip(ranks, dealt, strict=True):
        for piece in pieces:
            p = parameters[piece.parameter]
            rows, start, count = (
                (p.shape[0], piece.box.offset[0], piece.box.shape[0]) if p.shape else (1, 0, 1)
            )
            shard = max(1, -(-rows // len(ranks)))
            row_size = piece.box.numel * p.dtype.itemsize // max(count, 1)
            owner.owned += row_size * count
            for first in range(start - start % shard, start + count, shard):
                holder = ranks[first // shard]
                size = row_size * (min(first + shard, start + count) - max(first, start))
                holder.held += size
                if holder is not owner:
                    holder.sent += 2 * size
                    owner.received += 2 * size
                    owner.sent += size
                    holder.received += size
