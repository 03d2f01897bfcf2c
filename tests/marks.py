"""The marker `slow`, for tests that `make test` leaves out and `.ci/run` includes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

slow = pytest.mark.slow


def slow_after(fast: int, values: Sequence[Any]) -> list[Any]:
    """Return values (or tuples of values) for parametrize; all except the first `fast` are marked slow."""
    tuples = [value if isinstance(value, tuple) else (value,) for value in values]
    return [*values[:fast], *(pytest.param(*each, marks=slow) for each in tuples[fast:])]
