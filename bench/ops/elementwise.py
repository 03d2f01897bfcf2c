"""Inputs of the multi-tensor ops: the matrices of a GPT-2 layer, by dtype of parameters and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.ops.case import Arguments
from bench.workload import gpt2

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHAPE = "gpt2-layer"


def moments() -> tuple[list[Tensor], list[Tensor]]:
    """Return first and second moments as in the middle of a run, float32."""
    first = gpt2().gradients(1)
    return first, [0.5 * tensor.square() + 1e-7 for tensor in gpt2().gradients(2)]


def coefficients(count: int) -> Tensor:
    """Return c0 to c9 of the adam graft after a dozen steps, ``[P, 10]``; weight decay is decoupled."""
    return torch.tensor([1.4, 9.0, 1e-11, 0.8, 1.0, 10.0, 12.0, 0.0, 0.0, 0.01]).repeat(count, 1)


def common_arguments(dtype: str) -> Arguments:
    params = [parameter.detach().to(DTYPES[dtype]) for parameter in gpt2().parameters()]
    return dict(
        params=params,
        coefficients=coefficients(len(params)),
        active=torch.ones(len(params), dtype=torch.bool),
    )
