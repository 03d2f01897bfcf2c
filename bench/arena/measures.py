"""What the records of runs say: losses, steps and seconds to a loss, intervals and tests.

Runs of seed 0 searched hyperparameters; only the others count here. A run that was not finite has an infinite
loss. scipy computes the tests.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
from scipy import stats

from bench.arena.protocol import SEARCH_SEED
from bench.arena.run import Curve
from bench.arena.store import RunRecord

CONFIDENCE = 0.95
SIGNIFICANT = 0.05
UNREACHED, LEAST = 2.0, 0.01
"""Ratios that count in a mean for a median run that never reaches the loss, and for one below the least."""

STEPS, SECONDS = 0, 1
"""Columns of a curve."""

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A value and the limits of its confidence interval; the limits are NaN without enough data."""

    value: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean with Student's interval; infinite values make it infinite."""
    mean = statistics.fmean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan)
    half = (
        stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    )
    return Interval(mean, mean - half, mean + half)


def geometric_mean_interval(values: Sequence[float]) -> Interval:
    """Return the geometric mean with Student's interval of the logarithms."""
    logs = mean_interval([math.log(value) for value in values])
    return Interval(*(math.exp(value) for value in (logs.value, logs.low, logs.high)))


def median_interval(values: Sequence[float]) -> Interval:
    """Return the median with its percentile bootstrap interval; values may be infinite."""
    if len(values) < 2:
        return Interval(values[0], math.nan, math.nan)
    data = numpy.sort(numpy.array(values))
    drawn = numpy.sort(numpy.random.default_rng(0).integers(len(data), size=(RESAMPLES, len(data))), axis=1)
    # Medians of positions: with infinite values, a mean of two could be undefined.
    medians = numpy.sort(data[drawn[:, (len(data) - 1) // 2]])
    low, high = (
        medians[int(share * (RESAMPLES - 1))] for share in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    )
    return Interval(float(statistics.median_low(values)), float(low), float(high))


def reached(curve: Curve, loss: float, column: int) -> float:
    """Return the steps or seconds at which a curve first reaches a loss, between points by a line; or inf."""
    for before, after in zip([None, *curve], curve, strict=False):
        if after[2] <= loss:
            if before is None:
                return float(after[column])
            share = (before[2] - loss) / (before[2] - after[2]) if math.isfinite(before[2]) else 1.0
            return before[column] + share * (after[column] - before[column])
    return math.inf


def loss_at(curve: Curve, seconds: float) -> float:
    """Return the loss of a curve at a time, between points by a line; after its end, the last."""
    times, losses = [point[SECONDS] for point in curve], [point[2] for point in curve]
    return float(numpy.interp(seconds, times, losses))


def paired_p(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    """Return the p value of the paired t-test over the seeds that both have; NaN for fewer than two.

    Where one has infinite losses and the other none, the two differ for certain: 0. Equal losses give 1.
    """
    pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
    if len(pairs) < 2:
        return math.nan
    infinite = [[math.isinf(value) for value in side] for side in zip(*pairs, strict=True)]
    if any(map(any, infinite)):
        return 1.0 if all(map(any, infinite)) else 0.0
    differences = [a - b for a, b in pairs]
    if max(differences) == min(differences):
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_rel(*zip(*pairs, strict=True)).pvalue)


class Results:
    """The runs of the best choices: ``runs[task, optimizer][seed]``."""

    def __init__(self, records: Sequence[RunRecord]) -> None:
        by_choice: dict[tuple[str, str], dict[tuple[float, float, int], dict[int, RunRecord]]] = defaultdict(
            dict
        )
        for record in records:
            run = record.run
            if run.seed != SEARCH_SEED:
                choices = by_choice[run.task, run.optimizer]
                choices.setdefault((run.lr, run.value, run.steps), {})[run.seed] = record
        self.runs = {key: max(choices.values(), key=len) for key, choices in by_choice.items()}
        names = dict.fromkeys(record.run.optimizer for record in records)
        self.tasks = list(dict.fromkeys(record.run.task for record in records))
        self.optimizers = list(names)

    def curves(self, task: str, optimizer: str) -> list[Curve]:
        return [record.outcome.curve for record in self.runs.get((task, optimizer), {}).values()]

    def losses(self, task: str, optimizer: str) -> dict[int, float]:
        """Return the final loss of each seed; empty without runs."""
        runs = self.runs.get((task, optimizer), {})
        return {seed: _finite(record.outcome.val_loss) for seed, record in runs.items()}

    def losses_at_seconds(self, task: str, optimizer: str, seconds: float) -> dict[int, float]:
        runs = self.runs.get((task, optimizer), {})
        return {
            seed: _finite(loss_at(record.outcome.curve, seconds)) if record.outcome.curve else math.inf
            for seed, record in runs.items()
        }

    def seconds(self, task: str, optimizer: str) -> float:
        """Return the median seconds of a run; NaN without runs."""
        runs = self.runs.get((task, optimizer), {}).values()
        return statistics.median(record.outcome.seconds for record in runs) if runs else math.nan

    def final(self, task: str, optimizer: str) -> float:
        """Return the median final loss; infinite without runs."""
        losses = self.losses(task, optimizer)
        return statistics.median(losses.values()) if losses else math.inf

    def to_loss(self, task: str, optimizer: str, loss: float, column: int) -> list[float]:
        """Return the steps or seconds of every seed to a loss."""
        return [reached(curve, loss, column) for curve in self.curves(task, optimizer)]

    def best_rival(self, task: str, ours: str) -> str | None:
        """Return the optimizer beside ours with the lowest median final loss; None without any."""
        others = [name for name in self.optimizers if name != ours and self.losses(task, name)]
        return min(others, key=lambda name: self.final(task, name), default=None)


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def ratio_to_baseline(
    results: Results, task: str, optimizer: str, baseline: str, column: int
) -> Interval | None:
    """Return the steps or seconds to the baseline's median final loss over those of the baseline's whole run.

    A median over seeds with its interval; None without runs of both, or without a finite loss to reach.
    """
    if not math.isfinite(results.final(task, baseline)) or not results.losses(task, optimizer):
        return None
    whole = statistics.median(
        curve[-1][column] if curve else math.inf for curve in results.curves(task, baseline)
    )
    times = results.to_loss(task, optimizer, results.final(task, baseline), column)
    return median_interval([time / whole for time in times])


def first_and_tied(losses: Mapping[str, Mapping[int, float]]) -> tuple[str | None, set[str]]:
    """Return the optimizer with the lowest mean loss, and all that no paired test tells from it.

    None, and no names, if no optimizer's mean is finite.
    """
    means = {name: statistics.fmean(values.values()) for name, values in losses.items() if values}
    finite = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    if not finite:
        return None, set()
    first = min(finite, key=finite.__getitem__)
    return first, {
        name for name in finite if name == first or not paired_p(losses[first], losses[name]) < SIGNIFICANT
    }


@dataclass(frozen=True)
class OverTasks:
    """A comparison of two optimizers over tasks, by the ratios of their median losses.

    Attributes:
        wins, losses: tasks with the lower and the higher median.  wilcoxon: p of the signed-rank test of the
            ratios' logarithms.  sign: p of the sign test. NaN without two tasks or more.
    """

    wins: int
    losses: int
    wilcoxon: float
    sign: float


def over_tasks(results: Results, first: str, second: str) -> OverTasks:
    pairs = [
        (results.final(task, first), results.final(task, second))
        for task in results.tasks
        if results.losses(task, first) and results.losses(task, second)
    ]
    wins, defeats = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    logs = [_log_ratio(a, b) for a, b in pairs if a != b]
    if len(logs) < 2:
        return OverTasks(wins, defeats, math.nan, math.nan)
    wilcoxon = float(stats.wilcoxon(logs).pvalue)
    return OverTasks(wins, defeats, wilcoxon, float(stats.binomtest(wins, wins + defeats).pvalue))


def _log_ratio(first: float, second: float) -> float:
    """Return the logarithm of a ratio of losses; a number beyond all others where one is infinite."""
    if math.isinf(first) or math.isinf(second):
        return 1e6 if math.isinf(first) else -1e6
    return math.log(max(first, 1e-300) / max(second, 1e-300))


def profile(ratios: Mapping[str, Sequence[float]], at: float) -> dict[str, float]:
    """Return the share of tasks on which an optimizer needs at most `at` times the best one's (Dolan, More).

    Args:
        ratios: for each optimizer its steps or seconds on every task, infinite where the loss is not reached.
    """
    limits = [(1 + 1e-9) * at * min(column) for column in zip(*ratios.values(), strict=True)]
    return {name: sum(map(_within, values, limits)) / len(limits) for name, values in ratios.items()}


def _within(value: float, limit: float) -> bool:
    return math.isfinite(value) and value <= limit
