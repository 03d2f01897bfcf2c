"""The search of every rival's hyperparameters, the same for all, and what has to run next.

Seed 0 searches: five learning rates with the middle value of the second hyperparameter; while the best rate
is the lowest or the highest, up to two more rates beyond it; then the other two values at the best rate:
at most nine runs. Seeds 1 to 5 then train with the best choice. All of this is a function of the results so
far, so that an interrupted search goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from bench.arena.rivals import Rival
from bench.arena.run import ArenaRun

SEARCH_SEED = 0


@dataclass(frozen=True)
class Budget:
    """The number of runs of a rival on a task.

    Attributes:
        rates: learning rates of the grid, the middle ones.  extensions: most rates beyond its edges.
        values: True to try the other values of the second hyperparameter.
        seeds: runs of the best choice.  share: of the task's steps.
    """

    rates: int = 5
    extensions: int = 2
    values: bool = True
    seeds: int = 5
    share: float = 1.0

    @property
    def usual_runs(self) -> int:
        return self.rates + 2 * self.values + self.seeds


FULL = Budget()
RATES_ALONE = Budget(values=False, seeds=0)
QUICK = Budget(rates=3, extensions=0, values=False, seeds=2, share=0.15)


@dataclass(frozen=True)
class Choice:
    """A learning rate and a value of the second hyperparameter."""

    lr: float
    value: float


Losses = Mapping[Choice, float]
"""Final losses of seed 0; NaN or infinite for a run that was not finite."""


def beyond(rate: float, direction: int) -> float:
    """Return the next of the rates ..., 0.1, 0.3, 1, 3, ... above (1) or below (-1) one of them."""
    _, (digit, *_), exponent = Decimal(f"{rate:.0e}").as_tuple()
    if digit not in (1, 3) or not isinstance(exponent, int):
        raise ValueError(f"beyond: `rate` must be 1 or 3 times a power of ten, got {rate}")
    up = exponent + (digit == 3)
    down = exponent - (digit == 1)
    return float(f"{4 - digit}e{up if direction > 0 else down}")


def loss_of(losses: Losses, choice: Choice) -> float:
    loss = losses[choice]
    return loss if math.isfinite(loss) else math.inf


def best_of(losses: Losses, choices: Sequence[Choice]) -> Choice:
    """Return the choice with the lowest loss; of equal ones, the one with the lowest rate."""
    return min(choices, key=lambda choice: (loss_of(losses, choice), choice.lr, choice.value))


def middle_rates(rival: Rival, budget: Budget) -> list[float]:
    first = (len(rival.rates) - budget.rates) // 2
    return list(rival.rates[first : first + budget.rates])


def search(rival: Rival, budget: Budget, losses: Losses) -> tuple[list[Choice], Choice | None]:
    """Return the choices that have to run now, and the best choice once there are none.

    The best is None also if no run of the search was finite.
    """
    choices = [Choice(rate, rival.middle) for rate in middle_rates(rival, budget)]
    if waiting := [choice for choice in choices if choice not in losses]:
        return waiting, None
    for _ in range(budget.extensions):
        best = best_of(losses, choices)
        if best not in (choices[0], choices[-1]):
            break
        direction = -1 if best == choices[0] else 1
        further = Choice(beyond(best.lr, direction), rival.middle)
        if further not in losses:
            return [further], None
        choices.insert(0 if direction < 0 else len(choices), further)
    if budget.values:
        best = best_of(losses, choices)
        others = [Choice(best.lr, value) for value in rival.values if value != rival.middle]
        if waiting := [choice for choice in others if choice not in losses]:
            return waiting, None
        choices += others
    best = best_of(losses, choices)
    return [], best if math.isfinite(loss_of(losses, best)) else None


@dataclass(frozen=True)
class Study:
    """All runs of one rival on one task."""

    task: str
    steps: int
    rival: Rival
    budget: Budget

    def run(self, choice: Choice, seed: int) -> ArenaRun:
        return ArenaRun(self.task, self.rival.name, choice.lr, choice.value, self.steps, seed)

    def losses(self, done: Mapping[ArenaRun, float]) -> dict[Choice, float]:
        return {
            Choice(run.lr, run.value): loss
            for run, loss in done.items()
            if (run.task, run.optimizer, run.steps, run.seed)
            == (self.task, self.rival.name, self.steps, SEARCH_SEED)
        }

    def waiting(self, done: Mapping[ArenaRun, float]) -> list[ArenaRun]:
        """Return the runs that can start now, in order; more may follow from their results."""
        choices, best = search(self.rival, self.budget, self.losses(done))
        if choices:
            return [self.run(choice, SEARCH_SEED) for choice in choices]
        seeds = range(1, self.budget.seeds + 1) if best is not None else ()
        runs = [self.run(best, seed) for seed in seeds if best is not None]
        return [run for run in runs if run not in done]

    def finished(self, done: Mapping[ArenaRun, float]) -> int:
        """Return the number of runs that are done."""
        return sum(
            (run.task, run.optimizer, run.steps) == (self.task, self.rival.name, self.steps) for run in done
        )

    def total(self, done: Mapping[ArenaRun, float]) -> int:
        """Return the number of runs in all, as far as it is known."""
        waiting = self.waiting(done)
        return (
            max(self.budget.usual_runs, self.finished(done) + len(waiting))
            if waiting
            else self.finished(done)
        )


def next_runs(studies: Sequence[Study], done: Mapping[ArenaRun, float]) -> Iterator[ArenaRun]:
    """Yield all runs that can start now, task by task; in a task, the optimizers take turns.

    So the optimizers of a task train under the same conditions of the machine.
    """
    tasks = dict.fromkeys(study.task for study in studies)
    for task in tasks:
        mine = [study for study in studies if study.task == task]
        turns = [
            (study.finished(done) + place, number, run)
            for number, study in enumerate(mine)
            for place, run in enumerate(study.waiting(done))
        ]
        yield from (run for *_, run in sorted(turns, key=lambda turn: turn[:2]))
