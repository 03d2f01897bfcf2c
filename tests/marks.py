"""The marker `slow`: what `make test` leaves out and `.ci/run` includes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

slow = pytest.mark.slow


def slow_after(fast: int, values: Sequence[Any]) -> list[Any]:
    """Values of a parameter, or tuples of several, of which all but the first `fast` are slow."""
    tuples = [value if isinstance(value, tuple) else (value,) for value in values]
    return [*values[:fast], *(pytest.param(*each, marks=slow) for each in tuples[fast:])]
