"""State and traffic that are told beforehand, against what optimizers and ranks hold and send."""

from __future__ import annotations

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
from kradagrad_ext.distributed import collectives, sharded_params

KINDS = {"factor": "factors", "root": "roots", "exp_avg": "moments", "exp_avg_sq": "moments"}


def held_bytes(states: Iterable[dict[str, Any]]) -> Counter[str]:
    """Bytes of what an optimizer holds, by kind; of tensors in pieces, those that are here."""
    held: Counter[str] = Counter()
    for state in states:
        for key, tensor in state.items():
            stem = key.rsplit("_", 2)[0] if key[-1].isdigit() else key
            for part in getattr(tensor, "parts", [tensor]):
                held[KINDS.get(stem, "rest")] += part.numel() * part.element_size()
    return held


def told_bytes(state: Any) -> Counter[str]:
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
def test_state_is_what_a_trained_optimizer_holds(options: dict[str, Any], dtype: torch.dtype) -> None:
    model = make_model(dtype)
    own = {name: value for name, value in options.items() if name != "precondition"}
    groups = [{"params": model.parameters(), "precondition": options.get("precondition", True)}]
    optimizer = KrADagrad(groups, block_size=16, **own)
    model(torch.randn(2, 3, 8, 8, dtype=dtype)).float().square().mean().backward()
    optimizer.step()
    told = estimate_cost(model, block_size=16, device="cpu", **options)
    held = held_bytes(optimizer.state.values())
    assert told_bytes(told.most_state) == held
    assert told.most_state.total == held.total()
    assert told.parameters == sum(p.numel() for p in model.parameters())


def test_parameter_groups_have_their_own_options() -> None:
    """Experts, a fused matrix, another block size, an embedding without blocks; named parameters, too."""
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
    told = estimate_cost(groups, block_size=16)
    assert told_bytes(told.most_state) == held_bytes(optimizer.state.values())
    shapes = [{**group, "params": [tuple(p.shape) for _, p in group["params"]]} for group in groups]
    assert estimate_cost(shapes, block_size=16) == told


def test_a_module_on_the_meta_device() -> None:
    """Shapes alone are read, whatever gives them; frozen parameters are left out."""
    with torch.device("meta"):
        meta = make_model(torch.bfloat16)
    told = estimate_cost(meta, world_size=2)
    assert told == estimate_cost(make_model(torch.bfloat16), world_size=2)
    assert told == estimate_cost(list(meta.named_parameters()), world_size=2)
    assert told == estimate_cost(
        [tuple(p.shape) for p in meta.parameters()], world_size=2, dtype=torch.bfloat16
    )
    assert estimate_cost(param_groups(meta, show=None)).parameters == told.parameters
    meta[2].requires_grad_(requires_grad=False)
    assert estimate_cost(meta).parameters == told.parameters - meta[2].weight.numel()


SIZES: list[dict[str, Any]] = [
    {"params": [(96, 64), (50, 48), (3, 16), (64, 128)]},
    {"params": [(97, 16)], "precondition": False},
]
"""Uneven shards and empty ones; rows of whole 16 bytes, which nothing is filled up to."""
CHUNK_BYTES = 1 << 14
SHARED: dict[str, Any] = {"block_size": 16, "max_factor_dim": 100}


