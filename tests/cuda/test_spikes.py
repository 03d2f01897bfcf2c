"""A gradient of another size for one step, through the CUDA kernels on the executor."""

from __future__ import annotations

import pytest
import spikes
from marks import slow_after

from .executor_backend import Executor


@pytest.mark.parametrize("sizes", slow_after(1, [spikes.SPIKE, spikes.TINY]), ids=["spike", "tiny"])
def test_a_gradient_of_another_size(monkeypatch: pytest.MonkeyPatch, sizes: dict[int, float]) -> None:
    spikes.check_on(monkeypatch, Executor(races=False), sizes)
