"""Optimizers on fake GPUs: parameters, and the recording of a step to which nothing is new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from kradagrad_ext import KrADagrad
from kradagrad_ext.schedule import SETTLED

from . import Recording, is_active, recorded

needs_fake_gpu = pytest.mark.skipif(
    not is_active(), reason="runs under the fake CUDA runtime and a CUDA build of torch: make test-fake-gpu"
)
BACKENDS = ["reference", "native", "triton"]

SHAPES = ((64, 64), (128, 96), (200, 72), (300, 40), (33,))
"""Shapes with blocks for the resident kernels, the wide ones and grouped products, and one without blocks."""


def parameters(device: str = "cuda", shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    params = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]
    for p in params:
        p.grad = torch.zeros_like(p)
    return params


def steady(step: Callable[[], None], warm_up: int = 6) -> Recording:
    """Return the recording of a step after some others."""
    for _ in range(warm_up):
        step()
    with recorded() as recording:
        step()
    return recording


def kernels(recording: Recording) -> Counter[str]:
    """Count the launches of the project's kernels: names without torch's namespaces."""
    names = Counter(event["name"] for event in recording.of("launch"))
    return Counter(
        {name: count for name, count in names.items() if "at::" not in name and "at_cuda" not in name}
    )


def make(params: Sequence[Tensor], backend: str, **options: object) -> KrADagrad:
    """Return an optimizer past its first steps; `root_every` is so large that hardly any roots are due."""
    fixed = {"lr": 0.1, "backend": backend, "block_size": 512, "root_every": 1000}
    optimizer = KrADagrad(params, **{**fixed, **options})
    optimizer.param_groups[0]["step"] = SETTLED
    return optimizer


def assert_free_of_waits(recording: Recording) -> None:
    assert recording.events, "nothing was recorded"
    assert recording.refusals == []
    assert recording.syncs == []
    assert recording.copies("pageable", "device 0") == 0
