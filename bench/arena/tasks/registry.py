"""The tasks by name, in the order of the tables."""

from __future__ import annotations

from functools import cache

from bench.arena.tasks.adding import Adding
from bench.arena.tasks.base import ArenaTask
from bench.arena.tasks.digits import Digits
from bench.arena.tasks.drawn import Convolutions, Curves, Images
from bench.arena.tasks.experts import MixtureOfExperts
from bench.arena.tasks.poisson import Poisson
from bench.arena.tasks.regression import Regression
from bench.arena.tasks.text import CodeText, LowRank, ManualText
from bench.arena.tasks.widths import WIDTHS

TASKS: dict[str, type[ArenaTask]] = {
    task.name: task
    for task in (
        CodeText,
        ManualText,
        MixtureOfExperts,
        LowRank,
        Images,
        Convolutions,
        Curves,
        Digits,
        Adding,
        Poisson,
        Regression,
    )
}


@cache
def task_of(name: str) -> ArenaTask:
    """Return the task of a name; a process makes each once."""
    return (TASKS | WIDTHS)[name]()
