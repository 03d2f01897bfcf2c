"""Write the checkpoints in tests/golden, one for each recipe and dtype, with the installed version.

    python tests/golden_checkpoints.py

Existing files stay unchanged: users have such checkpoints, and every later version must resume from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from kradagrad_ext import KrADagrad
from kradagrad_ext.checkpoint import FORMAT

FOLDER = Path(__file__).parent / "golden" / "checkpoints"
SHAPES = ((10, 6), (2, 5, 4), (5,), ())
BEFORE, AFTER = 4, 3
"""Number of steps before a checkpoint, and of the steps that resume from it."""

RECIPES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "default": (torch.float32, {}),
    "float64": (torch.float64, {}),
    "bfloat16": (torch.bfloat16, {}),
    "compensated": (torch.bfloat16, {"rounding": "compensated", "weight_decay": 0.1}),
    "packed": (
        torch.float32,
        {"packed": True, "root_dtype": torch.bfloat16, "factor_dtype": torch.bfloat16, "graft": "rms"},
    ),
    "whitened": (torch.float32, {"graft": "whitened", "factor_update": "products", "root_method": "polar"}),
    "update": (torch.float32, {"momentum_on": "update", "graft": "sgd", "nesterov": False}),
    "capturable": (torch.float32, {"capturable": True, "exponent": 0.5, "graft": "adagrad"}),
    "divided": (torch.float32, {"split": 2, "precondition_1d": True, "merge_dims": False}),
}


def optimizer_of(params: list[nn.Parameter], options: dict[str, Any]) -> KrADagrad:
    if "split" not in options:
        return KrADagrad(params, lr=0.02, block_size=4, **options)
    # Vectors of odd length and scalars cannot be split into two equal parts.
    groups = [{"params": params[:2], **options}, {"params": params[2:], "precondition_1d": True}]
    return KrADagrad(groups, lr=0.02, block_size=4)


def step(optimizer: KrADagrad, params: list[nn.Parameter], gradients: list[torch.Tensor]) -> None:
    for p, grad in zip(params, gradients, strict=True):
        p.grad = grad.clone()
    optimizer.step()


def checkpoint(dtype: torch.dtype, options: dict[str, Any]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def random() -> list[torch.Tensor]:
        return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]

    params = [nn.Parameter(tensor) for tensor in random()]
    optimizer = optimizer_of(params, options)
    for _ in range(BEFORE):
        step(optimizer, params, random())
    gradients = [random() for _ in range(AFTER)]
    saved = {"parameters": [p.detach().clone() for p in params], "optimizer": optimizer.state_dict()}
    for grads in gradients:
        step(optimizer, params, grads)
    return saved | {"gradients": gradients, "after": [p.detach().clone() for p in params]}


def main() -> None:
    for name, (dtype, options) in RECIPES.items():
        path = FOLDER / f"format{FORMAT}_{name}.pt"
        if not path.exists():
            torch.save(checkpoint(dtype, options), path)
            print(path.name)


if __name__ == "__main__":
    main()
