"""A step whose work and state are shared out: every rank owns pieces of all parameters.

::

    norms of all gradients                              one small collective
    chunk by chunk: gradients and parameters come in    one collective a chunk, the next one under way
        moments, factors and roots, updates of own pieces
    lengths of all updates                              one small collective
    chunk by chunk: write own pieces, hand them back    one collective a chunk
    parameters take what was handed back

A parameter changes in the last line alone, so that a rank that dies leaves it as it was. Chunks bound what a
rank holds in buffers.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kradagrad_ext.block_layout import divided
from kradagrad_ext.bucket import Bucket, presence
from kradagrad_ext.config import STRUCTURAL, Config, parameter_name
from kradagrad_ext.norms import GradientNorms
from kradagrad_ext.plan import plan_parameter
from kradagrad_ext.state import SCALARS, State, compute_dtype, state_specs
from kradagrad_ext.step import LossScale, Settings, Work, plan_work
from kradagrad_ext.uploads import Masks

from .exchange import Pending, Route, Segment
from .kept import KeptStates
from .layout import add_to_rows_, box_of, gather_holders, local, locals_of, rows_of
from .parts import Chunk, Ledger, Load, Part, Taken, advance, finish
from .pieces import CHUNK_BYTES, Box, Piece, deal, divisions_within, in_chunks, matrices_within

SHAPE, PLACE = operator.attrgetter("shape"), operator.attrgetter("device", "dtype")
"""A parameter's shape, of which ranks hold more and less, and where its data are."""

Key = tuple[int, torch.dtype, str]
"""Parameter group, dtype and graft of parameters that share a ledger."""

Whereabouts = tuple[int, int]
"""The parameter group that a parameter is in, and its place there."""


@dataclass(frozen=True)
class ShardStep:
    """What the host decides of a shard's step.

    Attributes:
        settings: by parameter group, of those with a gradient.
        locals_, grads: what this rank holds of all parameters, and of their gradients; a parameter stands in
            for a missing one.
        there: which gradients there are.  states: of all parameters.
        works: of the parts of every chunk; None for one whose group has no gradient.
    """

    settings: Mapping[int, Settings]
    locals_: list[Tensor]
    grads: list[Tensor]
    there: tuple[bool, ...]
    states: list[State]
    works: list[list[Work | None]]


