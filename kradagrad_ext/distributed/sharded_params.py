"""A step whose work and state are distributed: every rank owns pieces of all parameters.

::

    norms of all gradients                                   one small collective
    chunk by chunk: fetch gradients and parameters           one collective a chunk, the next one in progress
        moments, factors and roots, updates of owned pieces
    lengths of all updates                                   one small collective
    chunk by chunk: write owned pieces, hand them back       one collective a chunk
    copy what was handed back into the parameters

Parameters change in the last line alone, so that a rank that dies leaves them unchanged. Chunks bound the
size of a rank's buffers.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kradagrad_ext.block_layout import divided
from kradagrad_ext.blocking import blocking_of
from kradagrad_ext.config import STRUCTURAL, Config, parameter_name
from kradagrad_ext.norms import GradientNorms
from kradagrad_ext.param_batch import ParamBatch, presence
from kradagrad_ext.state import SCALARS, State, compute_dtype, state_specs
from kradagrad_ext.step import GroupContext, LossScale, plan_batch
from kradagrad_ext.uploads import Masks

from .collectives import ExchangePlan, PendingExchange, Segment
from .owned import Chunk, CommonScalars, FetchedChunk, OwnedBatch, PieceTensors, ShardedStep, advance, finish
from .partition import (
    CHUNK_BYTES,
    Box,
    Piece,
    assign_pieces,
    divisions_within,
    matrices_within,
    split_by_bytes,
)
from .placement import add_to_rows_, gather_placements, local, local_box, locals_of, rows_of
from .rank_states import RankStates

SHAPE, PLACE = operator.attrgetter("shape"), operator.attrgetter("device", "dtype")
"""Getters of a parameter's shape, whole or on one rank, and of the device and dtype of its data."""

Key = tuple[int, torch.dtype, str]
"""Parameter group, dtype and graft of parameters that share their `CommonScalars`."""

Whereabouts = tuple[int, int]
"""The parameter group of a parameter, and its index there."""


