"""The optimizer's engine where ranks share out state and work: shards, made as parameters come."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from kradagrad_ext.full_precision import full_float32
from kradagrad_ext.state import State
from kradagrad_ext.step import LossScale, Settings, backend_of
from kradagrad_ext.whole_steps import WholeSteps

from .kept import States
from .layout import locals_of
from .shard import Shard, Whereabouts
from .stored import StoredPieces


class Sharded:
    """One shard of all parameters that there are on the first step, and one of those added between two."""

    locals_of = staticmethod(locals_of)

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group or dist.distributed_c10d._get_default_group()
        self._shards: list[Shard] = []
        self.step = torch.compiler.disable(self._step)  # type: ignore[no-untyped-call]
        self._given: list[Tensor] = []  # all parameters, group after group
        self._sizes: list[int] = []  # of the groups
        self._consolidated = False

    def complete(self, state: States, settings: Sequence[Settings]) -> list[list[State]]:
        """Bring the shards to what parameter groups and state are; on all ranks alike.

        Args:
            state: the optimizer's; that of parameters that have none yet is made.
            settings: of all parameter groups.

        Returns:
            The states of each shard's parameters.

        Raises:
            ValueError: an option does not fit sharding, or the state that there is; nothing is changed then.
        """
        self._arrange(settings)
        return [shard.kept.bring(state) for shard in self._shards]

    def _arrange(self, settings: Sequence[Settings]) -> None:
        if any(own.config.capturable for own in settings):
            raise ValueError("KrADagrad: `capturable` must be False where ranks share out the work, got True")
        given, sizes = [p for own in settings for p in own.params], [len(own.params) for own in settings]
        if sizes != self._sizes or not all(map(operator.is_, given, self._given)):
            self._find(settings)
            self._given, self._sizes = given, sizes
        configs = {own.position: own.config for own in settings}
        for shard in self._shards:
            shard.arrange(configs)
            shard.check(configs)

    def _find(self, settings: Sequence[Settings]) -> None:
        """Where all shards' parameters are now, and a shard of those that are in none."""
        found = {p: (own.position, i) for own in settings for i, p in enumerate(own.params)}
        known = {p for shard in self._shards for p in shard.params}
        new = [(own, p) for own in settings for p in own.params if p not in known]
        if new:
            self._shards.append(self._make_shard(settings, new, found))
        places = {p: place for place, p in enumerate(found)}
        for shard in self._shards:
            shard.found = [found.get(p) for p in shard.params]
            shard.places = [places.get(p, len(places)) for p in shard.params]

    def _make_shard(
        self,
        settings: Sequence[Settings],
        new: Sequence[tuple[Settings, Tensor]],
        found: Mapping[Tensor, Whereabouts],
    ) -> Shard:
        configs = {own.position: own.config for own in settings}
        for position, device, dtype in {(own.position, p.device, p.dtype) for own, p in new}:
            backend_of(configs[position], device, dtype)  # which raises before there is any state
        params = [p for _, p in new]
        return Shard(params, [found[p] for p in params], [own.config for own, _ in new], self._group)

    def consolidate(self, state: States, to: int) -> None:
        """Gather every tensor that lies in pieces on one rank of the group; on all ranks alike.

        One collective of the tensor's size each, so that no rank needs more room on its device.
        """
        if not 0 <= to < self._group.size():
            raise ValueError(f"KrADagrad: `to` must be a rank in [0, {self._group.size()}), got {to}")
        self._consolidated = True
        for shard in self._shards:
            for index in sorted(shard.keys):
                for key, stored in state[shard.params[index]].items():
                    if isinstance(stored, StoredPieces):
                        whole = stored.gathered(to, self._group)
                        shape = shard.specs[index][key].shape
                        stored.whole = whole if whole is None else whole.reshape(shape)

    def restore(
        self, state: States, settings: Sequence[Settings], saved: Mapping[Tensor, Mapping[str, Tensor]]
    ) -> None:
        """Take over the values of a state dict."""
        self._arrange(settings)
        self._consolidated = False
        for shard in self._shards:
            for index, p in enumerate(shard.params):
                state[p] = shard.kept.restored(index, saved[p]) if p in saved else {}
            shard.kept.bring(state)

    def _step(
        self,
        state: States,
        settings: Sequence[Settings],
        loss_scale: LossScale,
        whole: WholeSteps,
    ) -> None:
        """One step of the groups that have a gradient; on all ranks alike, and never compiled.

        Args:
            whole: is told when the first change begins, and when all is done.
        """
        with whole.step() as begin, full_float32():
            kept = self.complete(state, settings)
            grads = [*itertools.chain.from_iterable(own.grads for own in settings), None]
            taken = {own.position: own for own in settings if own.has_gradient}
            plans = [
                shard.plan(states, taken, list(map(grads.__getitem__, shard.places)))
                for shard, states in zip(self._shards, kept, strict=True)
            ]
            seen = [shard.observed(plan, loss_scale) for shard, plan in zip(self._shards, plans, strict=True)]
            begin()
            for shard in self._shards:
                shard.kept.drop_residuals(state)
            loss_scale.unscale_(taken.values())
            self._scatter(state)
            for own in taken.values():
                own.count()
            for shard, plan, own_seen in zip(self._shards, plans, seen, strict=True):
                shard.step(plan, *own_seen)

    def _scatter(self, state: States) -> None:
        """Forget what was consolidated, which no longer holds."""
        if not self._consolidated:
            return
        self._consolidated = False
        for values in state.values():
            for value in values.values():
                if isinstance(value, StoredPieces):
                    value.whole = None
