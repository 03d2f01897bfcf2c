"""All of the work on this rank: parameters batched by parameter group, device and dtype."""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .bucket import KIND, Bucket, presence
from .config import parameter_name
from .full_precision import full_float32
from .plan import ParameterPlan, plan_parameter
from .state import State, Watch, check_state, drop_residuals
from .step import LossScale, Settings, Work, backend_of, plan_work, step_bucket
from .whole_steps import WholeSteps

Held = list[State | None]
"""What ``optimizer.state`` has of each parameter of a group."""


@dataclass(frozen=True)
class Placed:
    """A bucket in a parameter group.

    Attributes:
        members: the places of its parameters in the group.  watch: over their states.
    """

    bucket: Bucket
    members: list[int]
    watch: Watch

    def wanted(self, held: Held) -> list[Tensor] | None:
        """The entries that the bucket wants of the states of the group's parameters.

        None where the states are not those that it has left.
        """
        states = self.of(held)
        if not all(states) or not self.watch.holds(states):
            return None
        try:
            return [states[i][key] for i, key in self.bucket.wanted]
        except KeyError:
            return None

    def drop_residuals(self, state: Mapping[Tensor, State]) -> None:
        """See `state.drop_residuals`."""
        states = [state[p] for p in self.bucket.params]
        dropped = [drop_residuals(*pair) for pair in zip(states, self.bucket.specs, strict=True)]
        if any(dropped):
            self.watch.look_at(states)

    def of(self, values: Sequence[Any]) -> list[Any]:
        """The values of the bucket's parameters, of those of the group's."""
        return [values[i] for i in self.members]


@dataclass(frozen=True)
class Roster:
    """The buckets of one parameter group.

    Attributes:
        params: the group's.  kinds: of each its `KIND`.
        outside: places of the parameters that are in none, which had neither a gradient nor state.
    """

    params: list[Tensor]
    kinds: list[Any]
    placed: list[Placed]
    outside: list[int]

    def wanted(self, settings: Settings, held: Held) -> list[list[Tensor]] | None:
        """What each bucket wants of the parameters' states; see `Placed`.

        None where the buckets are not of these parameters.
        """
        params = settings.params
        if (
            list(map(KIND, params)) != self.kinds
            or not all(map(operator.is_, params, self.params))
            or not all(placed.bucket.is_rounded_as(settings.config) for placed in self.placed)
        ):
            return None
        found = [wanted for placed in self.placed if (wanted := placed.wanted(held)) is not None]
        return found if len(found) == len(self.placed) else None

    def joining(self, settings: Settings, held: Held) -> list[int]:
        """Places of the parameters that are in no bucket, but have a gradient or state by now."""
        return [i for i in self.outside if settings.grads[i] is not None or held[i]]


@dataclass(frozen=True)
class Planned:
    """One bucket's share of a step; see `step_bucket`."""

    work: Work
    grads: list[Tensor]
    present: Tensor


