"""The marker `slow`, for tests that `make test` leaves out and of which `.ci/run` takes a share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

slow = pytest.mark.slow


def slow_after(fast: int, values: Sequence[Any]) -> list[Any]:
    """Return values (or tuples of values) for parametrize; all except the first `fast` are marked slow."""
    tuples = [value if isinstance(value, tuple) else (value,) for value in values]
    return [*values[:fast], *(pytest.param(*each, marks=slow) for each in tuples[fast:])]


def in_turn(functions: Sequence[str], share: int, turn: int) -> list[bool]:
    """Return which cases are taken: of every function one in `share`, at least one, others on the next turn.

    Args:
        functions: the test function of each case.
        turn: any integer; every case is taken on one of `share` consecutive turns.
    """
    total, seen = Counter(functions), Counter[str]()
    taken = []
    for name in functions:
        taken.append(seen[name] % share == turn % min(share, total[name]))
        seen[name] += 1
    return taken
