"""The number of a step, on the host or on the device, and the work that is due on it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .backends.base import Turn
from .config import Config

GROWTH = 20
"""Number of steps after which the interval between roots becomes one step longer."""

DAMPED_EVERY = 3
"""Steps between two dampings if roots are computed in turns: a factor lacks at most two updates' damping."""

SETTLED = GROWTH * GROWTH
"""From this step on, at the latest, roots are computed every `root_every` steps."""


def damping_interval(config: Config, in_turns: bool) -> int:
    """Return the steps between two dampings: those between roots, but at most `DAMPED_EVERY` with turns.

    With turns, every step computes some roots, whose factors must not lack much damping.
    """
    return min(config.root_every, DAMPED_EVERY) if in_turns else config.root_every


@dataclass(frozen=True)
class Schedule:
    """The number of the current step and the work that is due on it.

    On the host, the schedule decides which ops run. A replayed graph runs the same ops on every step: with
    `capturable`, the schedule decides on the device for which blocks.

    Attributes:
        number: of the step, from 1; unknown to the host with `capturable`.
        counter: 0-dim int64 on the device, which has the number once the step has begun; None without
            `capturable`.
    """

    number: int = 0
    counter: Tensor | None = None

    def factors_due(self, config: Config) -> bool:
        """Return True if any factor may be due for an update."""
        return self.counter is not None or self.number % config.factor_every == 0

    def turn(self, config: Config, in_turns: bool) -> Turn | None:
        """Return the turn of blocks whose roots are due on this step; None if none are.

        The interval is one step at first, because young factors change much, then two steps, and so on.

        Args:
            in_turns: true if every step computes an equal share of the roots, so that all steps take equally
                long; else the last step of an interval computes all.
        """
        if self.counter is not None:
            return Turn(turns=config.root_every, counter=self.counter)
        grows = self.number < GROWTH * min(config.root_every, GROWTH)
        interval = 1 + self.number // GROWTH if grows else config.root_every
        if in_turns:
            return Turn(self.number, interval)
        return Turn() if self.number % interval == 0 else None

    def damped_updates(self, config: Config, in_turns: bool) -> float:
        """Return how many updates' damping enters with this step's update; 0 with ``factor_decay=1``.

        Damping enters only with the last update before every `damping_interval`-th step, which saves a
        product on the other steps. If the host does not know the step's number, it enters with every update.
        """
        if config.factor_decay == 1:
            return 0.0
        if self.counter is not None:
            return 1.0
        every = damping_interval(config, in_turns)
        due = -(-self.number // every) * every
        is_last = self.number + config.factor_every > due
        return max(1.0, every / config.factor_every) if is_last else 0.0

    def preconditions(self, config: Config) -> bool:
        """Return True if preconditioned updates are computed."""
        return self.counter is not None or self.number >= config.start_step

    def updates_all(self, config: Config) -> bool:
        """Return True if the factors of all active blocks are due."""
        return config.factor_every == 1 if self.counter is not None else self.factors_due(config)

    def update_scales(self, scales: Tensor, weights: Tensor, config: Config) -> Tensor:
        """Return the scales of blocks on a step without `updates_all`; 0 where a factor is not due.

        A factor that has not started is always due.

        Args:
            scales: ``[N]``.  weights: ``[N]``, of the factors' statistics; 0 for one that has not started.
        """
        starts = weights == 0
        if self.counter is None:
            return scales * starts
        return scales * ((self.counter % config.factor_every == 0) | starts)

    def preconditions_on_device(self, config: Config) -> Tensor | bool:
        """Return True if preconditioned updates are used; with `capturable` perhaps a 0-dim bool tensor."""
        if self.counter is None or config.start_step <= 1:
            return self.preconditions(config)
        return self.counter >= config.start_step
