"""What ``optimizer.state`` holds of a shard's parameters on this rank, and how it comes to lie in batches."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from kradagrad_ext.plan import ParameterPlan
from kradagrad_ext.state import SCALARS, Lives, Spec, State, check_state, drop_residuals, values_of

from .layout import local
from .parts import Ledger, Part
from .stored import Place, StoredPieces, empty_pieces, places_of

States = MutableMapping[Tensor, State]
"""``optimizer.state``."""


class KeptStates:
    """The states of the parameters that are in a parameter group.

    Scalars are kept in whole, all else in pieces, of which this rank has its own.

    Args:
        params: of the shard.  plans, specs: of each, and of its state.
        names: of those in a group, by their index.
        parts, ledgers: what this rank has of them.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        names: Mapping[int, str],
        plans: Sequence[ParameterPlan],
        specs: Sequence[Mapping[str, Spec]],
        parts: Sequence[Part],
        ledgers: Sequence[Ledger],
    ) -> None:
        self._params, self._names, self._plans, self._specs = params, names, plans, specs
        self._parts, self._ledgers = parts, ledgers
        self._places: list[Sequence[Mapping[str, Place]]] = [()] * len(params)
        self._place_pieces()
        self._remember([])
        self._is_new = False

    def _place_pieces(self) -> None:
        """Tell every part where the states of its pieces are kept."""
        pieces: list[list[tuple[Part, int]]] = [[] for _ in self._params]
        for part in self._parts:
            for number, piece in enumerate(part.pieces):
                pieces[piece.parameter].append((part, number))
        for parameter, own in enumerate(pieces):
            described = [(part.pieces[number], part.bucket.specs[number]) for part, number in own]
            self._places[parameter] = places_of(self._plans[parameter], described)
            for (part, number), places in zip(own, self._places[parameter], strict=True):
                part.places[number] = places

    def bring(self, state: States) -> list[State]:
        """See that all parameters have a state, whose pieces lie in batches; on all ranks alike.

        Returns:
            The states of all parameters; empty ones of those that are in no group.

        Raises:
            ValueError: a state is not as it is to be; nothing is changed then.
        """
        every: list[State] = [held or {} for held in map(state.get, self._params)]
        named = every if len(self._names) == len(every) else [every[i] for i in self._names]
        if self._ids and self._lives.all_here and list(map(id, values_of(named))) == self._ids:
            return every
        held = dict(zip(self._names, named, strict=True))
        states: list[State] = [self._state(i, held[i]) if i in held else {} for i in range(len(every))]
        found = {self._params[i]: states[i] for i in held if held[i]}
        state.update(found)  # so that nothing keeps what is moved
        for part in self._parts:
            part.bucket.adopt(part.states(states))
        for ledger in self._ledgers:
            ledger.adopt([states[index] for index in ledger.parameters])
        state.update({self._params[i]: states[i] for i in held})
        self._remember([states[i] for i in held])
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
            self._remember([own for own, _ in pairs])

    def _remember(self, states: Sequence[State]) -> None:
        """What is in these states, as numbers of objects, which are theirs while none of them is gone."""
        self._ids = list(map(id, values_of(states)))
        self._lives = Lives(values_of(states))

    def restored(self, index: int, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A parameter's saved state in tensors of its own; blocks in their grid, not one after the other."""
        shapes = {key: stored.shape for key, stored in self._empty(index).items()}
        return {
            key: own.clone() if isinstance(own, StoredPieces) else own.reshape(shapes.get(key, own.shape))
            for key, own in saved.items()
        }

    def _empty(self, index: int) -> dict[str, StoredPieces]:
        device = local(self._params[index]).device
        return empty_pieces(self._plans[index], self._specs[index], self._places[index], device)

    def _state(self, index: int, held: State | None) -> dict[str, Any]:
        """A parameter's state in new dicts and in pieces: what there is, or with parts that are not made."""
        empty, scalars = self._empty(index), self._specs[index][SCALARS]
        if not held:
            return {SCALARS: None, **empty}
        kept = {key: Spec(tuple(stored.shape), stored.dtype) for key, stored in empty.items()}
        check_state(held, {SCALARS: scalars, **kept}, self._names[index])
        shared = {key: stored.shared_from(held.get(key, stored)) for key, stored in empty.items()}
        in_vain = {key: value for key, value in held.items() if key not in self._specs[index]}
        return {SCALARS: held[SCALARS], **shared, **in_vain}
