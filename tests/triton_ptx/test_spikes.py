"""A gradient of another size for one step, through the compiled Triton kernels on the executor."""

from __future__ import annotations

import pytest
import spikes
from marks import slow

from .compiled import Compiled


@slow
@pytest.mark.parametrize("sizes", [spikes.SPIKE, spikes.TINY], ids=["spike", "tiny"])
def test_a_gradient_of_another_size(monkeypatch: pytest.MonkeyPatch, sizes: dict[int, float]) -> None:
    spikes.check_on(monkeypatch, Compiled("sm_90"), sizes)