class Shard:
    """Parameters of an optimizer, dealt out to the ranks of a process group.

    Who owns what stays; which parameter group a parameter is in may change (`arrange`).

    Args:
        params: of all parameter groups, one after the other.
        found, configs: the place of each, and its options.

    Raises:
        ValueError: ranks disagree on the parameters, or a placement is not supported; on every rank.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        found: Sequence[Whereabouts],
        configs: Sequence[Config],
        group: dist.ProcessGroup,
    ) -> None:
        self.params, self.group = list(params), group
        self.found: list[Whereabouts | None] = list(found)
        names = [parameter_name(*own) for own in found]
        self.places: list[int] = []  # of the parameters' gradients among those of all parameter groups
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.boxes = tuple(box_of(p, name) for p, name in zip(params, names, strict=True))
        shapes = [tuple(p.shape) for p in params]
        self.plans = [plan_parameter(shape, own) for shape, own in zip(shapes, configs, strict=True)]
        self.counts = [plan.matrices for plan in self.plans]
        self.starts = list(itertools.accumulate(self.counts, initial=0))
        self.holders = gather_holders(self.boxes, shapes, names, group)
        self.told = self._told()
        self.replicated = all(
            len(h.ranks_of) == 1 and len(*h.ranks_of.values()) == self.ranks for h in self.holders
        )
        self.dealt = deal(shapes, configs, self.ranks)
        self.arranged: list[Whereabouts | None] = []  # what `found` was when batches were made
        self.kinds: list[Any] = []
        self.roundings: dict[int, str] = {}

    def arrange(self, configs: Mapping[int, Config]) -> None:
        """Batch this rank's pieces by parameter group and dtype; on all ranks alike.

        Args:
            configs: of each parameter group.

        Raises:
            ValueError: a parameter's shape, or an option that shapes its state, has changed.
        """
        kinds = [*map(SHAPE, self.params), *map(PLACE, locals_of(self.params))]
        roundings = {position: config.rounding for position, config in configs.items()}
        if self.found == self.arranged and kinds == self.kinds and roundings == self.roundings:
            return
        positions = [own and own[0] for own in self.found]
        for p, own, plan in zip(self.params, self.found, self.plans, strict=True):
            if own is not None and plan_parameter(tuple(p.shape), configs[own[0]]) != plan:
                got = {option: getattr(configs[own[0]], option) for option in STRUCTURAL}
                raise ValueError(
                    f"KrADagrad: shape {list(plan.shape)} of {parameter_name(*own)} and options {STRUCTURAL} "
                    f"must stay as they were when the state was made, got {list(p.shape)} and {got}"
                )
        self.device = local(self.params[0]).device
        self.masks, self.norms = Masks(self.device), self._make_norms()
        # Of norms, whose squares are added up: float64 holds those of whatever float32 holds.
        has_float64 = any(p.dtype == torch.float64 for p in self.params)
        self.units = (1.0, 2.0**-500, 2.0**500) if has_float64 else (1.0,)
        self.specs = [
            {} if position is None else state_specs(plan, configs[position], p.dtype, local(p).device)
            for p, position, plan in zip(self.params, positions, self.plans, strict=True)
        ]
        self.keys: dict[int, Key] = {
            i: (position, p.dtype, configs[position].for_blocks(bool(plan.regions)).graft)
            for i, (p, position, plan) in enumerate(zip(self.params, positions, self.plans, strict=True))
            if position is not None
        }
        self.ledgers = self._make_ledgers()
        dealt = [[piece for piece in own if piece.parameter in self.keys] for own in self.dealt]
        sizes = [p.element_size() for p in self.params]
        by_chunk = [list(in_chunks(pieces, sizes, CHUNK_BYTES)) for pieces in dealt]
        self.chunks = [
            self._make_chunk([own[i] if i < len(own) else [] for own in by_chunk], configs)
            for i in range(max(map(len, by_chunk)))
        ]
        names = {i: parameter_name(*own) for i, own in enumerate(self.found) if own is not None}
        parts = [part for chunk in self.chunks for part in chunk.parts]
        self.kept = KeptStates(self.params, names, self.plans, self.specs, parts, list(self.ledgers.values()))
        self.arranged, self.kinds, self.roundings = list(self.found), kinds, roundings

    def _make_ledgers(self) -> dict[Key, Ledger]:
        members: dict[Key, list[int]] = {}
        for index, key in self.keys.items():
            members.setdefault(key, []).append(index)
        ledgers = {}
        for key, indices in members.items():
            like = torch.empty(0, dtype=compute_dtype(key[1]), device=local(self.params[indices[0]]).device)
            plans, specs = [self.plans[index] for index in indices], [self.specs[index] for index in indices]
            ledgers[key] = Ledger(indices, plans, specs, self.starts, like)
        return ledgers

    def _make_chunk(self, pieces: Sequence[Sequence[Piece]], configs: Mapping[int, Config]) -> Chunk:
        """`pieces`: of every rank."""
        by_part = [self._by_part(theirs) for theirs in pieces]
        parts = [self._make_part(key, own, configs[key[0]]) for key, own in by_part[self.rank].items()]
        return Chunk(parts, *self._routes([list(itertools.chain(*own.values())) for own in by_part]))

    def _by_part(self, pieces: Sequence[Piece]) -> dict[Key, list[Piece]]:
        """One rank's pieces by their ledger: the order in which they travel."""
        found: dict[Key, list[Piece]] = {}
        for piece in pieces:
            found.setdefault(self.keys[piece.parameter], []).append(piece)
        return found

    def _make_part(self, key: Key, pieces: Sequence[Piece], config: Config) -> Part:
        ledger = self.ledgers[key]
        device = ledger.like.device
        buffers = [torch.empty((), dtype=key[1], device=device).expand(piece.box.shape) for piece in pieces]
        plans = [piece.plan for piece in pieces]
        bucket = Bucket(buffers, config, plans, has_scalars=False)
        matrices = [
            self.starts[piece.parameter] + matrix
            for piece in pieces
            for matrix in matrices_within(self.plans[piece.parameter], piece.box)
        ]
        rows = rows_of([ledger.row_of[matrix] for matrix in matrices], device)
        return Part(key[0], ledger, bucket, pieces, rows, rows_of(matrices, device))

    def _routes(self, pieces: Sequence[Sequence[Piece]]) -> tuple[Route, Route]:
        """How gradients and parameters come to their owners, and how parameters come back.

        Slots on the way in: twice a parameter's index among the sources, twice a piece's among the targets,
        and the next for the parameter itself. On the way back: a piece's index, a parameter's index.
        """
        fetch, back = Route(self.ranks, self.device), Route(self.ranks, self.device, self.replicated)
        for owner, theirs in enumerate(pieces):
            for index, piece in enumerate(theirs):
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
        self, states: list[State], settings: Mapping[int, Settings], grads: Sequence[Tensor | None]
    ) -> ShardStep:
        """All that the host decides of a step; what raises, raises here, before any change.

        Args:
            states: of all parameters, as they are kept.
            settings: by parameter group; those without a gradient are left out.
            grads: what this rank holds of every parameter's gradient.
        """
        locals_, there = locals_of(self.params), presence(grads)
        # Parameters stand in for gradients that are missing, on which nothing depends.
        taken = [own if grad is None else grad for grad, own in zip(grads, locals_, strict=True)]
        works = [
            [
                plan_work(part.bucket, settings[part.position], part.wanted(states))
                if part.position in settings
                else None
                for part in chunk.parts
            ]
            for chunk in self.chunks
        ]
        return ShardStep(settings, locals_, taken, there, states, works)

    def step(self, plan: ShardStep, norms: Tensor, present: Tensor) -> None:
        """One step of all parameters that have a gradient.

        Args:
            norms, present: see `observed`.

        Raises:
            RuntimeError: a rank has died or did not come in time. Parameters are as they were.
        """
        ledgers = [
            (ledger, plan.settings[position])
            for (position, *_), ledger in self.ledgers.items()
            if position in plan.settings
        ]
        for ledger, settings in ledgers:
            scalars = plan.states[ledger.parameters[0]][SCALARS]
            ledger.observe(scalars, norms, present, settings.config)
        graft_norms, update_norms = torch.zeros_like(norms), torch.zeros_like(norms)
        loads, shares = [], []
        for load, works in zip(self._fetched(plan), plan.works, strict=True):
            loads.append(load)
            for part, taken, work in zip(load.chunk.parts, load.taken, works, strict=True):
                if work is not None:
                    share, own = advance(part, taken, work)
                    shares.append(share)
                    for sums, values in zip((graft_norms, update_norms), own or (), strict=False):
                        add_to_rows_(sums, part.matrices, values)
        graft_norms, update_norms = self._sum(graft_norms, update_norms)
        for ledger, settings in ledgers:
            ledger.scale(graft_norms, update_norms, settings)
        for share in shares:
            finish(share)
        self._hand_back(loads, plan.locals_)

    def observed(self, plan: ShardStep, loss_scale: LossScale) -> tuple[Tensor, Tensor]:
        """|g|_F of the gradients of all matrices ``[M]``, and which every rank has and takes.

        Nothing changes yet.

        Args:
            loss_scale: of the gradients, as they are; what any rank refuses, all refuse.

        Raises:
            RuntimeError: a rank has died or did not come in time.
        """
        norms = loss_scale.unscaled(self._gradient_norms(plan.grads))
        present = self._present(plan.there)
        refused = loss_scale.refused(norms.device)
        told = norms.new_zeros(1) if refused is None else refused.to(norms)[None]
        squares = [(norms / unit).square() for unit in self.units]
        present, told, *squares = self._sum(present, told, *squares)
        return self._roots_of(squares), (present == self.ranks) & (told == 0)

    def _present(self, there: tuple[bool, ...]) -> Tensor:
        """Which matrices have a gradient, ``[M]`` bool; `there`: which parameters have one."""
        mask = there
        if self.starts[-1] != len(there) or not all(self.counts):  # parameters of several matrices, or none
            pairs = zip(there, self.counts, strict=True)
            mask = tuple(itertools.chain.from_iterable([(has,) * count for has, count in pairs]))
        return self.masks.of(mask)

    def _roots_of(self, squares: Sequence[Tensor]) -> Tensor:
        """Norms from their squares in all `units`: of those that have neither over- nor underflowed."""
        norms = [square.sqrt() * unit for square, unit in zip(squares, self.units, strict=True)]
        if len(norms) == 1:
            return norms[0]
        usual, small, large = norms
        found = torch.where(usual > 2.0**-400, usual, small)
        return torch.where(usual < 2.0**400, found, large)

    def check(self, configs: Mapping[int, Config]) -> None:
        """Raise ValueError if an option does not fit the state that there is."""
        for chunk in self.chunks:
            for part in chunk.parts:
                part.bucket.check(configs[part.position])

    def _gradient_norms(self, grads: Sequence[Tensor]) -> Tensor:
        """|g|_F of what this rank has to tell of the gradients of all matrices ``[M]``; of the others 0.

        Of replicas, each tells of its share of the parameters.

        Args:
            grads: what this rank holds of the gradients.
        """
        norms = torch.zeros(self.starts[-1], dtype=torch.float64, device=self.device)
        if self.norms is not None:
            own = self.norms.of(self._told_matrices(grads), host_looks=True)
            norms[self.told_matrices] = own
        return norms

    def _make_norms(self) -> GradientNorms | None:
        """Of the matrices whose gradients' norms this rank tells; None where it tells none."""
        told = [
            self.starts[index] + matrix
            for index in self.told
            for matrix in matrices_within(self.plans[index], self.boxes[index])
        ]
        self.told_matrices = rows_of(told, self.device)
        self.told_divisions = [divisions_within(self.plans[index], self.boxes[index]) for index in self.told]
        own = self._told_matrices(list(map(local, self.params)))
        return GradientNorms(own, dots=False) if own else None

    def _told_matrices(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Of tensors of what this rank holds of all parameters, the matrices whose norms it tells."""
        told = [tensors[index] for index in self.told]
        if not any(self.told_divisions):
            return told
        pairs = zip(told, self.told_divisions, strict=True)
        return [part for tensor, divisions in pairs for part in divided(tensor, divisions)]

    def _told(self) -> list[int]:
        """The parameters whose gradients' norms this rank tells."""
        told = []
        for index, (holders, box) in enumerate(zip(self.holders, self.boxes, strict=True)):
            ranks = holders.ranks_of.get(box, ())
            if ranks and ranks[index % len(ranks)] == self.rank:
                told.append(index)
        return told

    def _sum(self, *vectors: Tensor) -> list[Tensor]:
        """Over all ranks, in the widest of their dtypes."""
        flat = torch.cat(vectors)
        dist.all_reduce(flat, group=self.group)
        return list(flat.split_with_sizes([len(vector) for vector in vectors]))

    def _fetched(self, plan: ShardStep) -> Iterator[Load]:
        """The chunks with their gradients and parameters; the next one is on its way."""
        sources = list(itertools.chain.from_iterable(zip(plan.grads, plan.locals_, strict=True)))
        upcoming = self._fetch(self.chunks[0], sources)
        for following in (*self.chunks[1:], None):
            load = upcoming
            if following is not None:
                upcoming = self._fetch(following, sources)
            if load.pending is not None:
                load.pending.finish()
            yield load

    def _fetch(self, chunk: Chunk, sources: Sequence[Tensor]) -> Load:
        if self.replicated:
            return self._found(chunk, sources)
        room, route = chunk.room(), chunk.fetch
        pending = route.start(route.sources(sources), room.arriving, self.group)
        return Load(chunk, room.taken, room.leaving, pending)

    def _found(self, chunk: Chunk, sources: Sequence[Tensor]) -> Load:
        """A chunk that is here: gradients serve as they are, parameters go where they are sent from."""
        found = chunk.fetch.sources(sources)
        outgoing = chunk.hand_back.outgoing()
        if found:
            torch._foreach_copy_(outgoing.views, found[1::2])
        grads, params = iter(found[::2]), iter(outgoing.views)
        taken = []
        for part in chunk.parts:
            count = len(part.pieces)
            own = part.bucket.blocked(list(itertools.islice(grads, count)))
            taken.append(Taken(own, list(itertools.islice(params, count))))
        return Load(chunk, taken, outgoing.views, outgoing=outgoing)

    def _hand_back(self, loads: Sequence[Load], locals_: Sequence[Tensor]) -> None:
        """Every rank's new parameters, and only when all of them are there, their write."""
        under_way: list[Pending] = []
        for load in loads:
            route = load.chunk.hand_back
            targets = route.targets(locals_)
            if load.outgoing is None:
                under_way.append(route.start(load.leaving, targets, self.group))
            else:
                under_way.append(route.send(load.outgoing, targets, self.group))
            if len(under_way) > 1:
                under_way[-2].wait()
        under_way[-1].wait()
        for pending in under_way:
            pending.unpack()


def _segments(whole: Box, shared: Box, dtype: torch.dtype) -> Callable[[int], Segment]:
    """A segment of any slot whose tensor holds the box `whole`."""
    part = None if shared == whole else shared.within(whole)
    return lambda slot: Segment(slot, part, shared.shape, dtype)
