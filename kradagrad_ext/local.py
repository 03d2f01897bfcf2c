"""All of the work on this rank: parameters batched by parameter group, device and dtype."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .config import Config
from .full_precision import full_float32
from .plan import ParameterPlan, plan_parameter
from .state import Bucket
from .step import LossScale, Settings, Work, plan_work, step_bucket


class Local:
    """The buckets of an optimizer, made from its state and extended where a parameter is new to them."""

    def __init__(self, state: dict[Tensor, Any]) -> None:
        self._state = state
        self._buckets: dict[int, list[Bucket]] = {}
        # To torch.compile, a bucket's step is a graph and all else the host's.
        self.step = torch.compiler.disable(self._step, recursive=False)  # type: ignore[no-untyped-call]
        self._plan = torch.compiler.disable(self._plan_groups)  # type: ignore[no-untyped-call]
        self._step_eagerly = torch.compiler.disable(step_bucket)  # type: ignore[no-untyped-call]

    def check(self, settings: Sequence[Settings]) -> None:
        """Raise ValueError if an option does not fit the state that there is."""
        for own in settings:
            for bucket in self._buckets.get(own.position, []):
                bucket.check(own.config)

    def complete(self, settings: Sequence[Settings]) -> None:
        """Nothing: state is made as gradients come."""

    def consolidate(self, to: int) -> None:
        """Nothing: all state is whole."""

    def restore(self, state: dict[Tensor, Any], saved: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
        """Take over the values of a state dict; `state`: the optimizer's, which is made anew then."""
        self._state, self._buckets = state, {}
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
        planned = [work for own in settings for work in self._plan_group(own)]
        loss_scale.unscale_([p.grad for own in settings for p in own.params if p.grad is not None])
        for own in settings:
            own.count()
        return [(work, *work.bucket.gradients()) for work in planned]

    def _plan_group(self, settings: Settings) -> list[Work]:
        buckets = self._buckets.get(settings.position, [])
        known = {p: bucket for bucket in buckets for p in bucket.params}
        with_gradient = [p for p in settings.params if p.grad is not None]
        fresh = not all(self._state.get(p) for p in with_gradient)
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            _check_capture(settings, fresh, buckets)
        if not all(p in known and known[p].key == (p.device, p.dtype) for p in with_gradient):
            kept = [p for p in settings.params if p.grad is not None or self._state.get(p)]
            buckets = self._buckets[settings.position] = self._make_buckets(kept, settings.config)
        return [plan_work(bucket, settings, fresh) for bucket in buckets if any(bucket.present)]

    def _make_buckets(self, params: Sequence[Tensor], config: Config) -> list[Bucket]:
        """Batch the parameters by device, dtype and what gives lengths, taking over the state they have."""
        by_key: dict[tuple[torch.device, torch.dtype, str], list[tuple[Tensor, ParameterPlan]]] = defaultdict(
            list
        )
        for p in params:
            plan = plan_parameter(p.shape, config)
            options = config.for_blocks(bool(plan.regions))
            by_key[p.device, p.dtype, options.graft].append((p, plan))
        buckets = []
        for planned in by_key.values():
            members, plans = zip(*planned, strict=True)
            bucket = Bucket(members, config, [self._state[p] for p in members], plans)
            bucket.check(config)
            self._state.update(zip(members, bucket.parameter_states(), strict=True))
            buckets.append(bucket)
        return buckets


def _check_capture(settings: Settings, fresh: bool, buckets: Sequence[Bucket]) -> None:
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
    if any(any(bucket.present) and bucket.present not in bucket.masks for bucket in buckets):
        raise RuntimeError(
            "KrADagrad: the same parameters must have gradients where a step is captured as on an earlier "
            f"step, got others in parameter group {settings.position}"
        )