class Matrices(nn.Module):
    """`SIZES` as parameters."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [shape for group in SIZES for shape in group["params"]]
        self.matrices = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self) -> Tensor:
        return torch.stack([own.square().mean() for own in self.matrices]).sum()


def measured_rank(rank: int) -> dict[str, tuple[Counter[str], int, int]]:
    """In both modes, bytes that this rank holds, and that it sends to others and receives on a step."""
    from torch.distributed.fsdp import fully_shard

    sharded_params.CHUNK_BYTES = CHUNK_BYTES
    carried: Counter[str] = Counter()
    count_bytes(rank, carried)
    measured = {}
    for mode in ("ddp", "fsdp"):
        carried.clear()
        torch.manual_seed(0)
        model = Matrices()
        if mode == "fsdp":
            fully_shard(model)
        *blocked, plain = model.parameters()
        groups = [{"params": blocked}, {"params": [plain], "precondition": False}]
        own = {"process_group": dist.group.WORLD} if mode == "ddp" else {}
        optimizer = KrADagrad(groups, **SHARED, **own)
        model().backward()
        optimizer.step()
        measured[mode] = held_bytes(optimizer.state.values()), carried["sent"], carried["received"]
    return measured


def count_bytes(rank: int, carried: Counter[str]) -> None:
    """From here on, of the collectives that carry gradients and parameters."""
    all_to_all, all_gather = dist.all_to_all_single, collectives.all_gather

    def counted_all_to_all(
        out: Tensor, own: Tensor, expected: list[int], sizes: list[int], **rest: Any
    ) -> Any:
        carried["sent"] += sum(sizes) - sizes[rank]
        carried["received"] += sum(expected) - expected[rank]
        return all_to_all(out, own, expected, sizes, **rest)

    def counted_all_gather(out: Tensor, own: Tensor, **rest: Any) -> Any:
        carried["sent"] += own.numel() * (dist.get_world_size() - 1)
        carried["received"] += out.numel() - own.numel()
        return all_gather(out, own, **rest)

    dist.all_to_all_single, collectives.all_gather = counted_all_to_all, counted_all_gather


@pytest.mark.parametrize("world", [2, 4])
def test_every_rank_holds_and_moves_what_is_told(
    world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State, and bytes to and from other ranks, rank by rank, in several chunks."""
    monkeypatch.setattr(traffic, "CHUNK_BYTES", CHUNK_BYTES)
    measured = ranks.launch(world, measured_rank, tmp_path)
    for mode in ("ddp", "fsdp"):
        told = estimate_cost(SIZES, world_size=world, replicated=mode == "ddp", **SHARED)
        for rank, of_rank in zip(told.ranks, measured, strict=True):
            held, sent, received = of_rank[mode]
            assert told_bytes(rank.state) == held
            assert (rank.sent, rank.received) == (sent, received)
            assert min(sent, received) > 0


@pytest.mark.parametrize("world", [3, 16])
def test_ranks_share_out_what_one_has(world: int) -> None:
    """Scalars of parameters are on all ranks, and so are the copies that an exchange takes; else nothing."""
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


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([(4, 4)], {"world_size": 0}, "`world_size` must be an integer >= 1, got 0"),
        ([(4, 4)], {"tokens": 1.5}, "`tokens` must be an integer >= 1, got 1.5"),
        ([(4, 4)], {"device": "tpu"}, "`device` must be cuda or cpu, got 'tpu'"),
        ([(4, 4)], {"replicated": 1}, "`replicated` must be a bool, got 1"),
        ([(4, 4)], {"dtype": torch.float64}, "`dtype` must be of torch.float32, torch.bfloat16"),
        ([(4, 4)], {"block": 3}, "options must be of betas, .*, got block"),
        ([(4, 4)], {"block_size": 0}, "`block_size` must be an integer >= 1, got 0"),
        ([(4, 4)], {"capturable": True, "world_size": 2}, "`capturable` must be False"),
        ([(4, 4)], {"split": 3}, "`split` must make up dim 0"),
        ([(0, 4)], {}, "`model` must have parameters with elements, got 1 without"),
        (nn.Linear(2, 2).double(), {}, "parameter 0 of parameter group 0 must be of torch.float32"),
        ((4, 4), {}, "`model` must be a module, parameters, parameter groups or shapes, got 4"),
        (nn.Linear(2, 2).weight, {}, "`model` must be a module, .*, got Parameter"),
        (3, {}, "`model` must be a module, .*, got 3"),
        ([{"parameters": [(4, 4)]}], {}, "`params` of a group must be parameters or shapes, got None"),
        ([{"params": 3}], {}, "`params` of a group must be parameters or shapes, got 3"),
    ],
)
def test_what_cannot_be_told_is_refused(given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"KrADagrad: {message}"):
        estimate_cost(given, **options)


def test_a_parameter_given_twice_is_refused_as_by_the_optimizer() -> None:
    weight = nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="more than one parameter group"):
        estimate_cost([{"params": [weight]}, {"params": [weight]}])
