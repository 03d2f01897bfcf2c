"""All of the work on this rank: parameters batched by parameter group, device and dtype."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .full_precision import full_float32
from .plan import plan_parameter
from .state import Bucket, presence
from .step import LossScale, Settings, Work, backend_of, plan_work, step_bucket

KIND = operator.attrgetter("device", "dtype", "shape")
"""What a parameter's place in a bucket depends on."""


@dataclass(frozen=True)
class Roster:
    """The buckets of one parameter group, and what they were made from.

    Attributes:
        params: the group's.  kinds, states: of each its `KIND`, and what the optimizer's state held of it.
        buckets: each with the places of its parameters in `params`.
        outside: places of the parameters that are in none, which have neither a gradient nor state.
    """

    params: list[Tensor]
    kinds: list[Any]
    states: list[Any]
    buckets: list[tuple[Bucket, list[int]]]
    outside: list[int]

    def holds(self, params: list[Tensor], grads: Sequence[Tensor | None], states: list[Any]) -> bool:
        """Whether the buckets serve these parameters, all that have a gradient, with this state."""
        return (
            list(map(KIND, params)) == self.kinds
            and all(map(operator.is_, params, self.params))
            and all(map(operator.is_, states, self.states))
            and all(grads[i] is None for i in self.outside)
        )

    def dealt(self, grads: Sequence[Tensor | None]) -> list[tuple[Bucket, list[Tensor | None]]]:
        """Every bucket with its parameters' gradients."""
        return [(bucket, [grads[i] for i in members]) for bucket, members in self.buckets]


class Local:
    """The buckets of an optimizer, made from its state and made anew where that or a parameter is another."""

    @staticmethod
    def locals_of(tensors: list[Any]) -> list[Any]:
        """The tensors, all of which this rank holds."""
        return tensors

    def __init__(self, state: dict[Tensor, Any]) -> None:
        self._state = state
        self._rosters: dict[int, Roster] = {}
        # To torch.compile, a bucket's step is a graph and all else the host's.
        self.step = torch.compiler.disable(self._step, recursive=False)  # type: ignore[no-untyped-call]
        self._plan = torch.compiler.disable(self._plan_groups)  # type: ignore[no-untyped-call]
        self._step_eagerly = torch.compiler.disable(step_bucket)  # type: ignore[no-untyped-call]

    def check(self, settings: Sequence[Settings]) -> None:
        """Raise ValueError if an option does not fit the state that there is."""
        for own in settings:
            roster = self._rosters.get(own.position)
            for bucket, _ in roster.buckets if roster else ():
                bucket.check(own.config)

    def complete(self, settings: Sequence[Settings]) -> None:
        """Nothing: state is made as gradients come."""

    def consolidate(self, to: int) -> None:
        """Nothing: all state is whole."""

    def restore(self, state: dict[Tensor, Any], saved: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
        """Take over the values of a state dict; `state`: the optimizer's, which is made anew then."""
        self._state, self._rosters = state, {}
        for p, tensors in saved.items():
            state[p] = {key: value.detach().clone().to(p.device) for key, value in tensors.items()}

    def _step(self, settings: Sequence[Settings], loss_scale: LossScale) -> None:
        """Every bucket's step; what raises, raises before any change.

        Only with `capturable` is it compiled: else it differs from step to step.
        """
        with full_float32():
            for work, grads, present in self._plan(settings, loss_scale):
                if work.config.capturable:
                    step_bucket(work, grads, present, loss_scale)
                else:
                    self._step_eagerly(work, grads, present, loss_scale)

    def _plan_groups(
        self, settings: Sequence[Settings], loss_scale: LossScale
    ) -> list[tuple[Work, list[Tensor], Tensor]]:
        """All that the host decides; the gradients, unscaled, and which there are."""
        planned = [found for own in settings for found in self._plan_group(own)]
        loss_scale.unscale_(settings)
        for own in settings:
            own.count()
        return planned

    def _plan_group(self, settings: Settings) -> list[tuple[Work, list[Tensor], Tensor]]:
        """The work of every bucket that has a gradient, its gradients and which there are."""
        roster, grads = self._rosters.get(settings.position), settings.grads
        held = list(map(self._state.get, settings.params))
        known = roster is not None and roster.holds(settings.params, grads, held)
        fresh = not known and any(g is not None and not state for g, state in zip(grads, held, strict=True))
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            _check_capture(settings, fresh, roster.dealt(grads) if roster and known else [])
        if roster is None or not known:
            roster = self._rosters[settings.position] = self._make_roster(settings, grads)
        with_gradients = ((bucket, bucket.gradients(given)) for bucket, given in roster.dealt(grads))
        return [(plan_work(bucket, settings, fresh), *found) for bucket, found in with_gradients if found]

    def _make_roster(self, settings: Settings, grads: Sequence[Tensor | None]) -> Roster:
        """Batch parameters with a gradient or state by device, dtype and what gives lengths."""
        config, params = settings.config, settings.params
        by_key: dict[tuple[torch.device, torch.dtype, str], list[int]] = defaultdict(list)
        plans = [plan_parameter(p.shape, config) for p in params]
        outside = []
        for i, (p, grad, plan) in enumerate(zip(params, grads, plans, strict=True)):
            if grad is None and not self._state.get(p):
                outside.append(i)
                continue
            by_key[p.device, p.dtype, config.for_blocks(bool(plan.regions)).graft].append(i)
        for device, dtype, _ in by_key:
            backend_of(config, device, dtype)  # which raises before there is any state
        buckets = []
        for members in by_key.values():
            own = [params[i] for i in members]
            bucket = Bucket(own, config, [self._state[p] for p in own], [plans[i] for i in members])
            bucket.check(config)
            self._state.update(zip(own, bucket.parameter_states(), strict=True))
            buckets.append((bucket, members))
        held = list(map(self._state.get, params))
        return Roster(list(params), list(map(KIND, params)), held, buckets, outside)


def _check_capture(
    settings: Settings, fresh: bool, dealt: Sequence[tuple[Bucket, list[Tensor | None]]]
) -> None:
    """Raise RuntimeError where a graph would not be the step."""
    if not settings.config.capturable:
        raise RuntimeError(
            f"KrADagrad: `capturable` of parameter group {settings.position} must be True where a step is "
            "captured, got False"
        )
    if fresh:
        raise RuntimeError(
            f"KrADagrad: a step must be taken before one is captured, as parameters of parameter group "
            f"{settings.position} have no state yet"
        )
    lr = settings.lr
    if isinstance(lr, Tensor) and lr.device.type == "cpu":
        raise RuntimeError(
            f"KrADagrad: `lr` of parameter group {settings.position} must be a tensor on the parameters' "
            "device where a step is captured, as a graph would keep its value of today, got one on the CPU"
        )
    if any(any(presence(given)) and presence(given) not in bucket.masks for bucket, given in dealt):
        raise RuntimeError(
            "KrADagrad: the same parameters must have gradients where a step is captured as on an earlier "
            f"step, got others in parameter group {settings.position}"
        )
