"""One gradient 1e4 times larger than the others, or a first one of 1e-6, leaves no trace after 200 steps."""

from __future__ import annotations

from typing import Any

import pytest
import spikes

SIZES = pytest.mark.parametrize("sizes", [spikes.SPIKE, spikes.TINY], ids=["spike", "tiny"])

OPTIONS: list[dict[str, Any]] = [
    {},
    {"factor_update": "products"},
    {"coupling": "none"},
    {"graft": "rms", "lr": 5e-2},
    {"graft": "whitened"},
    {"momentum_on": "update", "nesterov": False, "lr": 5e-3},
]


@SIZES
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_gradient_of_another_size(options: dict[str, Any], seed: int, sizes: dict[int, float]) -> None:
    spikes.check(sizes, seed, backend="reference", **options)


@SIZES
def test_on_every_backend(sizes: dict[int, float], backend: str) -> None:
    spikes.check(sizes, backend=backend)
    spikes.check(sizes, backend=backend, factor_update="products")