class Local:
    """The buckets of an optimizer, which follow its parameter groups and its state."""

    @staticmethod
    def locals_of(tensors: list[Any]) -> list[Any]:
        """The tensors, all of which this rank holds."""
        return tensors

    def __init__(self) -> None:
        self._rosters: dict[int, Roster] = {}
        # To torch.compile, a bucket's step is a graph and all else the host's.
        self.step = torch.compiler.disable(self._step, recursive=False)  # type: ignore[no-untyped-call]
        self._plan = torch.compiler.disable(self._plan_groups)  # type: ignore[no-untyped-call]
        self._step_eagerly = torch.compiler.disable(step_bucket)  # type: ignore[no-untyped-call]

    def complete(self, state: MutableMapping[Tensor, State], settings: Sequence[Settings]) -> None:
        """Nothing: state is made as gradients come."""

    def consolidate(self, state: MutableMapping[Tensor, State], to: int) -> None:
        """Nothing: all state is whole."""

    def restore(
        self,
        state: MutableMapping[Tensor, State],
        settings: Sequence[Settings],
        saved: Mapping[Tensor, Mapping[str, Tensor]],
    ) -> None:
        """Take over the values of a state dict."""
        for p, tensors in saved.items():
            state[p] = {key: value.detach().clone().to(p.device) for key, value in tensors.items()}

    def _step(
        self,
        state: MutableMapping[Tensor, State],
        settings: Sequence[Settings],
        loss_scale: LossScale,
        whole: WholeSteps,
    ) -> None:
        """Every bucket's step.

        Only with `capturable` is it compiled: else it differs from step to step.

        Args:
            state: the optimizer's.  settings: of all parameter groups.
            whole: is told when the first change begins, and when all is done.
        """
        with whole.step() as begin, full_float32():
            for planned in self._plan(state, settings, loss_scale, begin):
                advance = step_bucket if planned.work.config.capturable else self._step_eagerly
                advance(planned.work, planned.grads, planned.present, loss_scale)

    def _plan_groups(
        self,
        state: MutableMapping[Tensor, State],
        settings: Sequence[Settings],
        loss_scale: LossScale,
        begin: Callable[[], None],
    ) -> list[Planned]:
        """All that the host decides; the gradients, unscaled, and which there are."""
        rosters: dict[int, Roster] = {}
        new: dict[Tensor, State] = {}
        taken = [own for own in settings if own.has_gradient]
        planned = [found for own in taken for found in self._plan_group(own, state, rosters, new)]
        made = [roster for position, roster in rosters.items() if roster is not self._rosters.get(position)]
        kept = range(len(settings))
        self._rosters = {position: self._rosters[position] for position in kept if position in self._rosters}
        self._rosters |= rosters
        begin()
        state.update(new)
        for placed in itertools.chain.from_iterable(roster.placed for roster in made):
            placed.drop_residuals(state)
        loss_scale.unscale_(taken)
        for own in taken:
            own.count()
        return planned

    def _plan_group(
        self,
        settings: Settings,
        state: Mapping[Tensor, State],
        rosters: dict[int, Roster],
        new: dict[Tensor, State],
    ) -> list[Planned]:
        """The work of every bucket that has a gradient; the group's roster, and the states that are new."""
        roster = self._rosters.get(settings.position)
        held: Held = list(map(state.get, settings.params))
        wanted = None if roster is None else roster.wanted(settings, held)
        joining = [] if roster is None else roster.joining(settings, held)
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            _check_capture(settings, None if wanted is None or joining else roster)
        if roster is None or wanted is None:
            roster, wanted = self._kept(settings, held)
            joining = roster.joining(settings, held)
        if joining:
            roster, wanted = self._with(roster, wanted, joining, settings, held, new)
        rosters[settings.position] = roster
        planned = []
        for placed, tensors in zip(roster.placed, wanted, strict=True):
            placed.bucket.check(settings.config)
            found = placed.bucket.gradients(placed.of(settings.grads))
            if found is not None:
                planned.append(Planned(plan_work(placed.bucket, settings, tensors), *found))
        return planned

    def _with(
        self,
        roster: Roster,
        wanted: list[list[Tensor]],
        joining: Sequence[int],
        settings: Settings,
        held: Held,
        new: dict[Tensor, State],
    ) -> tuple[Roster, list[list[Tensor]]]:
        """The roster with more parameters, batched by device, dtype and what gives lengths.

        They make one more bucket, together with those that have no more parameters than it has so far: n that
        come one by one move each state log n times.

        Args:
            wanted: what its buckets want.  held: has afterwards the states of all.  new: those made.

        Returns:
            The roster, and what each bucket wants.
        """
        config, params = settings.config, settings.params
        kept = list(zip(roster.placed, wanted, strict=True))
        by_key: dict[tuple[torch.device, torch.dtype, str], list[int]] = defaultdict(list)
        plans = {i: plan_parameter(params[i].shape, config) for i in joining}
        for i, plan in plans.items():
            graft = config.for_blocks(bool(plan.regions)).graft
            by_key[params[i].device, params[i].dtype, graft].append(i)
        for device, dtype, _ in by_key:
            backend_of(config, device, dtype)  # which raises before there is any state
        for key, members in by_key.items():
            kept.sort(key=lambda pair: len(pair[0].members), reverse=True)
            for pair in [pair for pair in reversed(kept) if pair[0].bucket.label == key]:
                placed, _ = pair
                if len(placed.members) <= len(members):
                    members += placed.members
                    plans |= dict(zip(placed.members, placed.bucket.plans, strict=True))
                    kept.remove(pair)
            members.sort()
            kept.append(self._place(settings, members, [plans[i] for i in members], held, new))
        outside = sorted(set(roster.outside).difference(joining))
        buckets = [placed for placed, _ in kept]
        return replace(roster, placed=buckets, outside=outside), [tensors for _, tensors in kept]

    def _kept(self, settings: Settings, held: Held) -> tuple[Roster, list[list[Tensor]]]:
        """The buckets, of whatever parameter group, that serve this one's parameters, and what they want."""
        params, outside, kept = settings.params, set(range(len(settings.params))), []
        places = {p: i for i, p in enumerate(params)}
        for old in (placed for roster in self._rosters.values() for placed in roster.placed):
            theirs = old.bucket.params
            placed = replace(old, members=[places[p] for p in theirs if p in places])
            if (
                len(placed.members) == len(theirs)
                and list(map(KIND, theirs)) == old.bucket.kinds
                and old.bucket.is_of(settings.config)
                and (wanted := placed.wanted(held)) is not None
            ):
                kept.append((placed, wanted))
                outside.difference_update(placed.members)
        found = [placed for placed, _ in kept]
        roster = Roster(list(params), list(map(KIND, params)), found, sorted(outside))
        return roster, [wanted for _, wanted in kept]

    @staticmethod
    def _place(
        settings: Settings,
        members: list[int],
        plans: Sequence[ParameterPlan],
        held: Held,
        new: dict[Tensor, State],
    ) -> tuple[Placed, list[Tensor]]:
        """A new bucket, which has adopted its parameters' states, and what it wants of them."""
        config, params = settings.config, [settings.params[i] for i in members]
        bucket = Bucket(params, config, plans)
        bucket.check(config)
        for i, p, specs in zip(members, params, bucket.specs, strict=True):
            state = held[i]
            if state:
                check_state(state, specs, parameter_name(settings.position, i))
            else:
                held[i] = new[p] = {}
        states: list[Any] = [held[i] for i in members]
        bucket.adopt(states)
        wanted = [states[i][key] for i, key in bucket.wanted]
        return Placed(bucket, members, Watch(states, wanted)), wanted


