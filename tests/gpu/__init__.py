"""Tests that need a GPU: every backend against the reference, captures, streams, several devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cases
import torch
from torch import Tensor

CUDA = torch.device("cuda")


def judge(compare: Callable[..., None], *arguments: Any) -> None:
    """Call an assertion; in a dry run, print that its values are not judged instead."""
    if os.environ.get("KRADAGRAD_DRY_RUN") == "1":
        print(f"not judged: {getattr(compare, '__name__', compare)}")
        return
    compare(*arguments)


def equal(a: list[Tensor], b: list[Tensor]) -> None:
    """Assert that two lists of tensors have the same bits."""
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def on(inputs: SimpleNamespace, device: torch.device = CUDA) -> SimpleNamespace:
    """Copy an op's tensors to a device with their memory layout, and with the NaN around their views."""

    def move(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        if isinstance(value, list):
            return [move(tensor) for tensor in value]
        storage = cases.whole(value).to(device)
        return storage.as_strided(value.shape, value.stride(), value.storage_offset())

    return SimpleNamespace(**{name: move(value) for name, value in vars(inputs).items()})
