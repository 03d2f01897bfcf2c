"""The engine of one rank: it batches parameters by parameter group, device and dtype, and steps them."""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .blocking import Blocking, blocking_of
from .config import parameter_name
from .full_precision import full_float32
from .param_batch import KIND, ParamBatch, presence
from .state import State, StateWatch, check_state, drop_residuals
from .step import BatchStep, GroupContext, LossScale, backend_of, plan_batch, step_batch
from .whole_steps import WholeSteps

GroupStates = list[State | None]
"""The entry in ``optimizer.state`` of each parameter of a parameter group; None without one."""


@dataclass(frozen=True)
class PlacedBatch:
    """A param batch in a parameter group.

    Attributes:
        members: indices of its parameters in the parameter group.  watch: notices changes of their states.
    """

    batch: ParamBatch
    members: list[int]
    watch: StateWatch

    def tensors(self, group_states: GroupStates) -> list[Tensor] | None:
        """Return the state tensors from which the param batch derives its state.

        None if the states are not as the param batch left them.

        Args:
            group_states: the states of the parameter group's parameters.
        """
        states = self.of(group_states)
        if not all(states) or not self.watch.holds(states):
            return None
        try:
            return [states[i][key] for i, key in self.batch.entries]
        except KeyError:
            return None

    def drop_residuals(self, state: Mapping[Tensor, State]) -> None:
        """Delete unused residuals of the param batch's parameters; see `state.drop_residuals`."""
        states = [state[p] for p in self.batch.params]
        dropped = [drop_residuals(*pair) for pair in zip(states, self.batch.specs, strict=True)]
        if any(dropped):
            self.watch.look_at(states)

    def of(self, values: Sequence[Any]) -> list[Any]:
        """Return the values of the param batch's parameters, from one value per parameter of the group."""
        return [values[i] for i in self.members]


@dataclass(frozen=True)
class GroupBatches:
    """The param batches of one parameter group.

    Attributes:
        params: the parameter group's.  kinds: the `KIND` of each.
        placed: the param batches.
        outside: indices of the parameters in no param batch, which had neither a gradient nor state.
    """

    params: list[Tensor]
    kinds: list[Any]
    placed: list[PlacedBatch]
    outside: list[int]

    def tensors(self, context: GroupContext, group_states: GroupStates) -> list[list[Tensor]] | None:
        """Return the state tensors of each param batch; see `PlacedBatch.tensors`.

        None if the parameters, their states or `rounding` have changed so that a param batch does not fit.
        """
        params = context.params
        if (
            list(map(KIND, params)) != self.kinds
            or not all(map(operator.is_, params, self.params))
            or not all(placed.batch.is_rounded_as(context.config) for placed in self.placed)
        ):
            return None
        tensors = [found for placed in self.placed if (found := placed.tensors(group_states)) is not None]
        return tensors if len(tensors) == len(self.placed) else None

    def joining(self, context: GroupContext, group_states: GroupStates) -> list[int]:
        """Return the indices of the parameters in no param batch that have a gradient or state."""
        return [i for i in self.outside if context.grads[i] is not None or group_states[i]]


@dataclass(frozen=True)
class PlannedStep:
    """One param batch's share of a step; see `step_batch`."""

    step: BatchStep
    grads: list[Tensor]
    present: Tensor


