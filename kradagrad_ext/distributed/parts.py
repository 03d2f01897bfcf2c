"""What a rank keeps: of all parameters their scalars, of its own pieces the state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kradagrad_ext import grafting
from kradagrad_ext.block_layout import Blocked
from kradagrad_ext.config import Config
from kradagrad_ext.plan import Shape, plan_parameter
from kradagrad_ext.state import Bucket
from kradagrad_ext.step import Settings, Work, accumulate, fallbacks_of, plan_work, precondition, write

from .exchange import Route
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


@dataclass
class Part:
    """The pieces of one ledger in a chunk.

    Attributes:
        bucket: their state, each piece as a parameter of its own.
        rows: of the ledger, for every piece.  parameters: among all of the optimizer's.
        grads, params: the pieces' tensors on this step.
    """

    position: int
    ledger: Ledger
    bucket: Bucket
    pieces: Sequence[Piece]
    rows: Tensor
    parameters: Tensor
    grads: Blocked = field(default_factory=lambda: Blocked([], []))
    params: list[Tensor] = field(default_factory=list)

    def buffers(self) -> list[Tensor]:
        """For gradients and parameters, piece by piece in turns; small ones are kept between steps."""
        if not (self.params and self.bucket.is_small):
            shaped = self.bucket.params
            grads, self.params = (
                [torch.empty_like(p, memory_format=torch.contiguous_format) for p in shaped] for _ in range(2)
            )
            self.grads = self.bucket.blocked(grads)
        return [tensor for pair in zip(self.grads.tensors, self.params, strict=True) for tensor in pair]


@dataclass
class Chunk:
    """What is taken in, worked off and handed back at once."""

    parts: list[Part]
    fetch: Route
    hand_back: Route


@dataclass
class Share:
    """One part's step, between its updates and its write."""

    part: Part
    work: Work
    updates: list[Tensor]
    fallbacks: list[Tensor]


def advance(part: Part, settings: Settings, fresh: bool) -> tuple[Share, tuple[Tensor, Tensor]]:
    """Moments, factors and updates of a part's pieces, and the squared norms of their two updates."""
    work, grads = plan_work(part.bucket, settings, fresh), part.grads
    own = part.bucket.workspace(work.config)
    coefficients, guard = part.ledger.coefficients[part.rows], part.ledger.guard[part.rows]
    graft_norms = accumulate(work, part.params, grads.tensors, own, coefficients, guard.active)
    updates, norms = precondition(work, grads, own, guard)
    return Share(part, work, updates, fallbacks_of(work, grads, own)), (graft_norms, norms)


def finish(share: Share) -> None:
    """Write the new values into the buffers of a part's pieces."""
    part = share.part
    coefficients, guard = part.ledger.coefficients[part.rows], part.ledger.guard[part.rows]
    write(share.work, part.params, share.updates, share.fallbacks, coefficients, guard.active)
