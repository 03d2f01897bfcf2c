"""Nine steps of the optimizer through the CUDA kernels on the executor equal those of the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from marks import slow_after
from trajectory import FEW_STEPS, LR, RECIPES, check_equals_the_reference

from .executor_backend import Executor


@pytest.mark.parametrize("dtype", slow_after(1, list(LR)))
@RECIPES
def test_equals_the_reference(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    check_equals_the_reference(monkeypatch, Executor(), dtype, options, FEW_STEPS)
