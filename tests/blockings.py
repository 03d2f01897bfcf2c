"""Options for tests of blockings: how parameters are cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from kradagrad_ext import KrADagrad
from kradagrad_ext.config import Config

DEFAULTS: dict[str, Any] = vars(Config.of(KrADagrad([torch.zeros(1)]).param_groups[0]))


def config(**options: Any) -> Config:
    return Config(**{**DEFAULTS, **options})


@st.composite
def divisions(draw: st.DrawFn, shape: tuple[int, ...]) -> dict[str, Any]:
    """Draw batch dims and a split that fit a shape."""
    batch_dims = draw(st.integers(0, len(shape)))
    if batch_dims == len(shape):
        return {"batch_dims": batch_dims}
    dim = draw(st.integers(batch_dims, len(shape) - 1))
    borders = sorted(draw(st.sets(st.integers(1, shape[dim]), max_size=3)) - {shape[dim]})
    lengths = [b - a for a, b in itertools.pairwise([0, *borders, shape[dim]])]
    equal = draw(st.sampled_from([n for n in range(1, shape[dim] + 1) if shape[dim] % n == 0]))
    return {"batch_dims": batch_dims, "split_dim": dim, "split": draw(st.sampled_from([lengths, equal]))}


def parts_of(shape: tuple[int, ...], options: Config) -> Sequence[int]:
    split, size = options.split, shape[options.split_dim]
    return [size // split] * split if isinstance(split, int) else split
