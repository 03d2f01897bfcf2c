"""State and work divided among ranks: the same parameters as on one rank, in every mode; and faults."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from marks import slow, slow_after
from torch import Tensor, nn
from torch.distributed import checkpoint

from kradagrad_ext import KrADagrad

STEPS = 20
MODES = [(1, "ddp"), (2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp"), (4, "hsdp"), (2, "tp"), (4, "tp")]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"nesterov": True, "weight_decay": 0.1, "decoupled_weight_decay": False, "precondition_1d": True},
    {"momentum_on": "update", "graft": "sgd", "factor_update": "products", "start_step": 3, "packed": True},
]


def train(model: nn.Sequential, options: dict[str, Any], steps: int = STEPS) -> KrADagrad:
    optimizer = KrADagrad(model.parameters(), **ranks.OPTIONS, **options)
    for step in range(steps):
        ranks.backward(model, step)
        optimizer.step()
    return optimizer


def modes_of_a_rank(rank: int, world: int) -> dict[Any, list[Tensor]]:
    results = {}
    for mode in [mode for size, mode in MODES if size == world]:
        for number, options in enumerate(VARIANTS):
            for dtype in (torch.float64,) if number or mode == "tp" else (torch.float64, torch.float32):
                model = ranks.make_model(dtype)
                train(model, options | ranks.shard(model, mode))
                results[mode, number, dtype] = ranks.whole(model)
    return results


@pytest.mark.parametrize("world", slow_after(1, [2, 1, 4]))
def test_same_parameters_in_every_mode(world: int, tmp_path: Path) -> None:
    """Parameters equal those of one rank, to rounding. Tensor parallelism rounds gradients differently, which
    grows over many steps in float32."""
    gathered = ranks.launch(world, modes_of_a_rank, tmp_path, world)
    for (mode, number, dtype), parameters in gathered[0].items():
        model = ranks.make_model(dtype)
        train(model, VARIANTS[number])
        for ours, alone in zip(parameters, ranks.whole(model), strict=True):
            error = float((ours - alone).norm() / alone.norm())
            assert error <= (1e-10 if dtype == torch.float64 else 1e-5), (mode, number, dtype)
        for other in gathered[1:]:
            same = zip(parameters, other[mode, number, dtype], strict=True)
            assert all(torch.equal(a, b) for a, b in same), "replicas must agree to the bit"


def guarded_rank(rank: int, mode: str) -> dict[str, Any]:
    """Take a step with an Inf in one element of a gradient, in one shard, and with a missing gradient."""
    model = ranks.make_model()
    optimizer = KrADagrad(model.parameters(), **ranks.OPTIONS, **ranks.shard(model, mode))
    ranks.backward(model, 0)
    optimizer.step()
    before = ranks.whole(model)
    ranks.backward(model, 1)
    weight = model[0].weight.grad
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    if mode == "ddp" or rank == 1:
        local[-1, -1] = torch.inf
    model[2].bias.grad = None
    optimizer.step()
    return {"before": before, "after": ranks.whole(model)}


@pytest.mark.parametrize("mode", slow_after(1, ["fsdp", "ddp"]))
def test_a_gradient_that_is_not_finite_or_missing_on_all_ranks(mode: str, tmp_path: Path) -> None:
    for result in ranks.launch(2, guarded_rank, tmp_path, mode):
        changed = [not torch.equal(*pair) for pair in zip(result["before"], result["after"], strict=True)]
        assert changed == [False, True, True, False, True]


def counted_rank(rank: int, layers: int) -> tuple[Counter[str], list[int]]:
    """Return the collectives of one step of a model of `layers` layers, and the sizes of their buffers."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(layers)))
    optimizer = KrADagrad(model.parameters(), block_size=16, process_group=dist.group.WORLD)
    counts: Counter[str] = Counter()
    sizes: list[int] = []
    for step in range(2):
        if step == 1:  # the first one builds the shard
            ranks.count_collectives(counts, sizes)
        model.zero_grad()
        model(torch.randn(8, 32)).square().mean().backward()
        optimizer.step()
    return counts, sizes