class ShardedParams:
    """Parameters of an optimizer whose pieces are assigned to the ranks of a process group.

    Ownership is constant; the parameter group of a parameter may change (`arrange`).

    Args:
        params: those of all parameter groups, in order.
        whereabouts, configs: the place of each, and its options.

    Raises:
        ValueError: ranks disagree on the parameters, or a placement is not supported; on every rank.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        whereabouts: Sequence[Whereabouts],
        configs: Sequence[Config],
        group: dist.ProcessGroup,
    ) -> None:
        self.params, self.group = list(params), group
        self.whereabouts: list[Whereabouts | None] = list(whereabouts)
        names = [parameter_name(*where) for where in whereabouts]
        self.places: list[int] = []  # of each parameter's gradient among those of all groups
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.boxes = tuple(local_box(p, name) for p, name in zip(params, names, strict=True))
        shapes = [tuple(p.shape) for p in params]
        self.blockings = [blocking_of(shape, config) for shape, config in zip(shapes, configs, strict=True)]
        self.counts = [blocking.matrices for blocking in self.blockings]
        self.starts = list(itertools.accumulate(self.counts, initial=0))
        self.holders = gather_placements(self.boxes, shapes, names, group)
        self.reported = self._reported()
        self.replicated = all(
            len(h.ranks_of) == 1 and len(*h.ranks_of.values()) == self.ranks for h in self.holders
        )
        self.assigned = assign_pieces(shapes, configs, self.ranks)
        self.arranged: list[Whereabouts | None] = []  # `whereabouts` when the batches were created
        self.kinds: list[Any] = []
        self.roundings: dict[int, str] = {}

    def arrange(self, configs: Mapping[int, Config]) -> None:
        """Batch this rank's pieces by parameter group and dtype; call it on all ranks.

        Args:
            configs: those of the parameter groups, by position.

        Raises:
            ValueError: a parameter's shape, or an option that shapes its state, has changed.
        """
        kinds = [*map(SHAPE, self.params), *map(PLACE, locals_of(self.params))]
        roundings = {position: config.rounding for position, config in configs.items()}
        if self.whereabouts == self.arranged and kinds == self.kinds and roundings == self.roundings:
            return
        positions = [where and where[0] for where in self.whereabouts]
        self._check_blockings(configs)
        self.device = local(self.params[0]).device
        self.masks, self.norms = Masks(self.device), self._make_norms()
        # Units of norms whose squares are summed: float64 can represent the squares of all float32 norms.
        has_float64 = any(p.dtype == torch.float64 for p in self.params)
        self.units = (1.0, 2.0**-500, 2.0**500) if has_float64 else (1.0,)
        self.specs = [
            {} if position is None else state_specs(blocking, configs[position], p.dtype, local(p).device)
            for p, position, blocking in zip(self.params, positions, self.blockings, strict=True)
        ]
        self.keys: dict[int, Key] = {
            i: (position, p.dtype, configs[position].for_blocks(bool(blocking.grids)).graft)
            for i, (p, position, blocking) in enumerate(
                zip(self.params, positions, self.blockings, strict=True)
            )
            if position is not None
        }
        self.common_scalars = self._make_common_scalars()
        assigned = [[piece for piece in pieces if piece.parameter in self.keys] for pieces in self.assigned]
        sizes = [p.element_size() for p in self.params]
        by_chunk = [list(split_by_bytes(pieces, sizes, CHUNK_BYTES)) for pieces in assigned]
        self.chunks = [
            self._make_chunk([chunks[i] if i < len(chunks) else [] for chunks in by_chunk], configs)
            for i in range(max(map(len, by_chunk)))
        ]
        names = {i: parameter_name(*where) for i, where in enumerate(self.whereabouts) if where is not None}
        owned_batches = [owned for chunk in self.chunks for owned in chunk.batches]
        self.kept = RankStates(
            self.params, names, self.blockings, self.specs, owned_batches, list(self.common_scalars.values())
        )
        self.arranged, self.kinds, self.roundings = list(self.whereabouts), kinds, roundings

    def _check_blockings(self, configs: Mapping[int, Config]) -> None:
        """Raise ValueError if a parameter is cut into other blocks than those of the existing state."""
        for p, where, blocking in zip(self.params, self.whereabouts, self.blockings, strict=True):
            if where is not None and blocking_of(tuple(p.shape), configs[where[0]]) != blocking:
                options = {option: getattr(configs[where[0]], option) for option in STRUCTURAL}
                raise ValueError(
                    f"KrADagrad: shape {list(blocking.shape)} of {parameter_name(*where)} and options "
                    f"{STRUCTURAL} must stay as they were when the state was made, got {list(p.shape)} "
                    f"and {options}"
                )

    def _make_common_scalars(self) -> dict[Key, CommonScalars]:
        members: dict[Key, list[int]] = {}
        for index, key in self.keys.items():
            members.setdefault(key, []).append(index)
        common_scalars = {}
        for key, indices in members.items():
            like = torch.empty(0, dtype=compute_dtype(key[1]), device=local(self.params[indices[0]]).device)
            blockings, specs = (
                [self.blockings[index] for index in indices],
                [self.specs[index] for index in indices],
            )
            common_scalars[key] = CommonScalars(indices, blockings, specs, self.starts, like)
        return common_scalars

    def _make_chunk(self, pieces: Sequence[Sequence[Piece]], configs: Mapping[int, Config]) -> Chunk:
        """Create a chunk from the pieces of every rank."""
        by_rank = [self._by_batch(rank_pieces) for rank_pieces in pieces]
        owned_batches = [
            self._make_batch(key, members, configs[key[0]]) for key, members in by_rank[self.rank].items()
        ]
        routes = self._routes([list(itertools.chain(*by_key.values())) for by_key in by_rank])
        return Chunk(owned_batches, *routes)

    def _by_batch(self, pieces: Sequence[Piece]) -> dict[Key, list[Piece]]:
        """Return one rank's pieces by key, which is the order in which they are sent."""
        by_key: dict[Key, list[Piece]] = {}
        for piece in pieces:
            by_key.setdefault(self.keys[piece.parameter], []).append(piece)
        return by_key

    def _make_batch(self, key: Key, pieces: Sequence[Piece], config: Config) -> OwnedBatch:
        common = self.common_scalars[key]
        device = common.like.device
        buffers = [torch.empty((), dtype=key[1], device=device).expand(piece.box.shape) for piece in pieces]
        blockings = [piece.blocking for piece in pieces]
        batch = ParamBatch(buffers, config, blockings, has_scalars=False)
        matrices = [
            self.starts[piece.parameter] + matrix
            for piece in pieces
            for matrix in matrices_within(self.blockings[piece.parameter], piece.box)
        ]
        rows = rows_of([common.row_of[matrix] for matrix in matrices], device)
        return OwnedBatch(key[0], common, batch, pieces, rows, rows_of(matrices, device))

    def _routes(self, pieces: Sequence[Sequence[Piece]]) -> tuple[ExchangePlan, ExchangePlan]:
        """Return how gradients and parameters are sent to their owners, and how parameters are sent back.

        Slots of gradients on the way in: twice the parameter's index among the sources, twice the piece's
        among the targets. The next slot is that of the parameter itself. Slots on the way back: the piece's
        index among the sources, the parameter's among the targets.
        """
        fetch, back = (
            ExchangePlan(self.ranks, self.device),
            ExchangePlan(self.ranks, self.device, self.replicated),
        )
        for owner, rank_pieces in enumerate(pieces):
            for index, piece in enumerate(rank_pieces):
                dtype, holders = self.params[piece.parameter].dtype, self.holders[piece.parameter]
                for box, ranks in holders.ranks_of.items():
                    shared = piece.box.intersection(box)
                    if shared is None:
                        continue
                    here, there = _segments(box, shared, dtype), _segments(piece.box, shared, dtype)
                    sender = holders.sender(box, owner)
                    for kind in (0, 1):
                        if sender == self.rank:
                            fetch.sent[owner].append(here(2 * piece.parameter + kind))
                        if owner == self.rank:
                            fetch.received[sender].append(there(2 * index + kind))
                    if self.rank in ranks:
                        back.received[owner].append(here(piece.parameter))
                    if owner == self.rank:
                        for rank in (0,) if self.replicated else ranks:
                            back.sent[rank].append(there(index))
        return fetch, back

    def plan(
        self, states: list[State], contexts: Mapping[int, GroupContext], grads: Sequence[Tensor | None]
    ) -> ShardedStep:
        """Make the host's decisions on a step; all of its errors are raised here, before any change.

        Args:
            states: those of all parameters, from `RankStates.bring`.
            contexts: those of the parameter groups with a gradient, by position.
            grads: this rank's part of every parameter's gradient.
        """
        locals_, there = locals_of(self.params), presence(grads)
        # Parameters take the place of missing gradients: no result depends on the values.
        filled = [p if grad is None else grad for grad, p in zip(grads, locals_, strict=True)]
        steps = [
            [
                plan_batch(owned.batch, contexts[owned.position], owned.state_tensors(states))
                if owned.position in contexts
                else None
                for owned in chunk.batches
            ]
            for chunk in self.chunks
        ]
        return ShardedStep(contexts, locals_, filled, there, states, steps)

    def step(self, planned: ShardedStep, norms: Tensor, present: Tensor) -> None:
        """Step all parameters that have a gradient.

        Args:
            norms, present: see `gradient_norms`.

        Raises:
            RuntimeError: a rank has died or did not come in time. Parameters are unchanged.
        """
        common_scalars = [
            (common, planned.contexts[position])
            for (position, *_), common in self.common_scalars.items()
            if position in planned.contexts
        ]
        for common, context in common_scalars:
            scalars = planned.states[common.parameters[0]][SCALARS]
            common.set_guard(scalars, norms, present, context.config)
        graft_norms, update_norms = torch.zeros_like(norms), torch.zeros_like(norms)
        fetched_chunks, pending_writes = [], []
        for fetched, steps in zip(self._fetched(planned), planned.steps, strict=True):
            fetched_chunks.append(fetched)
            for owned, tensors, step in zip(fetched.chunk.batches, fetched.batches, steps, strict=True):
                if step is not None:
                    pending, squares = advance(owned, tensors, step)
                    pending_writes.append(pending)
                    for sums, values in zip((graft_norms, update_norms), squares or (), strict=False):
                        add_to_rows_(sums, owned.matrices, values)
        graft_norms, update_norms = self._sum(graft_norms, update_norms)
        for common, context in common_scalars:
            common.scale_updates(graft_norms, update_norms, context)
        for pending in pending_writes:
            finish(pending)
        self._hand_back(fetched_chunks, planned.locals_)

    def gradient_norms(self, planned: ShardedStep, loss_scale: LossScale) -> tuple[Tensor, Tensor]:
        """Return |g|_F of all matrices' gradients ``[M]``, and which are present and not refused ``[M]``.

        A gradient counts as present if every rank has it. Nothing is changed.

        Args:
            loss_scale: that of the gradients; if one rank refuses them, all do.

        Raises:
            RuntimeError: a rank has died or did not come in time.
        """
        norms = loss_scale.unscaled(self._local_norms(planned.grads))
        present = self._present(planned.there)
        refused = loss_scale.refused(norms.device)
        reported = norms.new_zeros(1) if refused is None else refused.to(norms)[None]
        squares = [(norms / unit).square() for unit in self.units]
        present, reported, *squares = self._sum(present, reported, *squares)
        return self._roots_of(squares), (present == self.ranks) & (reported == 0)

    def _present(self, there: tuple[bool, ...]) -> Tensor:
        """Return which matrices have a gradient, ``[M]`` bool; `there`: which parameters have one."""
        mask = there
        if self.starts[-1] != len(there) or not all(self.counts):  # not one matrix per parameter
            pairs = zip(there, self.counts, strict=True)
            mask = tuple(itertools.chain.from_iterable([(has,) * count for has, count in pairs]))
        return self.masks.of(mask)

    def _roots_of(self, squares: Sequence[Tensor]) -> Tensor:
        """Return norms from their squares in all `units`, using those that did not overflow or underflow."""
        norms = [square.sqrt() * unit for square, unit in zip(squares, self.units, strict=True)]
        if len(norms) == 1:
            return norms[0]
        usual, small, large = norms
        not_large = torch.where(usual > 2.0**-400, usual, small)
        return torch.where(usual < 2.0**400, not_large, large)

    def check(self, configs: Mapping[int, Config]) -> None:
        """Raise ValueError if an option does not fit the existing state."""
        for chunk in self.chunks:
            for owned in chunk.batches:
                owned.batch.check(configs[owned.position])

    def _local_norms(self, grads: Sequence[Tensor]) -> Tensor:
        """Return |g|_F ``[M]`` of the parts of all matrices' gradients that this rank reports, 0 for others.

        Replicas report shares of the parameters.

        Args:
            grads: this rank's parts of the gradients.
        """
        norms = torch.zeros(self.starts[-1], dtype=torch.float64, device=self.device)
        if self.norms is not None:
            reported = self._reported_matrices(grads)
            norms[self.reported_matrices] = self.norms.of(reported, host_looks=True)
        return norms

    def _make_norms(self) -> GradientNorms | None:
        """Return the norms of the matrices that this rank reports, None if it reports none."""
        reported = [
            self.starts[index] + matrix
            for index in self.reported
            for matrix in matrices_within(self.blockings[index], self.boxes[index])
        ]
        self.reported_matrices = rows_of(reported, self.device)
        self.reported_divisions = [
            divisions_within(self.blockings[index], self.boxes[index]) for index in self.reported
        ]
        matrices = self._reported_matrices(list(map(local, self.params)))
        return GradientNorms(matrices, dots=False) if matrices else None

    def _reported_matrices(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the matrices whose norms this rank reports, from its parts of all tensors."""
        reported = [tensors[index] for index in self.reported]
        if not any(self.reported_divisions):
            return reported
        pairs = zip(reported, self.reported_divisions, strict=True)
        return [part for tensor, divisions in pairs for part in divided(tensor, divisions)]

    def _reported(self) -> list[int]:
        """Return the parameters whose gradients' norms this rank reports."""
        reported = []
        for index, (holders, box) in enumerate(zip(self.holders, self.boxes, strict=True)):
            ranks = holders.ranks_of.get(box, ())
            if ranks and ranks[index % len(ranks)] == self.rank:
                reported.append(index)
        return reported

    def _sum(self, *vectors: Tensor) -> list[Tensor]:
        """Return the sums over all ranks, in the widest of the vectors' dtypes."""
        flat = torch.cat(vectors)
        dist.all_reduce(flat, group=self.group)
        return list(flat.split_with_sizes([len(vector) for vector in vectors]))

    def _fetched(self, planned: ShardedStep) -> Iterator[FetchedChunk]:
        """Yield the chunks with their gradients and parameters, while the next one is being fetched."""
        sources = list(itertools.chain.from_iterable(zip(planned.grads, planned.locals_, strict=True)))
        upcoming = self._fetch(self.chunks[0], sources)
        for following in (*self.chunks[1:], None):
            fetched = upcoming
            if following is not None:
                upcoming = self._fetch(following, sources)
            if fetched.pending is not None:
                fetched.pending.finish()
            yield fetched

    def _fetch(self, chunk: Chunk, sources: Sequence[Tensor]) -> FetchedChunk:
        if self.replicated:
            return self._local_chunk(chunk, sources)
        buffers, exchange = chunk.buffers(), chunk.fetch
        pending = exchange.start(exchange.sources(sources), buffers.arriving, self.group)
        return FetchedChunk(chunk, buffers.batches, buffers.leaving, pending)

    def _local_chunk(self, chunk: Chunk, sources: Sequence[Tensor]) -> FetchedChunk:
        """Return a local chunk: gradients are used in place, parameters are copied to the outgoing buffer."""
        tensors = chunk.fetch.sources(sources)
        outgoing = chunk.hand_back.outgoing()
        if tensors:
            torch._foreach_copy_(outgoing.views, tensors[1::2])
        grads, params = iter(tensors[::2]), iter(outgoing.views)
        batches = []
        for owned in chunk.batches:
            count = len(owned.pieces)
            blocked = owned.batch.blocked(list(itertools.islice(grads, count)))
            batches.append(PieceTensors(blocked, list(itertools.islice(params, count))))
        return FetchedChunk(chunk, batches, outgoing.views, outgoing=outgoing)

    def _hand_back(self, fetched_chunks: Sequence[FetchedChunk], locals_: Sequence[Tensor]) -> None:
        """Send every rank's new parameters, and write them only when all of them have arrived."""
        in_progress: list[PendingExchange] = []
        for fetched in fetched_chunks:
            exchange = fetched.chunk.hand_back
            targets = exchange.targets(locals_)
            if fetched.outgoing is None:
                in_progress.append(exchange.start(fetched.leaving, targets, self.group))
            else:
                in_progress.append(exchange.send(fetched.outgoing, targets, self.group))
            if len(in_progress) > 1:
                in_progress[-2].wait()
        in_progress[-1].wait()
        for pending in in_progress:
            pending.unpack()


def _segments(whole: Box, shared: Box, dtype: torch.dtype) -> Callable[[int], Segment]:
    """Return a function from a slot, whose tensor holds the box `whole`, to its segment `shared`."""
    index = None if shared == whole else shared.within(whole)
    return lambda slot: Segment(slot, index, shared.shape, dtype)
