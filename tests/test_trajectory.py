"""Twenty steps of the optimizer through every backend equal the reference's."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from trajectory import DTYPES, RECIPES, check_equals_the_reference


@DTYPES
@RECIPES
def test_equals_the_reference(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, options: dict[str, Any], backend: str
) -> None:
    check_equals_the_reference(monkeypatch, cases.ops(backend, torch.float32), dtype, options)
