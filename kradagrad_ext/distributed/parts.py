"""What a rank keeps: of all parameters their scalars, of its own pieces the state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kradagrad_ext import grafting
from kradagrad_ext.block_layout import Blocked
from kradagrad_ext.config import Config
from kradagrad_ext.plan import Shape, plan_parameter
from kradagrad_ext.state import Bucket
from kradagrad_ext.step import Settings, Work, accumulate, fallbacks_of, precondition, write

from .exchange import Buffer, Pending, Route
from .pieces import Piece


class Ledger:
    """What every rank knows of all parameters of one parameter group, dtype and graft.

    Attributes:
        parameters: their indices among all of the optimizer's; `rows` has them on the device.
        scalars: ``[P, 8]``, see `grafting`.
    """

    def __init__(
        self, parameters: Sequence[int], shapes: Sequence[Shape], config: Config, like: Tensor
    ) -> None:
        self.parameters = list(parameters)
        self.scalars = like.new_zeros(len(shapes), len(grafting.COLUMNS))
        self.numel = like.new_tensor([max(math.prod(shape), 1) for shape in shapes])
        blocked = [bool(plan_parameter(shape, config).regions) for shape in shapes]
        self.has_blocks = any(blocked)
        self.preconditioned = torch.tensor(blocked, device=like.device)
        self.rows = torch.tensor(self.parameters, device=like.device)

    def observe(self, norms: Tensor, present: Tensor, config: Config) -> None:
        """The guard of this step, and the coefficients of its updates."""
        norms, config = norms[self.rows].to(self.scalars.dtype), config.for_blocks(self.has_blocks)
        self.guard = grafting.observe_(self.scalars, norms, self.numel, present[self.rows], config)
        self.coefficients = grafting.coefficients(self.scalars, self.guard.scales, config)

    def scale(self, graft_norms: Tensor, update_norms: Tensor, settings: Settings) -> None:
        """The lengths of this step's updates."""
        dtype, config = self.scalars.dtype, settings.config.for_blocks(self.has_blocks)
        graft, update = graft_norms[self.rows].to(dtype), update_norms[self.rows].to(dtype)
        taken = self.preconditioned & settings.preconditions
        grafting.scale_(self.coefficients, self.scalars, graft, update, self.numel, taken, config)


@dataclass(frozen=True)
class Taken:
    """What a step works on of one part: its pieces' gradients, and their parameters, which are written."""

    grads: Blocked
    params: list[Tensor]


@dataclass
class Part:
    """The pieces of one ledger in a chunk.

    Attributes:
        bucket: their state, each piece as a parameter of its own.
        rows: of the ledger, for every piece.  parameters: among all of the optimizer's.
    """

    position: int
    ledger: Ledger
    bucket: Bucket
    pieces: Sequence[Piece]
    rows: Tensor
    parameters: Tensor
    kept: Taken | None = None

    def buffers(self) -> Taken:
        """For gradients and parameters; small ones are kept between steps."""
        if self.kept is not None:
            return self.kept
        grads, params = (
            [torch.empty_like(p, memory_format=torch.contiguous_format) for p in self.bucket.params]
            for _ in range(2)
        )
        made = Taken(self.bucket.blocked(grads), params)
        self.kept = made if self.bucket.is_small else None
        return made


@dataclass(frozen=True)
class Room:
    """Where a chunk's gradients and parameters are worked off.

    Attributes:
        taken: of each part.  arriving: what comes in fills these.  leaving: these are handed back.
    """

    taken: list[Taken]
    arriving: list[Tensor]
    leaving: list[Tensor]


@dataclass
class Chunk:
    """What is taken in, worked off and handed back at once."""

    parts: list[Part]
    fetch: Route
    hand_back: Route
    kept: Room | None = None

    def room(self) -> Room:
        """A new one, or the one that is kept where all parts are small."""
        if self.kept is not None:
            return self.kept
        taken = [part.buffers() for part in self.parts]
        pairs = [pair for own in taken for pair in zip(own.grads.tensors, own.params, strict=True)]
        params = [param for own in taken for param in own.params]
        arriving = self.fetch.targets(list(itertools.chain.from_iterable(pairs)))
        made = Room(taken, arriving, self.hand_back.sources(params))
        self.kept = made if all(part.bucket.is_small for part in self.parts) else None
        return made


@dataclass(frozen=True)
class Load:
    """A chunk on its way through a step.

    Attributes:
        taken: of each part.  pending: what it is filled by; None where it is there.
        leaving: the parameters that are handed back.  outgoing: what they lie in already, if they do.
    """

    chunk: Chunk
    taken: list[Taken]
    leaving: list[Tensor]
    pending: Pending | None = None
    outgoing: Buffer | None = None


@dataclass(frozen=True)
class Share:
    """One part's step, between its updates and its write; `active`: the pieces that take part."""

    part: Part
    work: Work
    active: Tensor
    params: list[Tensor]
    updates: list[Tensor]
    fallbacks: list[Tensor]


def advance(part: Part, taken: Taken, work: Work) -> tuple[Share, tuple[Tensor, Tensor]]:
    """Moments, factors and updates of a part's pieces, and the squared norms of their two updates."""
    grads, own = taken.grads, part.bucket.workspace(work.config)
    coefficients, guard = part.ledger.coefficients[part.rows], part.ledger.guard[part.rows]
    active = guard.active
    graft_norms = accumulate(work, taken.params, grads.tensors, own, coefficients, active)
    updates, norms = precondition(work, grads, own, guard)
    share = Share(part, work, active, taken.params, updates, fallbacks_of(work, grads, own))
    return share, (graft_norms, norms)


def finish(share: Share) -> None:
    """Write the new values of a part's pieces."""
    coefficients = share.part.ledger.coefficients[share.part.rows]
    write(share.work, share.params, share.updates, share.fallbacks, coefficients, share.active)