class LocalEngine:
    """The param batches of an optimizer, rebuilt when its parameter groups or its state change."""

    @staticmethod
    def locals_of(tensors: list[Any]) -> list[Any]:
        """Return the tensors unchanged: this rank holds all of them."""
        return tensors

    def __init__(self) -> None:
        self._by_position: dict[int, GroupBatches] = {}
        # torch.compile traces each param batch's step as a graph; all other code stays eager.
        self.step = torch.compiler.disable(self._step, recursive=False)  # type: ignore[no-untyped-call]
        self._plan = torch.compiler.disable(self._plan_groups)  # type: ignore[no-untyped-call]
        self._step_eagerly = torch.compiler.disable(step_batch)  # type: ignore[no-untyped-call]

    def complete(self, state: MutableMapping[Tensor, State], contexts: Sequence[GroupContext]) -> None:
        """Do nothing: state is created lazily, with a parameter's first gradient."""

    def consolidate(self, state: MutableMapping[Tensor, State], to: int) -> None:
        """Do nothing: this rank has the full state."""

    def restore(
        self,
        state: MutableMapping[Tensor, State],
        contexts: Sequence[GroupContext],
        saved: Mapping[Tensor, Mapping[str, Tensor]],
    ) -> None:
        """Copy the values of a state dict into `state`."""
        for p, tensors in saved.items():
            state[p] = {key: value.detach().clone().to(p.device) for key, value in tensors.items()}

    def _step(
        self,
        state: MutableMapping[Tensor, State],
        contexts: Sequence[GroupContext],
        loss_scale: LossScale,
        whole: WholeSteps,
    ) -> None:
        """Step all param batches.

        Only steps with `capturable` are compiled: others differ from step to step.

        Args:
            state: the optimizer's.  contexts: of all parameter groups.
            whole: records when the first change begins and when the step is complete.
        """
        with whole.step() as begin, full_float32():
            for planned in self._plan(state, contexts, loss_scale, begin):
                advance = step_batch if planned.step.config.capturable else self._step_eagerly
                advance(planned.step, planned.grads, planned.present, loss_scale)

    def _plan_groups(
        self,
        state: MutableMapping[Tensor, State],
        contexts: Sequence[GroupContext],
        loss_scale: LossScale,
        begin: Callable[[], None],
    ) -> list[PlannedStep]:
        """Make all decisions of the host, then begin the step: create state, unscale gradients, count.

        An exception before `begin` leaves all values of parameters, state and gradients as they were.
        """
        by_position: dict[int, GroupBatches] = {}
        new: dict[Tensor, State] = {}
        active = [context for context in contexts if context.has_gradient]
        planned = [each for context in active for each in self._plan_group(context, state, by_position, new)]
        changed = [
            group_batches
            for position, group_batches in by_position.items()
            if group_batches is not self._by_position.get(position)
        ]
        kept = range(len(contexts))
        self._by_position = {
            position: self._by_position[position] for position in kept if position in self._by_position
        }
        self._by_position |= by_position
        begin()
        state.update(new)
        for placed in itertools.chain.from_iterable(group_batches.placed for group_batches in changed):
            placed.drop_residuals(state)
        loss_scale.unscale_(active)
        for context in active:
            context.count()
        return planned

    def _plan_group(
        self,
        context: GroupContext,
        state: Mapping[Tensor, State],
        by_position: dict[int, GroupBatches],
        new: dict[Tensor, State],
    ) -> list[PlannedStep]:
        """Plan every param batch of a parameter group that has a gradient.

        Args:
            by_position: receives this parameter group's batches.  new: receives states to be created.
        """
        group_states: GroupStates = list(map(state.get, context.params))
        kept = self._kept(context, group_states)
        joining = [] if kept is None else kept[0].joining(context, group_states)
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            _check_capture(context, None if kept is None or joining else kept[0])
        if kept is None:
            kept = self._reusable(context, group_states)
            joining = kept[0].joining(context, group_states)
        group_batches, of_batches = kept
        if joining:
            group_batches, of_batches = self._extended(*kept, joining, context, group_states, new)
        by_position[context.position] = group_batches
        planned = []
        for placed, tensors in zip(group_batches.placed, of_batches, strict=True):
            placed.batch.check(context.config)
            gradients = placed.batch.gradients(placed.of(context.grads))
            if gradients is not None:
                planned.append(PlannedStep(plan_batch(placed.batch, context, tensors), *gradients))
        return planned

    def _kept(
        self, context: GroupContext, group_states: GroupStates
    ) -> tuple[GroupBatches, list[list[Tensor]]] | None:
        """Return the parameter group's batches and the state tensors of each; None if they do not fit."""
        group_batches = self._by_position.get(context.position)
        tensors = None if group_batches is None else group_batches.tensors(context, group_states)
        return None if group_batches is None or tensors is None else (group_batches, tensors)

    def _extended(
        self,
        group_batches: GroupBatches,
        tensors: list[list[Tensor]],
        joining: Sequence[int],
        context: GroupContext,
        group_states: GroupStates,
        new: dict[Tensor, State],
    ) -> tuple[GroupBatches, list[list[Tensor]]]:
        """Return the group's batches with the joining parameters, by device, dtype and grafting method.

        They make one more param batch. It absorbs each older one with no more parameters than it has so far,
        so that n parameters that join one by one move each state log n times.

        Args:
            tensors: the state tensors of each of its param batches.
            group_states: of the parameter group's parameters; receives new states.  new: receives them, too.

        Returns:
            The group's batches, and the state tensors of each param batch.
        """
        config, params = context.config, context.params
        kept = list(zip(group_batches.placed, tensors, strict=True))
        by_key: dict[tuple[torch.device, torch.dtype, str], list[int]] = defaultdict(list)
        blockings = {i: blocking_of(params[i].shape, config) for i in joining}
        for i, blocking in blockings.items():
            graft = config.for_blocks(bool(blocking.grids)).graft
            by_key[params[i].device, params[i].dtype, graft].append(i)
        for device, dtype, _ in by_key:
            backend_of(config, device, dtype)  # raises before any state is created
        for key, members in by_key.items():
            kept.sort(key=lambda pair: len(pair[0].members), reverse=True)
            for pair in [pair for pair in reversed(kept) if pair[0].batch.label == key]:
                placed, _ = pair
                if len(placed.members) <= len(members):
                    members += placed.members
                    blockings |= dict(zip(placed.members, placed.batch.blockings, strict=True))
                    kept.remove(pair)
            members.sort()
            kept.append(self._place(context, members, [blockings[i] for i in members], group_states, new))
        outside = sorted(set(group_batches.outside).difference(joining))
        batches = [placed for placed, _ in kept]
        return replace(group_batches, placed=batches, outside=outside), [tensors for _, tensors in kept]

    def _reusable(
        self, context: GroupContext, group_states: GroupStates
    ) -> tuple[GroupBatches, list[list[Tensor]]]:
        """Return the param batches of any parameter group that fit this one's parameters.

        Returns:
            These batches, and the state tensors of each.
        """
        params, outside, kept = context.params, set(range(len(context.params))), []
        places = {p: i for i, p in enumerate(params)}
        for old in (
            placed for group_batches in self._by_position.values() for placed in group_batches.placed
        ):
            old_params = old.batch.params
            placed = replace(old, members=[places[p] for p in old_params if p in places])
            if (
                len(placed.members) == len(old_params)
                and outside.issuperset(placed.members)  # the batches of groups without a step may be outdated
                and list(map(KIND, old_params)) == old.batch.kinds
                and old.batch.is_of(context.config)
                and (tensors := placed.tensors(group_states)) is not None
            ):
                kept.append((placed, tensors))
                outside.difference_update(placed.members)
        batches = [placed for placed, _ in kept]
        group_batches = GroupBatches(list(params), list(map(KIND, params)), batches, sorted(outside))
        return group_batches, [tensors for _, tensors in kept]

    @staticmethod
    def _place(
        context: GroupContext,
        members: list[int],
        blockings: Sequence[Blocking],
        group_states: GroupStates,
        new: dict[Tensor, State],
    ) -> tuple[PlacedBatch, list[Tensor]]:
        """Return a new param batch that has adopted its parameters' states, and its state tensors."""
        config, params = context.config, [context.params[i] for i in members]
        batch = ParamBatch(params, config, blockings)
        batch.check(config)
        for i, p, specs in zip(members, params, batch.specs, strict=True):
            state = group_states[i]
            if state:
                check_state(state, specs, parameter_name(context.position, i))
            else:
                group_states[i] = new[p] = {}
        states: list[Any] = [group_states[i] for i in members]
        batch.adopt(states)
        tensors = [states[i][key] for i, key in batch.entries]
        return PlacedBatch(batch, members, StateWatch(states, tensors)), tensors


