"""Parameters that hold several matrices: experts in one tensor, queries, keys and values in one matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from training import SMALL, parameters, set_gradients

from kradagrad_ext import KrADagrad

RECIPES: list[dict[str, Any]] = [
    {},
    {"packed": True, "factor_update": "products"},
    {"capturable": True, "root_every": 1},
    {"max_factor_dim": 9},
]
DIVISIONS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((3, 12, 9), {"batch_dims": 1}),
    ((30, 9), {"split": 3}),
    ((9, 34), {"split": (13, 10, 11), "split_dim": 1}),
    ((2, 9, 20), {"batch_dims": 1, "split": 2, "split_dim": -1}),
    ((2, 3, 10, 9), {"batch_dims": 2}),
]


def matrices(tensor: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """Return the matrices of a parameter as views."""
    first = options.get("batch_dims", 0)
    dim = options.get("split_dim", 0) % tensor.ndim - first
    split, batch = options.get("split", 1), tensor.flatten(0, first - 1) if first else tensor[None]
    views = []
    for each in batch:
        lengths = [each.shape[dim] // split] * split if isinstance(split, int) else list(split)
        views += each.split(lengths, dim)
    return views


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize(("shape", "options"), DIVISIONS, ids=str)
def test_steps_are_those_of_the_matrices_one_by_one(
    shape: tuple[int, ...], options: dict[str, Any], recipe: dict[str, Any], backend: str
) -> None:
    """Lengths are those of the matrices, not of the whole parameter."""
    (whole,) = parameters(shape)
    single = [nn.Parameter(part.clone()) for part in matrices(whole.detach(), options)]
    shared = SMALL | recipe | {"graft": "whitened", "coupling": "kl"}
    optimizer, other = (
        KrADagrad([whole], **shared, **options, backend=backend),
        KrADagrad(single, **shared, backend=backend),
    )
    for step in range(8):
        set_gradients([whole], step)
        assert whole.grad is not None
        for p, grad in zip(single, matrices(whole.grad, options), strict=True):
            p.grad = grad.clone()
        optimizer.step()
        other.step()
    for part, p in zip(matrices(whole.detach(), options), single, strict=True):
        torch.testing.assert_close(part, p.detach(), rtol=2e-5, atol=1e-6)


class Mixture(nn.Module):
    """A model with fused queries, keys and values of unequal widths, and with experts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fused = nn.Linear(20, 34, dtype=torch.float64)
        self.experts = nn.Parameter(torch.randn(3, 34, 14, dtype=torch.float64) / 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,eio->beo", torch.tanh(self.fused(x)), self.experts).clone()

    def optimizer(self) -> KrADagrad:
        groups = [
            {"params": [self.fused.weight], "split": (18, 9, 7)},
            {"params": [self.fused.bias]},
            {"params": [self.experts], "batch_dims": 1, "split": 2, "split_dim": 2},
        ]
        return KrADagrad(groups, **(ranks.OPTIONS | {"block_size": 5}))


def trained(model: Mixture) -> tuple[list[Tensor], KrADagrad]:
    optimizer = model.optimizer()
    for step in range(8):
        x = torch.randn(16, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    return ranks.whole(model), optimizer


def sharded_rank(rank: int, world: int) -> tuple[list[Tensor], dict[str, tuple[int, ...]]]:
    model = Mixture()
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    parameters_, optimizer = trained(model)
    states = optimizer.state_dict()["state"]
    shapes = {key: tuple(t.shape) for state in states.values() for key, t in state.items()}
    return parameters_, shapes


def test_matrices_are_divided_among_ranks(tmp_path: Path) -> None:
    """Parts are no multiples of blocks, experts are fewer than ranks, and pieces are cut at all of these.

    One collective carries the pieces of several parameter groups.
    """
    gathered = ranks.launch(4, sharded_rank, tmp_path, 4)
    expected, optimizer = trained(Mixture())
    for parameters_, shapes in gathered:
        for ours, alone in zip(parameters_, expected, strict=True):
            torch.testing.assert_close(ours, alone, rtol=1e-10, atol=1e-12)
        for key, tensor in optimizer.state_dict()["state"][2].items():
            assert torch.Size(shapes[key]).numel() == tensor.numel(), key
