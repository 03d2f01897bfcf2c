"""Pure bfloat16 parameters move, rounded by chance or with the residuals of rounding in their state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from marks import slow
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from kradagrad_ext import KrADagrad

SHAPES = [(40, 24), (3, 16, 8), (50,)]


def parameters(dtype: torch.dtype = torch.bfloat16) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).bfloat16().to(dtype)) for shape in SHAPES]


def train(optimizer: KrADagrad, params: list[nn.Parameter], numbers: range) -> None:
    """Step with gradients of about one direction, whose values bfloat16 holds."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for p in params:
            p.grad = (1 + 0.1 * torch.randn(p.shape, generator=generator)).bfloat16().to(p.dtype)
        optimizer.step()


def moved(
    rounding: str, lr: float = 1e-4, steps: int = 40, **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the movements of bfloat16 parameters and of float32 ones."""
    movements = []
    for dtype in (torch.bfloat16, torch.float32):
        params, start = parameters(dtype), parameters(dtype)
        train(KrADagrad(params, lr=lr, block_size=16, rounding=rounding, **options), params, range(steps))
        movements.append([(p - old).detach().float() for p, old in zip(params, start, strict=True)])
    return movements[0], movements[1]


def share(movement: Tensor, exact: Tensor) -> float:
    """Return the length of a movement along the exact one, as a share of that one's."""
    return float((movement * exact).sum() / exact.square().sum())


def test_parameters_rounded_to_the_nearest_stall() -> None:
    """A step of 5e-4 is less than half the last digit of most elements, hence the other two roundings."""
    ours, expected = moved("nearest")
    for movement, exact in zip(ours, expected, strict=True):
        assert share(movement, exact) < 0.2


@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
@pytest.mark.parametrize(
    "options", [{}, {"graft": "rms"}, {"momentum_on": "update", "nesterov": False}], ids=str
)
def test_they_move_as_float32_ones_do(rounding: str, options: dict[str, Any], backend: str) -> None:
    ours, expected = moved(rounding, 8e-3, 30, backend=backend, **options)
    for movement, exact in zip(ours, expected, strict=True):
        assert share(movement, exact) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("lr", [1e-3, 1e-7])
def test_with_residuals_they_are_float32_ones_rounded(lr: float, backend: str) -> None:
    """They agree to the bit, even where hundreds of steps make up one digit of bfloat16."""
    params, wide = parameters(), parameters(torch.float32)
    ours = KrADagrad(params, lr=lr, block_size=16, rounding="compensated", backend=backend)
    other = KrADagrad(wide, lr=lr, block_size=16, backend=backend)
    train(ours, params, range(20))
    train(other, wide, range(20))
    for p, exact in zip(params, wide, strict=True):
        whole = (p.detach().float().view(torch.int32) + ours.state[p]["residual"].int()).view(torch.float32)
        assert torch.equal(whole, exact.detach())


def test_chance_is_the_same_for_any_number_of_threads() -> None:
    threads, runs = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        params = [p for p in parameters() if p.ndim < 3]  # products of other blocks are torch's
        train(KrADagrad(params, lr=1e-3, block_size=16), params, range(6))
        runs.append(params)
    torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(map(torch.equal, other, runs[0]))


@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
def test_a_checkpoint_goes_on_with_the_same_bits(rounding: str) -> None:
    params = parameters()
    ours = KrADagrad(params, lr=1e-4, block_size=16, rounding=rounding)
    train(ours, params, range(5))
    copies = copy.deepcopy(params)
    other = KrADagrad(copies, lr=1e-4, block_size=16, rounding=rounding)
    other.load_state_dict(ours.state_dict())
    train(ours, params, range(5, 10))
    train(other, copies, range(5, 10))
    assert all(map(torch.equal, params, copies))


def test_rounding_may_change_between_two_steps() -> None:
    """Residuals start at zero, and are dropped when they are not used."""
    params = parameters()
    optimizer = KrADagrad(params, lr=1e-4, block_size=16, rounding="nearest")
    train(optimizer, params, range(2))
    optimizer.param_groups[0]["rounding"] = "compensated"
    train(optimizer, params, range(2, 4))
    assert all(optimizer.state[p]["residual"].abs().max() > 0 for p in params)
    assert all(optimizer.state[p]["matrix_stats"][0, 0] == 4 for p in params)
    optimizer.param_groups[0]["rounding"] = "stochastic"
    train(optimizer, params, range(4, 6))
    assert all("residual" not in optimizer.state[p] for p in params)


@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
def test_float32_parameters_are_not_rounded(rounding: str) -> None:
    plain, other = parameters(torch.float32), parameters(torch.float32)
    train(KrADagrad(plain, lr=1e-3, block_size=16, rounding="nearest"), plain, range(5))
    optimizer = KrADagrad(other, lr=1e-3, block_size=16, rounding=rounding)
    train(optimizer, other, range(5))
    assert all(map(torch.equal, plain, other))
    assert all("residual" not in state for state in optimizer.state.values())


def test_an_unknown_rounding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`rounding` must be one of .* got 'up'"):
        KrADagrad(parameters(), rounding="up")


def rounded_rank(rank: int, rounding: str, mode: str) -> list[Tensor]:
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8)).bfloat16()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    if mode == "fsdp":
        fully_shard(model)
    group = dist.group.WORLD if mode == "ddp" else None
    optimizer = KrADagrad(model.parameters(), lr=1e-3, block_size=16, process_group=group, rounding=rounding)
    for number in range(5):
        generator = torch.Generator().manual_seed(number)
        for p in model.parameters():
            whole = torch.randn(p.shape, generator=generator).bfloat16()
            p.grad = distribute_tensor(whole, p.device_mesh, p.placements) if mode == "fsdp" else whole
        optimizer.step()
    return ranks.whole(model)


@slow
@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
def test_the_same_bits_on_any_number_of_ranks(rounding: str, tmp_path: Path) -> None:
    """Replicas and shards of rows round their elements as one rank does."""
    results = []
    for world, mode in ((1, "ddp"), (2, "ddp"), (3, "fsdp")):
        folder = tmp_path / f"{world}{mode}"
        folder.mkdir()
        results += ranks.launch(world, rounded_rank, folder, rounding, mode)
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert torch.equal(a, b)