def _check_capture(settings: Settings, roster: Roster | None) -> None:
    """Raise RuntimeError where a graph would not be the step.

    Args:
        roster: the group's, if it serves this step.
    """
    where = f"parameter group {settings.position}"
    if not settings.config.capturable:
        raise RuntimeError(
            f"KrADagrad: `capturable` of {where} must be True where a step is captured, got False"
        )
    for i, (p, grad) in enumerate(zip(settings.params, settings.grads, strict=True)):
        if grad is None and p.requires_grad:
            raise RuntimeError(
                f"KrADagrad: every parameter must have a gradient where a step is captured, as a graph would "
                f"never step the others, got none for {parameter_name(settings.position, i)}"
            )
    if roster is None:
        raise RuntimeError(
            f"KrADagrad: a step must be taken before one is captured, as parameters of {where} have no state "
            "yet, or another than on the last step"
        )
    for option, value in (("lr", settings.lr), ("weight_decay", settings.config.weight_decay)):
        if isinstance(value, Tensor) and value.device.type == "cpu":
            raise RuntimeError(
                f"KrADagrad: `{option}` of {where} must be a tensor on the parameters' device where a step "
                "is captured, as a graph would keep its value of today, got one on the CPU"
            )
    presences = [(placed.bucket, presence(placed.of(settings.grads))) for placed in roster.placed]
    if any(any(there) and bucket.mask(there) not in bucket.masks for bucket, there in presences):
        raise RuntimeError(
            "KrADagrad: the same parameters must have gradients where a step is captured as on an earlier "
            f"step, got others in {where}"
        )
