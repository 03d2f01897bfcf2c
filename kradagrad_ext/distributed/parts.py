"""What a rank keeps: of all parameters their scalars, of its own pieces the state."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kradagrad_ext.backends.scalars import sums_of
from kradagrad_ext.block_layout import Blocked
from kradagrad_ext.bucket import Bucket, as_tensor
from kradagrad_ext.config import Config
from kradagrad_ext.plan import ParameterPlan
from kradagrad_ext.state import Spec, State, batch_of_scalars
from kradagrad_ext.step import (
    Guard,
    Settings,
    Work,
    accumulate,
    backend_of,
    fallbacks_of,
    observe_gradients,
    precondition,
    write,
)

from .exchange import Buffer, Pending, Route
from .layout import Rows, rows_of
from .pieces import Piece
from .stored import PieceState, Place

Norms = tuple[Tensor, Tensor]
"""Squared norms ``[M]`` float64 of grafting updates and of preconditioned ones."""


class Ledger:
    """What every rank knows of the M matrices of all parameters of one parameter group, dtype and graft.

    Args:
        parameters: their indices among the shard's.  plans, specs: of each, and of its state.
        starts: the first matrix of each of the shard's parameters among all of its matrices.
        like: an empty tensor in the compute dtype.
    """

    def __init__(
        self,
        parameters: Sequence[int],
        plans: Sequence[ParameterPlan],
        specs: Sequence[Mapping[str, Spec]],
        starts: Sequence[int],
        like: Tensor,
    ) -> None:
        self.parameters, self.like = list(parameters), like
        self._batch = batch_of_scalars(specs)
        self.has_blocks = any(plan.regions for plan in plans)
        numels: list[int] = []
        blocked: list[bool] = []
        rows: list[int] = []
        for i, plan in zip(parameters, plans, strict=True):
            sizes = itertools.product(*plan.parts)
            whole = math.prod(map(sum, plan.parts))
            numels += [max(math.prod(plan.shape) * math.prod(size) // max(whole, 1), 1) for size in sizes]
            blocked += [bool(plan.regions)] * plan.matrices
            rows += range(starts[i], starts[i] + plan.matrices)
        self.row_of = {matrix: row for row, matrix in enumerate(rows)}
        self.numel = like.new_tensor(numels)
        self.preconditioned = torch.tensor(blocked, device=like.device)
        self.rows = rows_of(rows, like.device)
        self._each = torch.arange(len(rows) + 1, device=like.device)  # norms are of whole matrices

    def adopt(self, states: Sequence[State]) -> None:
        """Put the scalars of its parameters side by side; see `state.Batch`."""
        self._batch.adopt(states, self.like)

    def observe(self, scalars: Tensor, norms: Tensor, present: Tensor, config: Config) -> None:
        """The guard of this step, and the coefficients of its updates.

        Args:
            scalars: of its first parameter.  norms, present: of all of the shard's matrices.
        """
        self.scalars = self._batch.found(scalars)  # until `scale`
        config = config.for_blocks(self.has_blocks)
        self.backend = backend_of(config, self.like.device, self.like.dtype)
        self.guard = observe_gradients(
            self.backend,
            config.scalar_rule,
            self.scalars,
            norms[self.rows],
            self.numel,
            present[self.rows],
            as_tensor(config.weight_decay, self.like),
        )

    def scale(self, graft_norms: Tensor, update_norms: Tensor, settings: Settings) -> None:
        """The lengths of this step's updates."""
        dtype, rule = self.scalars.dtype, settings.config.for_blocks(self.has_blocks).scalar_rule
        if self.has_blocks or not rule.keeps_grafts:
            self.backend.scale_updates_(
                self.guard.coefficients,
                self.scalars,
                graft_norms[self.rows].to(dtype),
                self._each,
                update_norms[self.rows].to(dtype),
                self._each[:-1],
                self._each,
                self.numel,
                self.preconditioned & settings.preconditions,
                rule,
            )
        self.scalars = self.like  # whose memory is the state's


@dataclass(frozen=True)
class Taken:
    """What a step works on of one part: its pieces' gradients, and their parameters, which are written."""

    grads: Blocked
    params: list[Tensor]


@dataclass
class Part:
    """The pieces of one ledger in a chunk.

    Attributes:
        bucket: of the pieces, each as a parameter of its own.
        rows: of the ledger, for every matrix of the pieces.
        matrices: which of the shard's each of them is part of.
        places: where each piece's state is kept.
    """

    position: int
    ledger: Ledger
    bucket: Bucket
    pieces: Sequence[Piece]
    rows: Rows
    matrices: Rows
    kept: Taken | None = None

    def __post_init__(self) -> None:
        self.places: list[Mapping[str, Place]] = [{}] * len(self.pieces)

    def states(self, of_parameters: Sequence[State]) -> list[State]:
        """The states of its pieces, from those of all of the shard's parameters."""
        pairs = zip(self.pieces, self.places, strict=True)
        return [PieceState(of_parameters[piece.parameter], own) for piece, own in pairs]

    def wanted(self, of_parameters: Sequence[State]) -> list[Tensor]:
        """The entries that the bucket wants."""
        parameter, key, _ = self._wanted[0]
        found: dict[int, list[Tensor]] = of_parameters[parameter][key].found
        if id(self) not in found:
            found[id(self)] = [of_parameters[i][key].parts[part] for i, key, part in self._wanted]
        return found[id(self)]

    @functools.cached_property
    def _wanted(self) -> list[tuple[int, str, int]]:
        found = []
        for number, key in self.bucket.wanted:
            place = self.places[number][key]
            found.append((self.pieces[number].parameter, place.key, place.part))
        return found

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
    """One part's step, between its updates and its write; `guard`: before lengths were known."""

    part: Part
    work: Work
    guard: Guard
    params: list[Tensor]
    updates: list[Tensor]
    fallbacks: list[Tensor]


def advance(part: Part, taken: Taken, work: Work) -> tuple[Share, Norms | None]:
    """Moments, factors and updates of a part's pieces, and the squared norms of their two updates.

    No norms where no length depends on them.
    """
    grads, own = taken.grads, part.bucket.workspace(work.config, work.batches.momenta)
    guard = part.ledger.guard[part.rows]
    graft_norms = accumulate(work, taken.params, grads.tensors, own, guard)
    updates, update_norms = precondition(work, grads, own, guard)
    share = Share(part, work, guard, taken.params, updates, fallbacks_of(work, grads, own))
    if not work.scales_updates:
        return share, None
    bucket = part.bucket
    of_updates = sums_of(update_norms[bucket.block_order], bucket.block_offsets)
    return share, (sums_of(graft_norms, bucket.span_offsets), of_updates)


def finish(share: Share) -> None:
    """Write the new values of a part's pieces."""
    guard = replace(share.guard, coefficients=share.part.ledger.guard.coefficients[share.part.rows])
    write(share.work, share.params, share.updates, share.fallbacks, guard)
