"""The state that a rank keeps: the scalars of all parameters, and all else of the pieces that it owns."""

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
from kradagrad_ext.blocking import Blocking
from kradagrad_ext.config import Config
from kradagrad_ext.param_batch import ParamBatch, as_tensor
from kradagrad_ext.state import State, TensorSpec, stacked_scalars
from kradagrad_ext.step import (
    BatchStep,
    GroupContext,
    Guard,
    apply_updates,
    backend_of,
    fallbacks_of,
    guard_gradients,
    precondition,
    update_moments,
)

from .collectives import Buffer, ExchangePlan, PendingExchange
from .partition import Piece
from .placement import Rows, rows_of
from .sharded_state import PiecePlace, PieceState

Norms = tuple[Tensor, Tensor]
"""Squared norms ``[M]`` float64 of the grafting updates and of the preconditioned updates."""


class CommonScalars:
    """The scalars of the M matrices of one parameter group, dtype and graft, which every rank keeps.

    Args:
        parameters: their indices among the shard's.  blockings, specs: each one's blocking and state specs.
        starts: for each of the shard's parameters, its first matrix among all matrices of the shard.
        like: an empty tensor in the compute dtype.
    """

    def __init__(
        self,
        parameters: Sequence[int],
        blockings: Sequence[Blocking],
        specs: Sequence[Mapping[str, TensorSpec]],
        starts: Sequence[int],
        like: Tensor,
    ) -> None:
        self.parameters, self.like = list(parameters), like
        self._batch = stacked_scalars(specs)
        self.has_blocks = any(blocking.grids for blocking in blockings)
        numels: list[int] = []
        blocked: list[bool] = []
        rows: list[int] = []
        for i, blocking in zip(parameters, blockings, strict=True):
            sizes = itertools.product(*blocking.parts)
            whole = math.prod(map(sum, blocking.parts))
            numels += [max(math.prod(blocking.shape) * math.prod(size) // max(whole, 1), 1) for size in sizes]
            blocked += [bool(blocking.grids)] * blocking.matrices
            rows += range(starts[i], starts[i] + blocking.matrices)
        self.row_of = {matrix: row for row, matrix in enumerate(rows)}
        self.numel = like.new_tensor(numels)
        self.preconditioned = torch.tensor(blocked, device=like.device)
        self.rows = rows_of(rows, like.device)
        self._each = torch.arange(len(rows) + 1, device=like.device)  # norms are of whole matrices

    def adopt(self, states: Sequence[State]) -> None:
        """Store the scalars of its parameters in one tensor; see `state.StackedTensor`."""
        self._batch.adopt(states, self.like)

    def set_guard(self, scalars: Tensor, norms: Tensor, present: Tensor, config: Config) -> None:
        """Compute the guard of this step and the coefficients of its updates.

        Args:
            scalars: those of its first parameter.  norms, present: those of all of the shard's matrices.
        """
        self.scalars = self._batch.stacked(scalars)  # until `scale_updates`
        config = config.for_blocks(self.has_blocks)
        self.backend = backend_of(config, self.like.device, self.like.dtype)
        self.guard = guard_gradients(
            self.backend,
            config.scalar_rule,
            self.scalars,
            norms[self.rows],
            self.numel,
            present[self.rows],
            as_tensor(config.weight_decay, self.like),
        )

    def scale_updates(self, graft_norms: Tensor, update_norms: Tensor, context: GroupContext) -> None:
        """Set the lengths of this step's updates."""
        dtype, rule = self.scalars.dtype, context.config.for_blocks(self.has_blocks).scalar_rule
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
                self.preconditioned & context.preconditions,
                rule,
            )
        self.scalars = self.like  # drops the reference to the state's memory


@dataclass(frozen=True)
class PieceTensors:
    """The tensors of an owned batch on a step: its pieces' gradients and parameters, which are written."""

    grads: Blocked
    params: list[Tensor]


@dataclass
class OwnedBatch:
    """The pieces of a rank that are stepped together: those of a chunk that share their common scalars.

    Attributes:
        position: that of the parameter group.
        batch: the param batch of the pieces, each of which counts as a parameter.
        rows: for every matrix of the pieces, its row in the common scalars.
        matrices: for every matrix of the pieces, its number among the shard's matrices.
        places: where each piece's state is stored.
        kept: the buffers, if they are small.
    """

    position: int
    common: CommonScalars
    batch: ParamBatch
    pieces: Sequence[Piece]
    rows: Rows
    matrices: Rows
    kept: PieceTensors | None = None

    def __post_init__(self) -> None:
        self.places: list[Mapping[str, PiecePlace]] = [{}] * len(self.pieces)

    def states(self, of_parameters: Sequence[State]) -> list[State]:
        """Return the states of its pieces, from those of all of the shard's parameters."""
        pairs = zip(self.pieces, self.places, strict=True)
        return [PieceState(of_parameters[piece.parameter], places) for piece, places in pairs]

    def state_tensors(self, of_parameters: Sequence[State]) -> list[Tensor]:
        """Return the state tensors that `ParamBatch.entries` lists, looked up once per state."""
        parameter, key, _ = self._entries[0]
        cache: dict[int, list[Tensor]] = of_parameters[parameter][key].looked_up
        if id(self) not in cache:
            cache[id(self)] = [of_parameters[i][key].tensors[index] for i, key, index in self._entries]
        return cache[id(self)]

    @functools.cached_property
    def _entries(self) -> list[tuple[int, str, int]]:
        entries = []
        for number, key in self.batch.entries:
            place = self.places[number][key]
            entries.append((self.pieces[number].parameter, place.key, place.index))
        return entries

    def buffers(self) -> PieceTensors:
        """Return buffers for gradients and parameters; small ones are kept between steps."""
        if self.kept is not None:
            return self.kept
        grads, params = (
            [torch.empty_like(p, memory_format=torch.contiguous_format) for p in self.batch.params]
            for _ in range(2)
        )
        tensors = PieceTensors(self.batch.blocked(grads), params)
        self.kept = tensors if self.batch.is_small else None
        return tensors


@dataclass(frozen=True)
class ChunkBuffers:
    """The buffers of a chunk's gradients and parameters.

    Attributes:
        batches: those of each owned batch.
        arriving: the tensors that are received into.  leaving: the parameters that are handed back.
    """

    batches: list[PieceTensors]
    arriving: list[Tensor]
    leaving: list[Tensor]


@dataclass
class Chunk:
    """The pieces that are fetched by one collective, stepped, and handed back by another.

    Attributes:
        batches: this rank's owned batches.
        fetch, hand_back: the exchanges of gradients and parameters, and of new parameters.
        kept: the buffers, if they are small.
    """

    batches: list[OwnedBatch]
    fetch: ExchangePlan
    hand_back: ExchangePlan
    kept: ChunkBuffers | None = None

    def buffers(self) -> ChunkBuffers:
        """Return the buffers; they are kept between steps if all owned batches are small."""
        if self.kept is not None:
            return self.kept
        batches = [owned.buffers() for owned in self.batches]
        grads = [grad for tensors in batches for grad in tensors.grads.tensors]
        params = [param for tensors in batches for param in tensors.params]
        pairs = zip(grads, params, strict=True)
        arriving = self.fetch.targets(list(itertools.chain.from_iterable(pairs)))
        buffers = ChunkBuffers(batches, arriving, self.hand_back.sources(params))
        self.kept = buffers if all(owned.batch.is_small for owned in self.batches) else None
        return buffers


@dataclass(frozen=True)
class FetchedChunk:
    """A chunk on a step, from the fetch of its gradients and parameters.

    Attributes:
        batches: the tensors of each owned batch.
        pending: the collective that fills them; None if they are local.
        leaving: the parameters that are handed back.
        outgoing: the buffer that `leaving` are views of, if they are packed already.
    """

    chunk: Chunk
    batches: list[PieceTensors]
    leaving: list[Tensor]
    pending: PendingExchange | None = None
    outgoing: Buffer | None = None


@dataclass(frozen=True)
class PendingWrite:
    """The step of an owned batch between its updates and its write.

    Attributes:
        guard: the one that updates were computed with, before lengths were known.
    """

    owned: OwnedBatch
    step: BatchStep
    guard: Guard
    params: list[Tensor]
    updates: list[Tensor]
    fallbacks: list[Tensor]


@dataclass(frozen=True)
class ShardedStep:
    """The host's decisions on a shard's step.

    Attributes:
        contexts: those of the parameter groups with a gradient, by position.
        locals_, grads: the local tensors of all parameters, and of their gradients; a parameter takes the
            place of a missing gradient.
        there: for every parameter, True if it has a gradient.  states: those of all parameters.
        steps: those of the owned batches of every chunk; None if the group has no gradient.
    """

    contexts: Mapping[int, GroupContext]
    locals_: list[Tensor]
    grads: list[Tensor]
    there: tuple[bool, ...]
    states: list[State]
    steps: list[list[BatchStep | None]]


def advance(owned: OwnedBatch, tensors: PieceTensors, step: BatchStep) -> tuple[PendingWrite, Norms | None]:
    """Update moments and factors of an owned batch and compute its updates.

    Returns:
        The write that is left to `finish`, and the updates' squared norms, None if no length needs them.
    """
    batch, grads, params = owned.batch, tensors.grads, tensors.params
    workspace = batch.workspace(step.config, step.state.momenta)
    guard = owned.common.guard[owned.rows]
    graft_norms = update_moments(step, params, grads.tensors, workspace, guard)
    updates, update_norms = precondition(step, grads, workspace, guard)
    pending = PendingWrite(owned, step, guard, params, updates, fallbacks_of(step, grads, workspace))
    if not step.scales_updates:
        return pending, None
    of_updates = sums_of(update_norms[batch.block_order], batch.block_offsets)
    return pending, (sums_of(graft_norms, batch.span_offsets), of_updates)


def finish(pending: PendingWrite) -> None:
    """Write the new values of the pieces of an owned batch."""
    guard = replace(pending.guard, coefficients=pending.owned.common.guard.coefficients[pending.owned.rows])
    apply_updates(pending.step, pending.params, pending.updates, pending.fallbacks, guard)
