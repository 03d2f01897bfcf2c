"""Steps of the optimizer through every backend equal the reference's."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from trajectory import DTYPES, FEW_STEPS, RECIPES, STEPS, check_equals_the_reference


@DTYPES
@RECIPES
def test_equals_the_reference(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, options: dict[str, Any], backend: str
) -> None:
    steps = FEW_STEPS if backend == "triton" else STEPS
    check_equals_the_reference(monkeypatch, cases.ops(backend, torch.float32), dtype, options, steps)
