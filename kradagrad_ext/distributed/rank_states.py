"""The entries of ``optimizer.state`` for a shard's parameters on this rank, and their storage in batches."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from kradagrad_ext.blocking import Blocking
from kradagrad_ext.state import SCALARS, AliveCheck, State, TensorSpec, check_state, drop_residuals, values_of

from .owned import CommonScalars, OwnedBatch
from .placement import local
from .sharded_state import PiecePlace, ShardedTensorState, empty_pieces, places_of

States = MutableMapping[Tensor, State]
"""``optimizer.state``."""


class RankStates:
    """The states of the parameters that are in a parameter group.

    Every rank keeps the scalars of whole parameters, and all other entries of the pieces that it owns.

    Args:
        params: those of the shard.  blockings, specs: each one's blocking and state specs.
        names: those of the parameters in a group, by index.
        owned_batches, common_scalars: those of this rank.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        names: Mapping[int, str],
        blockings: Sequence[Blocking],
        specs: Sequence[Mapping[str, TensorSpec]],
        owned_batches: Sequence[OwnedBatch],
        common_scalars: Sequence[CommonScalars],
    ) -> None:
        self._params, self._names, self._blockings, self._specs = params, names, blockings, specs
        self._owned_batches, self._common_scalars = owned_batches, common_scalars
        self._places: list[Sequence[Mapping[str, PiecePlace]]] = [()] * len(params)
        self._place_pieces()
        self._remember([])
        self._is_new = False

    def _place_pieces(self) -> None:
        """Record in every owned batch where the states of its pieces are stored."""
        by_parameter: list[list[tuple[OwnedBatch, int]]] = [[] for _ in self._params]
        for owned in self._owned_batches:
            for number, piece in enumerate(owned.pieces):
                by_parameter[piece.parameter].append((owned, number))
        for parameter, pieces in enumerate(by_parameter):
            described = [(owned.pieces[number], owned.batch.specs[number]) for owned, number in pieces]
            self._places[parameter] = places_of(self._blockings[parameter], described)
            for (owned, number), places in zip(pieces, self._places[parameter], strict=True):
                owned.places[number] = places

    def bring(self, state: States) -> list[State]:
        """Give every parameter a state whose pieces are stored in batches; call it on all ranks.

        Returns:
            The states of all parameters; those of parameters in no group are empty.

        Raises:
            ValueError: a state does not fit its specs; nothing is changed then.
        """
        present: list[State] = [entries or {} for entries in map(state.get, self._params)]
        named = present if len(self._names) == len(present) else [present[i] for i in self._names]
        if self._ids and self._lives.all_here and list(map(id, values_of(named))) == self._ids:
            return present
        old = dict(zip(self._names, named, strict=True))
        states: list[State] = [self._state(i, old[i]) if i in old else {} for i in range(len(present))]
        # Before tensors are moved, so that the optimizer's state does not keep the old ones.
        state.update({self._params[i]: states[i] for i in old if old[i]})
        for owned in self._owned_batches:
            owned.batch.adopt(owned.states(states))
        for common in self._common_scalars:
            common.adopt([states[index] for index in common.parameters])
        state.update({self._params[i]: states[i] for i in old})
        self._remember([states[i] for i in old])
        self._is_new = True
        return states

    def drop_residuals(self, state: States) -> None:
        """See `state.drop_residuals`."""
        if not self._is_new:
            return
        self._is_new = False
        pairs = [(state[self._params[i]], self._specs[i]) for i in self._names]
        dropped = [drop_residuals(*pair) for pair in pairs]
        if any(dropped):
            self._remember([entries for entries, _ in pairs])

    def _remember(self, states: Sequence[State]) -> None:
        """Record the ids of these states' tensors, which are valid as long as all of these are alive."""
        self._ids = list(map(id, values_of(states)))
        self._lives = AliveCheck(values_of(states))

    def restored(self, index: int, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a parameter's saved state, with pieces copied and blocks in the shape of their grid."""
        shapes = {key: stored.shape for key, stored in self._empty(index).items()}
        return {
            key: value.clone()
            if isinstance(value, ShardedTensorState)
            else value.reshape(shapes.get(key, value.shape))
            for key, value in saved.items()
        }

    def _empty(self, index: int) -> dict[str, ShardedTensorState]:
        device = local(self._params[index]).device
        return empty_pieces(self._blockings[index], self._specs[index], self._places[index], device)

    def _state(self, index: int, old: State | None) -> dict[str, Any]:
        """Return a parameter's state as a new dict of pieces: the old ones, or pieces yet to be created."""
        empty, scalars = self._empty(index), self._specs[index][SCALARS]
        if not old:
            return {SCALARS: None, **empty}
        specs = {key: TensorSpec(tuple(stored.shape), stored.dtype) for key, stored in empty.items()}
        check_state(old, {SCALARS: scalars, **specs}, self._names[index])
        shared = {key: stored.shared_from(old.get(key, stored)) for key, stored in empty.items()}
        unused = {key: value for key, value in old.items() if key not in self._specs[index]}
        return {SCALARS: old[SCALARS], **shared, **unused}
