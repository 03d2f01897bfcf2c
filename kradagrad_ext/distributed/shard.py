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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from kradagrad_ext.config import Config
from kradagrad_ext.norms import GradientNorms
from kradagrad_ext.plan import plan_parameter
from kradagrad_ext.state import Bucket, compute_dtype, empty_state, presence
from kradagrad_ext.step import LossScale, Settings, Work, plan_work
from kradagrad_ext.uploads import Masks

from .exchange import Pending, Route, Segment
from .layout import box_of, gather_holders, local, locals_of
from .parts import Chunk, Ledger, Load, Part, Taken, advance, finish
from .pieces import CHUNK_BYTES, Box, Piece, deal, in_chunks
from .stored import stored_states

Key = tuple[int, torch.dtype, str]
"""Parameter group, dtype and graft of parameters that share a ledger."""


@dataclass(frozen=True)
class ShardStep:
    """What the host decides of a shard's step.

    Attributes:
        settings: by parameter group, of those with a gradient.
        locals_, grads: what this rank holds of all parameters, and of their gradients; a parameter stands in
            for a missing one.
        there: which gradients there are.  first: the parameters that take their first step.
        works: of the parts of every chunk; None for one whose group has no gradient.
    """

    settings: Mapping[int, Settings]
    locals_: list[Tensor]
    grads: list[Tensor]
    there: tuple[bool, ...]
    first: set[int]
    works: list[list[Work | None]]