@pytest.mark.parametrize("layers", slow_after(1, [30, 3]))
def test_collectives_do_not_grow_with_the_parameters(layers: int, tmp_path: Path) -> None:
    for counts, sizes in ranks.launch(2, counted_rank, tmp_path, layers):
        assert counts == {"all_reduce": 2, "all_gather": 1}
        parameters = layers * (32 * 32 + 32)
        assert max(sizes) <= 1.2 * 4 * parameters + 4096


def resuming_rank(rank: int, file: str) -> list[Tensor]:
    """Resume from the checkpoint of an optimizer on one rank."""
    saved = torch.load(file, weights_only=True)
    model = ranks.make_model()
    model.load_state_dict(saved["model"])
    optimizer = KrADagrad(model.parameters(), **ranks.OPTIONS, **ranks.shard(model, "fsdp"))
    optimizer.load_state_dict(saved["optimizer"])
    for step in range(4, 8):
        ranks.backward(model, step)
        optimizer.step()
    return ranks.whole(model)


def test_a_state_dict_of_one_rank_loads_on_two(tmp_path: Path) -> None:
    model = ranks.make_model()
    optimizer = train(model, {}, 4)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "one")
    resumed = ranks.launch(2, resuming_rank, tmp_path, str(tmp_path / "one"))[0]
    model = ranks.make_model()
    train(model, {}, 8)
    for ours, expected in zip(resumed, ranks.whole(model), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def measured_rank(rank: int, root: str) -> int:
    """Return the bytes of state on this rank, for the demo's model."""
    sys.path.insert(0, root)
    from gpt.model import GPT
    from gpt.options import Options

    options = Options(out="")
    model = GPT(options.context, options.layers, options.width, options.heads)
    optimizer = KrADagrad(model.parameters(), process_group=dist.group.WORLD)
    state = optimizer.state_dict()["state"].values()
    parts = [part for tensors in state for t in tensors.values() for part in getattr(t, "tensors", [])]
    return sum(part.nbytes for part in parts)


@slow
def test_state_is_divided_among_ranks(tmp_path: Path) -> None:
    examples = str(Path(__file__).resolve().parent.parent / "examples")
    alone = None
    for world in (1, 2, 4):
        (tmp_path / str(world)).mkdir()
        shares = ranks.launch(world, measured_rank, tmp_path / str(world), examples)
        alone = alone or shares[0]
        assert sum(shares) == alone
        assert max(shares) <= 1.1 * alone / world


def saved_rank(
    rank: int, mode: str, options: dict[str, Any], folder: str, steps: tuple[int, int]
) -> list[Tensor]:
    """Resume from the folder's checkpoint, if ``steps[0]`` is not 0, take steps, and save another."""
    model = ranks.make_model()
    options = ranks.OPTIONS | ranks.shard(model, mode) | options
    optimizer = KrADagrad(model.parameters(), **options)
    first, last = steps
    if first > 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoint.load(state, checkpoint_id=f"{folder}/{first}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for step in range(first, last):
        ranks.backward(model, step)
        optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoint.save(state, checkpoint_id=f"{folder}/{last}")
    return ranks.whole(model)


@pytest.mark.parametrize(
    ("world", "mode", "other_world", "other_mode", "options"),
    slow_after(
        1,
        [
            (2, "fsdp", 2, "fsdp", {}),
            (4, "fsdp", 2, "fsdp", {"packed": True, "root_dtype": torch.bfloat16}),
            (2, "ddp", 4, "hsdp", {}),
            (2, "tp", 1, "ddp", {}),
        ],
    ),
)
def test_a_checkpoint_loads_on_other_ranks(
    world: int, mode: str, other_world: int, other_mode: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Resumed runs equal unbroken ones: to the bit on the same number of ranks, else to rounding."""

    def launch(number: int, world: int, mode: str, steps: tuple[int, int]) -> list[Tensor]:
        folder = tmp_path / str(number)
        folder.mkdir()
        return ranks.launch(world, saved_rank, folder, mode, options, str(tmp_path), steps)[0]

    launch(0, world, mode, (0, 4))
    resumed = launch(1, other_world, other_mode, (4, 8))
    model = ranks.make_model()
    train(model, options, 8)
    unbroken = ranks.whole(model)
    if (world, mode) == (other_world, other_mode):
        unbroken = launch(2, world, mode, (0, 8))
        assert all(torch.equal(*pair) for pair in zip(resumed, unbroken, strict=True))
    for ours, expected in zip(resumed, unbroken, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
