"""Trained optimizers of several recipes, for tests of the diagnostics."""

from __future__ import annotations

from typing import Any

import torch
from training import SMALL, parameters, train

from kradagrad_ext import KrADagrad

SHAPES = ((20, 13), (7,), (3, 4, 5), ())


RECIPES: list[dict[str, Any]] = [
    {},
    {"packed": True, "root_dtype": torch.bfloat16},
    {"max_factor_dim": 10, "merge_dims": False, "precondition_1d": True},
    {"capturable": True, "exponent": 0.5},
    {"factor_update": "products", "graft": "whitened", "coupling": "kl", "lr": 1e-3},
]


def trained(recipe: dict[str, Any], dtype: torch.dtype = torch.float32) -> KrADagrad:
    params = parameters(*SHAPES, dtype=dtype)
    optimizer = KrADagrad(params, **(SMALL | recipe))
    train(optimizer, params, range(8))
    return optimizer