class Shard:
    """All parameters of an optimizer, dealt out to the ranks of a process group.

    Args:
        params: of all parameter groups, one after the other.  names: for messages.
        positions: the parameter group of each.  configs: of each parameter group.

    Raises:
        ValueError: ranks disagree on the parameters, or a placement is not supported; on every rank.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        names: Sequence[str],
        positions: Sequence[int],
        configs: Mapping[int, Config],
        group: dist.ProcessGroup,
    ) -> None:
        self.params, self.group = list(params), group
        self.unseen = set(range(len(self.params)))  # parameters that have had no gradient yet
        self.places: list[int] = []  # of the parameters' gradients in `Sharded._gradients`
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.boxes = tuple(box_of(p, name) for p, name in zip(params, names, strict=True))
        shapes = [tuple(p.shape) for p in params]
        self.holders = gather_holders(self.boxes, shapes, names, group)
        self.told = self._told()
        self.device = local(params[0]).device
        self.masks, self.norms = Masks(self.device), self._make_norms()
        self.replicated = all(
            len(h.ranks_of) == 1 and len(*h.ranks_of.values()) == self.ranks for h in self.holders
        )
        self.keys: list[Key] = [
            (position, p.dtype, _graft(p, configs[position]))
            for p, position in zip(params, positions, strict=True)
        ]
        self.ledgers = self._make_ledgers(configs)
        dealt = deal(shapes, [configs[position] for position in positions], self.ranks)
        sizes = [p.element_size() for p in params]
        by_chunk = [list(in_chunks(pieces, sizes, CHUNK_BYTES)) for pieces in dealt]
        count = max(map(len, by_chunk))
        self.chunks = [
            self._make_chunk([own[i] if i < len(own) else [] for own in by_chunk], configs)
            for i in range(count)
        ]

    def _make_ledgers(self, configs: Mapping[int, Config]) -> dict[Key, Ledger]:
        members: dict[Key, list[int]] = {}
        for index, key in enumerate(self.keys):
            members.setdefault(key, []).append(index)
        ledgers = {}
        for key, indices in members.items():
            position, dtype, _ = key
            like = torch.empty(0, dtype=compute_dtype(dtype), device=local(self.params[indices[0]]).device)
            shapes = [tuple(self.params[index].shape) for index in indices]
            ledgers[key] = Ledger(indices, shapes, configs[position], like)
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
        device = ledger.scalars.device
        buffers = [torch.empty((), dtype=key[1], device=device).expand(piece.box.shape) for piece in pieces]
        plans = [piece.plan for piece in pieces]
        bucket = Bucket(buffers, config, [{}] * len(pieces), plans)
        rows = torch.tensor([ledger.parameters.index(piece.parameter) for piece in pieces], device=device)
        parameters = torch.tensor([piece.parameter for piece in pieces], device=device)
        return Part(key[0], ledger, bucket, pieces, rows, parameters)

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

    def plan(self, settings: Mapping[int, Settings], grads: Sequence[Tensor | None]) -> ShardStep:
        """All that the host decides of a step; what raises, raises here, before any change.

        Args:
            settings: by parameter group; those without a gradient are left out.
            grads: what this rank holds of every parameter's gradient.
        """
        locals_, there = locals_of(self.params), presence(grads)
        # Parameters stand in for gradients that are missing, on which nothing depends.
        taken = [own if grad is None else grad for grad, own in zip(grads, locals_, strict=True)]
        first = {index for index in self.unseen if there[index]}
        works = [
            [
                plan_work(part.bucket, settings[part.position], bool(first))
                if part.position in settings
                else None
                for part in chunk.parts
            ]
            for chunk in self.chunks
        ]
        return ShardStep(settings, locals_, taken, there, first, works)

    def step(self, plan: ShardStep, loss_scale: LossScale) -> None:
        """One step of all parameters that have a gradient.

        Args:
            loss_scale: gradients are unscaled already; what any rank refuses, all refuse.

        Raises:
            RuntimeError: a rank has died or did not come in time. Parameters are as they were.
        """
        self.unseen -= plan.first
        ledgers = [
            (ledger, plan.settings[position])
            for (position, *_), ledger in self.ledgers.items()
            if position in plan.settings
        ]
        norms, present = self._observed(plan, loss_scale)
        for ledger, settings in ledgers:
            ledger.observe(norms, present, settings.config)
        graft_norms, update_norms = torch.zeros_like(norms), torch.zeros_like(norms)
        loads, shares = [], []
        for load, works in zip(self._fetched(plan), plan.works, strict=True):
            loads.append(load)
            for part, taken, work in zip(load.chunk.parts, load.taken, works, strict=True):
                if work is not None:
                    share, (graft, update) = advance(part, taken, work)
                    shares.append(share)
                    graft_norms.index_add_(0, part.parameters, graft.to(norms.dtype))
                    update_norms.index_add_(0, part.parameters, update.to(norms.dtype))
        graft_norms, update_norms = self._sum(graft_norms, update_norms)
        for ledger, settings in ledgers:
            ledger.scale(graft_norms, update_norms, settings)
        for share in shares:
            finish(share)
        self._hand_back(loads, plan.locals_)

    def _observed(self, plan: ShardStep, loss_scale: LossScale) -> tuple[Tensor, Tensor]:
        """|g|_F^2 of all gradients ``[P]``, and which every rank has and takes."""
        norms, present = self._gradient_norms(plan.grads), self.masks.of(plan.there).to(torch.float64)
        refused = loss_scale.refused(norms.device)
        told = norms.new_zeros(1) if refused is None else refused.to(norms)[None]
        norms, present, told = self._sum(norms, present, told)
        return norms, (present == self.ranks) & (told == 0)

    def check(self, configs: Mapping[int, Config]) -> None:
        """Raise ValueError if an option does not fit the state that there is."""
        for chunk in self.chunks:
            for part in chunk.parts:
                part.bucket.check(configs[part.position])

    def parameter_states(
        self, positions: Sequence[int], configs: Mapping[int, Config]
    ) -> list[dict[str, Tensor]]:
        """For every parameter, what ``optimizer.state[p]`` holds: scalars, and state that lies in pieces."""
        own: list[list[tuple[Piece, dict[str, Tensor]]]] = [[] for _ in self.params]
        for part in (part for chunk in self.chunks for part in chunk.parts):
            for piece, state in zip(part.pieces, part.bucket.parameter_states(), strict=True):
                own[piece.parameter].append((piece, state))
        states = []
        for index, p in enumerate(self.params):
            config = configs[positions[index]]
            states.append(
                stored_states(
                    plan_parameter(tuple(p.shape), config), own[index], empty_state(p, config), p.device
                )
            )
        for ledger in self.ledgers.values():
            for row, index in enumerate(ledger.parameters):
                states[index]["scalars"] = ledger.scalars[row]
        return states

    def _gradient_norms(self, grads: Sequence[Tensor]) -> Tensor:
        """|g|_F^2 of what this rank has to tell of every gradient ``[P]``; of the others 0.

        Of replicas, each tells of its share of the parameters.

        Args:
            grads: what this rank holds of the gradients.
        """
        norms = torch.zeros(len(self.params), dtype=torch.float64, device=self.device)
        if self.norms is not None:
            norms.index_copy_(0, self.told_rows, self.norms.of([grads[index] for index in self.told]))
        return norms

    def _make_norms(self) -> GradientNorms | None:
        """Of the gradients whose norms this rank tells; None where it tells none."""
        self.told_rows = torch.tensor(self.told, dtype=torch.int64, device=self.device)
        own = [local(self.params[index]) for index in self.told]
        return GradientNorms(own, torch.float64, dots=False) if own else None

    def _told(self) -> list[int]:
        """The parameters whose gradients' norms this rank tells."""
        told = []
        for index, (holders, box) in enumerate(zip(self.holders, self.boxes, strict=True)):
            ranks = holders.ranks_of.get(box, ())
            if ranks and ranks[index % len(ranks)] == self.rank:
                told.append(index)
        return told

    def _sum(self, *vectors: Tensor) -> list[Tensor]:
        """Over all ranks."""
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


def _graft(p: Tensor, config: Config) -> str:
    return config.for_blocks(bool(plan_parameter(tuple(p.shape), config).regions)).graft
