"""The optimizer's engine where ranks share out state and work: shards, made as parameters come."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kradagrad_ext.full_precision import full_float32
from kradagrad_ext.grafting import STEPS
from kradagrad_ext.state import empty_state
from kradagrad_ext.step import LossScale, Settings, backend_of

from .layout import locals_of
from .shard import Shard
from .stored import StoredPieces


class Sharded:
    """One shard of all parameters that there are on the first step, and one of those added between two."""

    locals_of = staticmethod(locals_of)

    def __init__(self, state: dict[Tensor, Any], group: dist.ProcessGroup | None) -> None:
        self._state, self._group = state, group or dist.distributed_c10d._get_default_group()
        self._shards: list[Shard] = []
        self.step = torch.compiler.disable(self._step)  # type: ignore[no-untyped-call]
        self._all: Sequence[Settings] = ()
        self._live: dict[Tensor, dict[str, Tensor]] = {}
        self._given: list[Tensor] = []
        self._consolidated = False

    def check(self, settings: Sequence[Settings]) -> None:
        """Raise ValueError if an option does not fit sharding, or the state that there is.

        Args:
            settings: of all parameter groups.
        """
        if any(own.config.capturable for own in settings):
            raise ValueError("KrADagrad: `capturable` must be False where ranks share out the work, got True")
        self._all = settings
        configs = {own.position: own.config for own in settings}
        for shard in self._shards:
            shard.check(configs)

    def complete(self, settings: Sequence[Settings]) -> None:
        """Make the state of parameters that have none yet; on all ranks alike.

        Args:
            settings: of all parameter groups.
        """
        self._all = settings
        given = [p for own in settings for p in own.params]
        if len(given) == len(self._given) and all(map(operator.is_, given, self._given)):
            return
        new = [(own, i, p) for own in settings for i, p in enumerate(own.params) if p not in self._live]
        if new:
            self._shards.append(self._make_shard(new))
            self._state.update(self._live)
        places = {p: place for place, p in enumerate(given)}
        for shard in self._shards:
            shard.places = [places.get(p, len(given)) for p in shard.params]
        self._given = given

    def consolidate(self, to: int) -> None:
        """Gather every tensor that lies in pieces on one rank of the group; on all ranks alike.

        One collective of the tensor's size each, so that no rank needs more room on its device.
        """
        if not 0 <= to < self._group.size():
            raise ValueError(f"KrADagrad: `to` must be a rank in [0, {self._group.size()}), got {to}")
        self._consolidated = True
        for own in self._all:
            for p in own.params:
                expected = empty_state(p, own.config)
                for key, stored in self._live[p].items():
                    if isinstance(stored, StoredPieces):
                        whole = stored.gathered(to, self._group)
                        stored.whole = whole if whole is None else whole.reshape(expected[key].shape)

    def restore(self, state: dict[Tensor, Any], saved: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
        """Take over the values of a state dict; `state`: the optimizer's, which is made anew then."""
        self._scatter()
        for p, values in saved.items():
            for key, value in values.items():
                live = self._live[p][key]
                live.take_over(value) if isinstance(live, StoredPieces) else live.copy_(value)
        self._state = state
        self._state.update(self._live)
        for shard in self._shards:
            shard.unseen = {i for i, p in enumerate(shard.params) if not self._live[p]["scalars"][STEPS] > 0}

    def _step(self, settings: Sequence[Settings], loss_scale: LossScale) -> None:
        """One step of the groups that have a gradient; on all ranks alike, and never compiled."""
        self.complete(self._all)
        by_position = {own.position: own for own in settings}
        grads = self._gradients(by_position)
        plans = [shard.plan(by_position, [grads[i] for i in shard.places]) for shard in self._shards]
        self._scatter()
        loss_scale.unscale_(settings)
        for own in settings:
            own.count()
        with full_float32():
            for shard, plan in zip(self._shards, plans, strict=True):
                shard.step(plan, loss_scale)

    def _gradients(self, settings: Mapping[int, Settings]) -> list[Tensor | None]:
        """Of all parameters of all groups, and None for those that are in none any more."""
        of_groups = (
            settings[own.position].grads if own.position in settings else [None] * len(own.params)
            for own in self._all
        )
        return [*itertools.chain.from_iterable(of_groups), None]

    def _scatter(self) -> None:
        """Forget what was consolidated, which no longer holds."""
        if not self._consolidated:
            return
        self._consolidated = False
        for values in self._live.values():
            for value in values.values():
                if isinstance(value, StoredPieces):
                    value.whole = None

    def _make_shard(self, new: Sequence[tuple[Settings, int, Tensor]]) -> Shard:
        names = [f"parameter {i} of parameter group {own.position}" for own, i, _ in new]
        configs = {own.position: own.config for own in self._all}
        for position, device, dtype in {(own.position, p.device, p.dtype) for own, _, p in new}:
            backend_of(configs[position], device, dtype)  # which raises before there is any state
        positions = [own.position for own, _, _ in new]
        shard = Shard([p for *_, p in new], names, positions, configs, self._group)
        self._live |= dict(zip(shard.params, shard.parameter_states(positions, configs), strict=True))
        return shard