def _check_capture(context: GroupContext, group_batches: GroupBatches | None) -> None:
    """Refuse CUDA graph capture if replaying the graph would not reproduce a step.

    Args:
        group_batches: the parameter group's; None if it does not fit this step.

    Raises:
        RuntimeError: capture is refused; the message gives the reason.
    """
    where = f"parameter group {context.position}"
    if not context.config.capturable:
        raise RuntimeError(
            f"KrADagrad: `capturable` of {where} must be True where a step is captured, got False"
        )
    for i, (p, grad) in enumerate(zip(context.params, context.grads, strict=True)):
        if grad is None and p.requires_grad:
            raise RuntimeError(
                f"KrADagrad: every parameter must have a gradient where a step is captured, as a graph would "
                f"never step the others, got none for {parameter_name(context.position, i)}"
            )
    if group_batches is None:
        raise RuntimeError(
            f"KrADagrad: a step must be taken before one is captured, as parameters of {where} have no state "
            "yet, or another than on the last step"
        )
    for option, value in (("lr", context.lr), ("weight_decay", context.config.weight_decay)):
        if isinstance(value, Tensor) and value.device.type == "cpu":
            raise RuntimeError(
                f"KrADagrad: `{option}` of {where} must be a tensor on the parameters' device where a step "
                "is captured, as a graph would keep its value of today, got one on the CPU"
            )
    presences = [(placed.batch, presence(placed.of(context.grads))) for placed in group_batches.placed]
    if any(any(there) and batch.mask(there) not in batch.masks for batch, there in presences):
        raise RuntimeError(
            "KrADagrad: the same parameters must have gradients where a step is captured as on an earlier "
            f"step, got others in {where}"
        )
