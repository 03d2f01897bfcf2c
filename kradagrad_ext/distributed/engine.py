"""The optimizer's engine with state and work distributed over ranks, in shards of parameters."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from kradagrad_ext.full_precision import full_float32
from kradagrad_ext.state import State
from kradagrad_ext.step import GroupContext, LossScale, backend_of
from kradagrad_ext.whole_steps import WholeSteps

from .placement import locals_of
from .rank_states import States
from .sharded_params import ShardedParams, Whereabouts
from .sharded_state import ShardedTensorState


class ShardedEngine:
    """Engine with one shard of the first step's parameters, and one of those added between later steps."""

    locals_of = staticmethod(locals_of)

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group or dist.distributed_c10d._get_default_group()
        self._shards: list[ShardedParams] = []
        self.step = torch.compiler.disable(self._step)  # type: ignore[no-untyped-call]
        self._given: list[Tensor] = []  # all parameters, in the order of their groups
        self._sizes: list[int] = []  # number of parameters of each group
        self._consolidated = False

    def complete(self, state: States, contexts: Sequence[GroupContext]) -> list[list[State]]:
        """Update the shards to the parameter groups and the state; call it on all ranks.

        Args:
            state: the optimizer's; states that are missing are created.
            contexts: those of all parameter groups.

        Returns:
            The states of each shard's parameters.

        Raises:
            ValueError: an option does not fit sharding, or the existing state; nothing is changed then.
        """
        self._arrange(contexts)
        return [shard.kept.bring(state) for shard in self._shards]

    def _arrange(self, contexts: Sequence[GroupContext]) -> None:
        if any(context.config.capturable for context in contexts):
            raise ValueError("KrADagrad: `capturable` must be False where ranks share out the work, got True")
        params = [p for context in contexts for p in context.params]
        sizes = [len(context.params) for context in contexts]
        if sizes != self._sizes or not all(map(operator.is_, params, self._given)):
            self._find(contexts)
            self._given, self._sizes = params, sizes
        configs = {context.position: context.config for context in contexts}
        for shard in self._shards:
            shard.arrange(configs)
            shard.check(configs)

    def _find(self, contexts: Sequence[GroupContext]) -> None:
        """Locate the parameters of all shards, and add a shard of the parameters that are in none."""
        whereabouts = {p: (context.position, i) for context in contexts for i, p in enumerate(context.params)}
        known = {p for shard in self._shards for p in shard.params}
        new = [(context, p) for context in contexts for p in context.params if p not in known]
        if new:
            self._shards.append(self._make_shard(contexts, new, whereabouts))
        places = {p: place for place, p in enumerate(whereabouts)}
        for shard in self._shards:
            shard.whereabouts = [whereabouts.get(p) for p in shard.params]
            shard.places = [places.get(p, len(places)) for p in shard.params]

    def _make_shard(
        self,
        contexts: Sequence[GroupContext],
        new: Sequence[tuple[GroupContext, Tensor]],
        whereabouts: Mapping[Tensor, Whereabouts],
    ) -> ShardedParams:
        configs = {context.position: context.config for context in contexts}
        for position, device, dtype in {(context.position, p.device, p.dtype) for context, p in new}:
            backend_of(configs[position], device, dtype)  # raises before any state is created
        params, new_configs = [p for _, p in new], [context.config for context, _ in new]
        return ShardedParams(params, [whereabouts[p] for p in params], new_configs, self._group)

    def consolidate(self, state: States, to: int) -> None:
        """Gather every tensor that is stored in pieces on rank `to` of the group; call it on all ranks.

        Each tensor takes one collective of its size, so that no rank needs more memory on its device.
        """
        if not 0 <= to < self._group.size():
            raise ValueError(f"KrADagrad: `to` must be a rank in [0, {self._group.size()}), got {to}")
        self._consolidated = True
        for shard in self._shards:
            for index in sorted(shard.keys):
                for key, stored in state[shard.params[index]].items():
                    if isinstance(stored, ShardedTensorState):
                        whole = stored.gathered(to, self._group)
                        shape = shard.specs[index][key].shape
                        stored.whole = whole if whole is None else whole.reshape(shape)

    def restore(
        self, state: States, contexts: Sequence[GroupContext], saved: Mapping[Tensor, Mapping[str, Tensor]]
    ) -> None:
        """Load the values of a state dict."""
        self._arrange(contexts)
        self._consolidated = False
        for shard in self._shards:
            for index, p in enumerate(shard.params):
                state[p] = shard.kept.restored(index, saved[p]) if p in saved else {}
            shard.kept.bring(state)

    def _step(
        self,
        state: States,
        contexts: Sequence[GroupContext],
        loss_scale: LossScale,
        whole: WholeSteps,
    ) -> None:
        """Step the groups that have a gradient; called on all ranks, never compiled.

        Args:
            whole: records when the first change begins and when the step is complete.
        """
        with whole.step() as begin, full_float32():
            kept = self.complete(state, contexts)
            grads = [*itertools.chain.from_iterable(context.grads for context in contexts), None]
            stepped = {context.position: context for context in contexts if context.has_gradient}
            planned_steps = [
                shard.plan(states, stepped, list(map(grads.__getitem__, shard.places)))
                for shard, states in zip(self._shards, kept, strict=True)
            ]
            norms = [
                shard.gradient_norms(planned, loss_scale)
                for shard, planned in zip(self._shards, planned_steps, strict=True)
            ]
            begin()
            for shard in self._shards:
                shard.kept.drop_residuals(state)
            loss_scale.unscale_(stepped.values())
            self._scatter(state)
            for context in stepped.values():
                context.count()
            for shard, planned, (gradient_norms, present) in zip(
                self._shards, planned_steps, norms, strict=True
            ):
                shard.step(planned, gradient_norms, present)

    def _scatter(self, state: States) -> None:
        """Drop the consolidated tensors, which a step invalidates."""
        if not self._consolidated:
            return
        self._consolidated = False
        for values in state.values():
            for value in values.values():
                if isinstance(value, ShardedTensorState):
                    value.whole = None
