"""Tables of the arena's records, in Markdown. They read nothing but the CSV."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.arena.measures import (
    LEAST,
    SECONDS,
    STEPS,
    UNREACHED,
    Interval,
    OverTasks,
    Results,
    first_and_tied,
    geometric_mean_interval,
    mean_interval,
    median_interval,
    over_tasks,
    paired_p,
    ratio_to_baseline,
)
from bench.arena.protocol import SEARCH_SEED
from bench.arena.rivals import BASELINE, OURS, RIVALS
from bench.arena.run import OK
from bench.arena.store import RunRecord
from bench.common import markdown_table

RESULTS, WIDTHS = "results", "widths"
"""The parts of the page that `--record` writes, each between two comments of this name."""

NOTHING = "Nothing has been measured yet.\n"
NONE = ""


def label(optimizer: str) -> str:
    return RIVALS[optimizer].label if optimizer in RIVALS else optimizer


def number(value: float, digits: int = 3) -> str:
    """Return a short number: "never" if infinite, empty if NaN."""
    if math.isnan(value):
        return NONE
    return "never" if math.isinf(value) else f"{value:.{digits}g}"


def with_limits(interval: Interval) -> str:
    if math.isnan(interval.low):
        return number(interval.value)
    return f"{number(interval.value)} ({number(interval.low)} to {number(interval.high)})"


def p_value(p: float) -> str:
    return NONE if math.isnan(p) else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def per_task(results: Results, cell: Callable[[str, str], str]) -> str:
    """Return a table with a task a row and an optimizer a column."""
    rows = [[task, *(cell(task, name) for name in results.optimizers)] for task in results.tasks]
    return markdown_table(["", *map(label, results.optimizers)], rows)


def losses_table(results: Results) -> str:
    """Return mean final losses with half of their intervals; the best, and those tied with it, are bold."""

    def cell(task: str, optimizer: str) -> str:
        losses = results.losses(task, optimizer)
        if not losses:
            return NONE
        interval = mean_interval(list(losses.values()))
        if math.isinf(interval.value):
            return "not finite"
        half = "" if math.isnan(interval.high) else f" ± {number(interval.high - interval.value, 2)}"
        text = f"{number(interval.value, 4)}{half}"
        return f"**{text}**" if optimizer in best[task] else text

    best = {
        task: first_and_tied({name: results.losses(task, name) for name in results.optimizers})[1]
        for task in results.tasks
    }
    return per_task(results, cell)


def ratio_table(results: Results, column: int) -> str:
    """Return steps or seconds to the baseline's final loss, as shares of the baseline's run."""

    def cell(task: str, optimizer: str) -> str:
        ratio = ratio_to_baseline(results, task, optimizer, BASELINE, column)
        return NONE if ratio is None else with_limits(ratio)

    return per_task(results, cell)


def best_rival_table(results: Results) -> str:
    """Return our steps and seconds to the best rival's final loss, as shares of that rival's run."""
    rows = []
    for task in results.tasks:
        rival = results.best_rival(task, OURS)
        if rival is None or not results.losses(task, OURS):
            continue
        ratios = [ratio_to_baseline(results, task, OURS, rival, column) for column in (STEPS, SECONDS)]
        p = paired_p(results.losses(task, OURS), results.losses(task, rival))
        cells = [with_limits(ratio) for ratio in ratios if ratio is not None]
        finals = [number(results.final(task, name), 4) for name in (OURS, rival)]
        rows.append([task, label(rival), *finals, *cells, p_value(p)])
    header = [
        "",
        "best rival",
        f"{label(OURS)}'s loss",
        "its loss",
        "steps to it",
        "seconds to it",
        "paired p",
    ]
    return markdown_table(header, rows)


def counts(results: Results, losses: Callable[[str, str], dict[int, float]]) -> dict[str, tuple[int, int]]:
    """Return for each optimizer the tasks on which it is first, and first or tied with the first."""
    outcomes = [
        first_and_tied({name: losses(task, name) for name in results.optimizers}) for task in results.tasks
    ]
    return {
        name: (sum(first == name for first, _ in outcomes), sum(name in tied for _, tied in outcomes))
        for name in results.optimizers
    }


def mean_ratio(results: Results, optimizer: str, column: int) -> tuple[str, int, int]:
    """Return the geometric mean of the ratios to the baseline, the tasks that reach it, and all tasks."""
    ratios = [ratio_to_baseline(results, task, optimizer, BASELINE, column) for task in results.tasks]
    values = [ratio.value for ratio in ratios if ratio is not None]
    if not values:
        return NONE, 0, 0
    reaching = sum(map(math.isfinite, values))
    counted = [max(LEAST, value) if math.isfinite(value) else UNREACHED for value in values]
    return with_limits(geometric_mean_interval(counted)), reaching, len(values)


def summary_table(results: Results) -> str:
    at_steps = counts(results, results.losses)
    at_seconds = counts(
        results, lambda task, name: results.losses_at_seconds(task, name, results.seconds(task, BASELINE))
    )
    rows = []
    for name in results.optimizers:
        steps, reaching, tasks = mean_ratio(results, name, STEPS)
        seconds, _, _ = mean_ratio(results, name, SECONDS)
        against = over_tasks(results, OURS, name) if name != OURS else OverTasks(0, 0, math.nan, math.nan)
        rows.append(
            [
                label(name),
                steps,
                seconds,
                f"{reaching} of {tasks}",
                "{}, {}".format(*at_steps[name]),
                "{}, {}".format(*at_seconds[name]),
                NONE if name == OURS else f"{against.wins} : {against.losses}",
                p_value(against.wilcoxon),
                p_value(against.sign),
            ]
        )
    header = [
        "",
        f"steps to {label(BASELINE)}'s loss",
        "seconds to it",
        "tasks that reach it",
        "first, tied first: equal steps",
        "the same: equal seconds",
        f"{label(OURS)} against it",
        "Wilcoxon p",
        "sign p",
    ]
    return markdown_table(header, rows)


def paired_table(results: Results) -> str:
    """Return the p values of the paired tests of our losses against each rival's, with the sign."""

    def cell(task: str, optimizer: str) -> str:
        ours, theirs = results.losses(task, OURS), results.losses(task, optimizer)
        if optimizer == OURS or not ours or not theirs:
            return NONE
        p = p_value(paired_p(ours, theirs))
        better = results.final(task, OURS) < results.final(task, optimizer)
        return p and f"{'+' if better else '-'} {p}"

    return per_task(results, cell)


