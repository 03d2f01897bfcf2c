"""`kron_step_`: both factor updates and the two-sided product of square blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.ops.case import Case
from bench.ops.factors import RECIPES, kron_step_case


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("side", [64, 128, 256, 512])
def test_kron_step(side: int, recipe: str, backend: str, time_op: Callable[[Case, str], None]) -> None:
    time_op(kron_step_case(side, recipe), backend)
