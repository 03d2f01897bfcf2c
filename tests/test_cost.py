"""Estimates of state and traffic, against the state and the traffic of optimizers and ranks."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kradagrad_ext import KrADagrad, estimate_cost, param_groups
from kradagrad_ext.backends.scalars import COLUMNS
from kradagrad_ext.cost import traffic
from kradagrad_ext.cost.parameters import read_parameters
from kradagrad_ext.distributed import collectives, sharded_params
from kradagrad_ext.distributed.partition import assign_pieces

KINDS = {"factor": "factors", "root": "roots", "exp_avg": "moments", "exp_avg_sq": "moments"}


def bytes_by_kind(states: Iterable[dict[str, Any]]) -> Counter[str]:
    """Return the bytes of an optimizer's state by kind; of tensors in pieces, those of this rank."""
    sizes: Counter[str] = Counter()
    for state in states:
        for key, tensor in state.items():
            stem = key.rsplit("_", 2)[0] if key[-1].isdigit() else key
            for part in getattr(tensor, "tensors", [tensor]):
                sizes[KINDS.get(stem, "rest")] += part.numel() * part.element_size()
    return sizes


def estimated_bytes(state: Any) -> Counter[str]:
    return Counter({kind: getattr(state, kind) for kind in ("factors", "roots", "moments", "rest")})


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    layers = [nn.Conv2d(3, 20, 5), nn.Flatten(), nn.Linear(20 * 4 * 4, 37, bias=False), nn.Linear(37, 5)]
    return nn.Sequential(*layers).to(dtype)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"packed": True, "root_dtype": torch.bfloat16, "factor_dtype": torch.bfloat16},
    {"packed": True, "factor_update": "products"},
    {"graft": "sgd", "precondition_1d": True, "merge_dims": False},
    {"graft": "rms", "momentum_on": "update"},
    {"graft": "whitened", "coupling": "kl"},
    {"max_factor_dim": 64, "packed": True, "graft": "adagrad"},
    {"precondition": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_is_that_of_a_trained_optimizer(options: dict[str, Any], dtype: torch.dtype) -> None:
    model = make_model(dtype)
    optimizer_options = {name: value for name, value in options.items() if name != "precondition"}
    groups = [{"params": model.parameters(), "precondition": options.get("precondition", True)}]
    optimizer = KrADagrad(groups, block_size=16, **optimizer_options)
    model(torch.randn(2, 3, 8, 8, dtype=dtype)).float().square().mean().backward()
    optimizer.step()
    estimate = estimate_cost(model, block_size=16, device="cpu", **options)
    measured = bytes_by_kind(optimizer.state.values())
    assert estimated_bytes(estimate.most_state) == measured
    assert estimate.most_state.total == measured.total()
    assert estimate.parameters == sum(p.numel() for p in model.parameters())


def test_parameter_groups_have_their_own_options() -> None:
    """Groups with experts, a fused matrix, another block size, an embedding without blocks, and names."""
    experts, fused, other, embedding = (
        nn.Parameter(torch.randn(shape)) for shape in ((3, 24, 40), (96, 32), (70, 30), (100, 32))
    )
    groups = [
        {"params": [("experts", experts)], "batch_dims": 1},
        {"params": [("fused", fused)], "split": 3},
        {"params": [("other", other)], "block_size": 8, "root_dtype": torch.bfloat16, "lr": 1.0},
        {"params": [("embedding", embedding)], "precondition": False},
    ]
    optimizer = KrADagrad([dict(group) for group in groups], block_size=16)
    for p in (experts, fused, other, embedding):
        p.grad = torch.randn_like(p)
    optimizer.step()
    estimate = estimate_cost(groups, block_size=16)
    assert estimated_bytes(estimate.most_state) == bytes_by_kind(optimizer.state.values())
    shapes = [{**group, "params": [tuple(p.shape) for _, p in group["params"]]} for group in groups]
    assert estimate_cost(shapes, block_size=16) == estimate


def test_a_module_on_the_meta_device() -> None:
    """Only shapes are read, from any kind of input; frozen parameters are left out."""
    with torch.device("meta"):
        meta = make_model(torch.bfloat16)
    estimate = estimate_cost(meta, world_size=2)
    assert estimate == estimate_cost(make_model(torch.bfloat16), world_size=2)
    assert estimate == estimate_cost(list(meta.named_parameters()), world_size=2)
    assert estimate == estimate_cost(
        [tuple(p.shape) for p in meta.parameters()], world_size=2, dtype=torch.bfloat16
    )
    assert estimate_cost(param_groups(meta, show=None)).parameters == estimate.parameters
    meta[2].requires_grad_(requires_grad=False)
    assert estimate_cost(meta).parameters == estimate.parameters - meta[2].weight.numel()


SIZES: list[dict[str, Any]] = [
    {"params": [(96, 64), (50, 48), (3, 16), (64, 128)]},
    {"params": [(97, 16)], "precondition": False},
]
"""Groups that give uneven and empty shards; rows of a multiple of 16 bytes, so that no padding is needed."""
CHUNK_BYTES = 1 << 14
SHARED: dict[str, Any] = {"block_size": 16, "max_factor_dim": 100}


class Matrices(nn.Module):
    """A module with the shapes of `SIZES` as parameters."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [shape for group in SIZES for shape in group["params"]]
        self.matrices = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self) -> Tensor:
        return torch.stack([matrix.square().mean() for matrix in self.matrices]).sum()


def measured_rank(rank: int) -> dict[str, tuple[Counter[str], Counter[str]]]:
    """Return, by mode, the bytes of this rank's state, and those that it sends, receives and copies."""
    from torch.distributed.fsdp import fully_shard

    sharded_params.CHUNK_BYTES = CHUNK_BYTES
    carried: Counter[str] = Counter()
    count_bytes(rank, carried)
    measured = {}
    for mode in ("ddp", "fsdp"):
        torch.manual_seed(0)
        model = Matrices()
        if mode == "fsdp":
            fully_shard(model)
        *blocked, plain = model.parameters()
        groups = [{"params": blocked}, {"params": [plain], "precondition": False}]
        options = SHARED | ({"process_group": dist.group.WORLD} if mode == "ddp" else {})
        optimizer = KrADagrad(groups, **options)
        model().backward()
        carried.clear()
        optimizer.step()
        measured[mode] = bytes_by_kind(optimizer.state.values()), carried.copy()
    return measured


def count_bytes(rank: int, carried: Counter[str]) -> None:
    """Patch the collectives that carry gradients and parameters, and copies, to count their bytes."""
    all_to_all, all_gather, copy = dist.all_to_all_single, collectives.all_gather, torch._foreach_copy_

    def counted_all_to_all(
        out: Tensor, source: Tensor, expected: list[int], sizes: list[int], **rest: Any
    ) -> Any:
        carried["sent"] += sum(sizes) - sizes[rank]
        carried["received"] += sum(expected) - expected[rank]
        return all_to_all(out, source, expected, sizes, **rest)

    def counted_all_gather(out: Tensor, source: Tensor, **rest: Any) -> Any:
        carried["sent"] += source.numel() * (dist.get_world_size() - 1)
        carried["received"] += out.numel() - source.numel()
        return all_gather(out, source, **rest)

    def counted_copy(targets: list[Tensor], sources: list[Tensor]) -> None:
        carried["copied"] += sum(target.nbytes for target in targets)
        copy(targets, sources)

    dist.all_to_all_single, collectives.all_gather = counted_all_to_all, counted_all_gather
    torch._foreach_copy_ = counted_copy


@pytest.mark.parametrize("world", [2, 4])
def test_state_and_traffic_of_every_rank(world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimated state and bytes sent, received and copied are exact on each rank, with several chunks."""
    monkeypatch.setattr(traffic, "CHUNK_BYTES", CHUNK_BYTES)
    measured = ranks.launch(world, measured_rank, tmp_path)
    parameters = read_parameters(SIZES, torch.float32, SHARED)
    dealt = assign_pieces([p.shape for p in parameters], [p.config for p in parameters], world)
    for mode in ("ddp", "fsdp"):
        replicated = mode == "ddp"
        estimate = estimate_cost(SIZES, world_size=world, replicated=replicated, **SHARED)
        exchanged = traffic.traffic_of(parameters, dealt, replicated)
        for rank, of_rank, each in zip(estimate.ranks, measured, exchanged, strict=True):
            state, carried = of_rank[mode]
            assert estimated_bytes(rank.state) == state
            assert (rank.sent, rank.received) == (carried["sent"], carried["received"])
            assert each.copies(replicated).bytes == 2 * carried["copied"]  # read and written
            assert min(carried.values()) > 0


@pytest.mark.parametrize("world", [3, 16])
def test_ranks_divide_state_and_work(world: int) -> None:
    """Only the parameters' scalars, and the copies that an exchange needs, are on all ranks."""
    shapes = [(256, 192)] * 6 + [(64,)] * 3
    alone = estimate_cost(shapes, block_size=32)
    for replicated in (False, True):
        shared = estimate_cost(shapes, block_size=32, world_size=world, replicated=replicated)
        scalars = len(COLUMNS) * 4 * len(shapes)
        total = sum(rank.state.total for rank in shared.ranks)
        assert total == alone.most_state.total + (world - 1) * scalars
        assert shared.most_state.total <= 1.2 * shared.mean_state.total
        for measure in ("kernels", "roots"):
            flops = [getattr(rank, measure).flops for rank in shared.ranks]
            assert sum(flops) == pytest.approx(getattr(alone.ranks[0], measure).flops)
            assert max(flops) <= 1.2 * sum(flops) / world
        sent, received = (sum(getattr(rank, way) for rank in shared.ranks) for way in ("sent", "received"))
        assert sent == received
    assert (alone.ranks[0].sent, alone.ranks[0].received) == (0, 0)


def test_the_package_imports_no_cost_module_before_it_is_asked_for_one() -> None:
    code = """
import sys, kradagrad_ext
assert not [name for name in sys.modules if name.startswith("kradagrad_ext.cost")]
assert kradagrad_ext.estimate_cost.__module__ == "kradagrad_ext.cost"
assert kradagrad_ext.cost.time_model.predict
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ([(4, 4)], {"world_size": 0}, "`world_size` must be an integer >= 1, got 0"),
        ([(4, 4)], {"tokens": 1.5}, "`tokens` must be an integer >= 1, got 1.5"),
        ([(4, 4)], {"device": "tpu"}, "`device` must be cuda or cpu, got 'tpu'"),
        ([(4, 4)], {"replicated": 1}, "`replicated` must be a bool, got 1"),
        ([(4, 4)], {"dtype": torch.float64}, "`dtype` must be of torch.float32, torch.bfloat16"),
        ([(4, 4)], {"block": 3}, "options must be of betas, .*, got block"),
        ([(4, 4)], {"block_size": 0}, "`block_size` must be an integer >= 1, got 0"),
        ([(4, 4)], {"capturable": True, "world_size": 2}, "`capturable` must be False"),
        ([(4, 4)], {"split": 3}, "`split` must add up to dim 0"),
        ([(0, 4)], {}, "`model` must have parameters with elements, got 1 without"),
        (nn.Linear(2, 2).double(), {}, "parameter 0 of parameter group 0 must be of torch.float32"),
        ((4, 4), {}, "`model` must be a module, parameters, parameter groups or shapes, got 4"),
        (nn.Linear(2, 2).weight, {}, "`model` must be a module, .*, got Parameter"),
        (3, {}, "`model` must be a module, .*, got 3"),
        ([{"parameters": [(4, 4)]}], {}, "`params` of a group must be parameters or shapes, got None"),
        ([{"params": 3}], {}, "`params` of a group must be parameters or shapes, got 3"),
    ],
)
def test_an_impossible_estimate_is_refused(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"KrADagrad: {message}"):
        estimate_cost(model, **options)


def test_a_parameter_given_twice_is_refused_as_by_the_optimizer() -> None:
    weight = nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="more than one parameter group"):
        estimate_cost([{"params": [weight]}, {"params": [weight]}])