def choices_table(results: Results, records: Sequence[RunRecord]) -> str:
    """Return the best choices, with runs of the search and bytes of state."""
    searched = [record.run for record in records if record.run.seed == SEARCH_SEED]
    rows = []
    for (task, optimizer), runs in results.runs.items():
        record = next(iter(runs.values()))
        count = sum((run.task, run.optimizer) == (task, optimizer) for run in searched)
        seconds = median_interval([run.outcome.seconds for run in runs.values()])
        second = RIVALS[optimizer].second if optimizer in RIVALS else "value"
        choice = f"{record.run.lr:g}, {second} {record.run.value:g}"
        size = f"{record.outcome.state_bytes / 2**20:.2f}"
        rows.append([task, label(optimizer), choice, count, number(seconds.value), size])
    return markdown_table(
        ["", "optimizer", "rate", "runs of the search", "seconds a run", "MiB of state"], rows
    )


def failures_table(records: Sequence[RunRecord]) -> str:
    rows = [
        [
            record.run.task,
            label(record.run.optimizer),
            f"{record.run.lr:g}, {record.run.value:g}",
            record.run.seed,
            record.outcome.status,
        ]
        for record in records
        if record.outcome.status != OK
    ]
    if not rows:
        return "No run failed.\n"
    return markdown_table(["", "optimizer", "rate, value", "seed", "what happened"], rows)


def widths_report(records: Sequence[RunRecord]) -> str:
    """Return a table of final losses: optimizers and widths by rates, the best of a row in bold."""
    rates = sorted({record.run.lr for record in records})
    by_row: dict[tuple[str, str], dict[float, float]] = {}
    for record in records:
        row = by_row.setdefault((record.run.optimizer, record.run.task), {})
        row[record.run.lr] = record.outcome.val_loss
    rows = []
    for (optimizer, task), losses in by_row.items():
        best = min(losses, key=lambda rate: (not math.isfinite(losses[rate]), losses[rate]))
        cells = [number(losses[rate], 4) if rate in losses else NONE for rate in rates]
        bold = [f"**{cell}**" if rate == best else cell for rate, cell in zip(rates, cells, strict=True)]
        rows.append([label(optimizer), task.removeprefix("width "), *bold])
    return markdown_table(["", "width", *(f"{rate:g}" for rate in rates)], rows) if rows else NOTHING


def report(records: Sequence[RunRecord]) -> str:
    """Return all tables, or a sentence if no run of the best choices has ended."""
    results = Results(records)
    if not results.runs:
        return NOTHING
    machines = sorted({", ".join(record.circumstances[1:3]) for record in records})
    seeds = sorted({record.run.seed for record in records} - {SEARCH_SEED})
    baseline = label(BASELINE)
    sections = [
        ("Summary", summary_table(results)),
        ("Final losses at equal steps, mean and half of its interval", losses_table(results)),
        (f"Steps to {baseline}'s final loss, over {baseline}'s steps", ratio_table(results, STEPS)),
        (f"Seconds to {baseline}'s final loss, over {baseline}'s seconds", ratio_table(results, SECONDS)),
        (f"{label(OURS)} against the best rival of each task", best_rival_table(results)),
        (f"Paired tests of {label(OURS)}'s losses: + where they are lower", paired_table(results)),
        ("Choices", choices_table(results, records)),
        ("Runs that failed", failures_table(records)),
    ]
    seeds_text = ", ".join(map(str, seeds))
    head = f"{len(records)} runs; seeds {seeds_text} of the best choices. {'; '.join(machines)}.\n"
    return head + "".join(f"\n### {title}\n\n{table}" for title, table in sections)


def markers(part: str) -> tuple[str, str]:
    """Return the comments before and after a part of the page."""
    return f"<!-- {part} -->", f"<!-- end of {part} -->"


def insert(text: str, page: Path, part: str) -> None:
    """Put the text between the page's markers of a part.

    Raises:
        ValueError: the page does not have both markers, in order.
    """
    content = page.read_text()
    first, last = markers(part)
    begin, end = content.find(first), content.find(last)
    if not 0 <= begin < end:
        raise ValueError(f"{page} must have {first!r} before {last!r}")
    page.write_text(f"{content[: begin + len(first)]}\n\n{text}\n{content[end:]}")
