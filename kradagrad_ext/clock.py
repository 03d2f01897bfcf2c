"""The number of a step, on the host or on the device, and what is due on it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .backends.base import Turn
from .config import Config

GROWTH = 20
"""Steps with the same interval between roots; the next so many have one that is a step longer."""

DAMPED_EVERY = 3
"""Steps between two dampings where roots are made in turns: a factor lacks two updates' worth at most."""

SETTLED = GROWTH * GROWTH
"""From this step on, at the latest, roots are made every `root_every` steps."""


def damping_interval(config: Config, in_turns: bool) -> int:
    """Steps between two dampings: as new roots, or in turns fewer, since on each of them some are made."""
    return min(config.root_every, DAMPED_EVERY) if in_turns else config.root_every


@dataclass(frozen=True)
class Clock:
    """The step being taken.

    On the host, schedules decide what is done on a step. A graph that is replayed does the same on every
    step: with `capturable`, they decide for which blocks, on the device.

    Attributes:
        number: of the step, from 1; not known to the host with `capturable`.
        counter: 0-dim int64 on the device, which holds the number once the step has begun; None without
            `capturable`.
    """

    number: int = 0
    counter: Tensor | None = None

    def factors_due(self, config: Config) -> bool:
        """Whether any factor is updated."""
        return self.counter is not None or self.number % config.factor_every == 0

    def turn(self, config: Config, in_turns: bool) -> Turn | None:
        """The blocks whose roots are made on this step; None where there are none.

        At first all on every step, since young factors change much; then on every second one, and so on.

        Args:
            in_turns: whether each step makes those of as many blocks as gives all new ones within the
                interval, so that no step takes longer than another; else its last step makes all.
        """
        if self.counter is not None:
            return Turn(turns=config.root_every, counter=self.counter)
        grows = self.number < GROWTH * min(config.root_every, GROWTH)
        interval = 1 + self.number // GROWTH if grows else config.root_every
        if in_turns:
            return Turn(self.number, interval)
        return Turn() if self.number % interval == 0 else None

    def damped_updates(self, config: Config, in_turns: bool) -> float:
        """How many updates' worth of damping enters with that of this step; none where nothing is forgotten.

        It enters with some updates alone, which saves a product on the other steps: with the last one before
        every `damping_interval`-th step. Where the host does not know the step, it enters with every update.
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
        """Whether preconditioned updates are made."""
        return self.counter is not None or self.number >= config.start_step

    def updates_all(self, config: Config) -> bool:
        """Whether the factors of all active blocks are updated."""
        return config.factor_every == 1 if self.counter is not None else self.factors_due(config)

    def update_scales(self, scales: Tensor, weights: Tensor, config: Config) -> Tensor:
        """Scales of blocks on a step that does not update all factors; 0 for those that stay.

        A factor that has not started is always due.

        Args:
            scales: ``[N]``.  weights: ``[N]``, of the statistics that the factors hold.
        """
        starts = weights == 0
        if self.counter is None:
            return scales * starts
        return scales * ((self.counter % config.factor_every == 0) | starts)

    def preconditions_on_device(self, config: Config) -> Tensor | bool:
        """Whether preconditioned updates are taken."""
        if self.counter is None or config.start_step <= 1:
            return self.preconditions(config)
        return self.counter >= config.start_step
