"""Bytes that ranks exchange on a step (distributed/sharded_params.py).

The ranks that hold a gradient and a parameter send them to the owner of each piece, which sends the parameter
back. Two small sums of norms over all ranks, and padding to 16 bytes, are left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from kradagrad_ext.distributed.partition import CHUNK_BYTES, Piece, split_by_bytes

from .parameters import ParamShape
from .work import Cost


@dataclass
class Traffic:
    """Bytes of one rank.

    Attributes:
        sent, received: bytes to and from other ranks.
        held: bytes of the parameters that it holds.  owned: bytes of the parameters of its pieces.
    """

    sent: int = 0
    received: int = 0
    held: int = 0
    owned: int = 0

    def copies(self, replicated: bool) -> Cost:
        """Return the cost of copies into and out of the collectives' buffers: each is read and written.

        Parameters are copied from owned pieces, and into all that are held. Shards copy gradients and
        parameters from what is held and into owned pieces, too; replicas find both where they are.
        """
        copies = 1 if replicated else 3
        return Cost("torch: foreach_copy", "exchange", 0, 2 * copies * (self.owned + self.held))


def traffic_of(
    parameters: Sequence[ParamShape], assigned: Sequence[Sequence[Piece]], replicated: bool
) -> list[Traffic]:
    """Return the traffic of every rank.

    Args:
        assigned: the pieces of every rank.
        replicated: True if all ranks hold all parameters and gradients, False if they hold shards of rows, as
            `fully_shard` cuts them.
    """
    ranks = [Traffic() for _ in assigned]
    if len(ranks) > 1:
        exchange = _exchange_replicas if replicated else _exchange_shards
        exchange(parameters, assigned, ranks)
    return ranks


def _exchange_replicas(
    parameters: Sequence[ParamShape], assigned: Sequence[Sequence[Piece]], ranks: list[Traffic]
) -> None:
    """Add the traffic of replicas: all have the gradients; in every chunk all ranks pad to the largest."""
    sizes = [p.dtype.itemsize for p in parameters]

    def size(pieces: Sequence[Piece]) -> int:
        return sum(piece.box.numel * sizes[piece.parameter] for piece in pieces)

    by_rank = (split_by_bytes(pieces, sizes, CHUNK_BYTES) for pieces in assigned)
    chunks = itertools.zip_longest(*by_rank, fillvalue=())
    passed = (len(ranks) - 1) * sum(max(map(size, chunk)) for chunk in chunks)
    held = sum(math.prod(p.shape) * p.dtype.itemsize for p in parameters)
    for rank, pieces in zip(ranks, assigned, strict=True):
        rank.sent = rank.received = passed
        rank.held, rank.owned = held, size(pieces)


def _exchange_shards(
    parameters: Sequence[ParamShape], assigned: Sequence[Sequence[Piece]], ranks: list[Traffic]
) -> None:
    """Add the traffic of shards: gradients and parameters are sent to owners, parameters are sent back."""
    for owner, pieces in zip(ranks, assigned, strict=True):
        for piece in pieces:
            p = parameters[piece.parameter]
            (start, *_), (count, *_) = piece.box.offset or (0,), piece.box.shape or (1,)
            end, row_bytes = start + count, piece.box.numel * p.dtype.itemsize // count
            shard = -(-(p.shape or (1,))[0] // len(ranks))
            for index in range(start // shard, -(-end // shard)):
                rows = min((index + 1) * shard, end) - max(index * shard, start)
                holder, size = ranks[index], rows * row_bytes
                owner.owned += size
                holder.held += size
                if holder is not owner:
                    holder.sent += 2 * size
                    owner.received += 2 * size
                    owner.sent += size
                    holder.received += size
