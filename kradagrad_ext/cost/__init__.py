"""Costs of training with the optimizer, estimated before training: memory, work, traffic and time.

All estimates follow from shapes and options. Bytes of state and of traffic are those of the optimizer. Work
on blocks is the least that its formulas require (`blocks`). Times are predictions from this work and from the
peaks of a GPU (`gpus`). They leave out the microseconds of overhead of each launch, the bytes that launches
pass to each other through memory, and the bytes that ranks send.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from kradagrad_ext.blocking import Blocking, blocking_of
from kradagrad_ext.config import Config, default_block_size
from kradagrad_ext.distributed.partition import Piece, assign_pieces

from .estimate import Estimate, RankEstimate, RankLoad
from .gpus import TOKENS
from .memory import StateBytes, scalar_bytes, state_bytes
from .parameters import Given, ParamShape, read_parameters
from .steps import GroupShapes, kernel_costs, root_costs, split_parts
from .traffic import Traffic, traffic_of

__all__ = ["Estimate", "RankEstimate", "RankLoad", "StateBytes", "estimate_cost"]


def estimate_cost(
    model: Given,
    *,
    world_size: int = 1,
    replicated: bool = False,
    dtype: torch.dtype = torch.float32,
    tokens: int = TOKENS,
    device: str = "cuda",
    **options: Any,  # noqa: ANN401
) -> Estimate:
    """Estimate the state, work and traffic of `KrADagrad` on every rank; ``print`` shows a table.

    Args:
        model: a module, without its frozen parameters; parameters, named parameters or parameter groups, as
            for the optimizer; or shapes in place of parameters. Only shapes and dtypes are read: the module
            may be on the meta device.
        world_size: number of ranks among which state and work are distributed.
        replicated: True if all ranks hold all parameters and gradients (`DistributedDataParallel`), False if
            they hold shards of rows (`fully_shard`).
        dtype: float32 or bfloat16, the dtype of parameters that are given as shapes.
        tokens: number of tokens of a training step, over all ranks.
        device: ``cuda`` or ``cpu``, which determines `block_size`, and if packed factors are triangles.
        options: those of the optimizer, and ``precondition``.

    Raises:
        ValueError, TypeError: as in `KrADagrad`, for a float64 parameter, and for arguments out of range.
    """
    for name, value in (("world_size", world_size), ("tokens", tokens)):
        if type(value) is not int or value < 1:
            raise ValueError(f"KrADagrad: `{name}` must be an integer >= 1, got {value!r}")
    if device not in ("cuda", "cpu"):
        raise ValueError(f"KrADagrad: `device` must be cuda or cpu, got {device!r}")
    if not isinstance(replicated, bool):
        raise ValueError(f"KrADagrad: `replicated` must be a bool, got {replicated!r}")
    options.setdefault("block_size", default_block_size(torch.device(device)))
    parameters = read_parameters(model, dtype, options)
    if world_size > 1 and any(p.config.capturable for p in parameters):
        raise ValueError("KrADagrad: `capturable` must be False where ranks share out the work, got True")
    dealt = assign_pieces([p.shape for p in parameters], [p.config for p in parameters], world_size)
    whole = [blocking_of(p.shape, p.config) for p in parameters]
    scalars = scalar_bytes(_parts(parameters, enumerate(whole)))
    place = torch.device(device)
    exchanged = traffic_of(parameters, dealt, replicated)
    ranks = (
        _of_rank(parameters, pieces, scalars, traffic, replicated, place)
        for pieces, traffic in zip(dealt, exchanged, strict=True)
    )
    count = sum(torch.Size(p.shape).numel() for p in parameters)
    return Estimate(count, tokens, replicated, tuple(ranks))


def _parts(parameters: Sequence[ParamShape], blockings: Iterable[tuple[int, Blocking]]) -> list[GroupShapes]:
    """Sort blockings, each with its parameter's index, by parameter group and dtype."""
    by_dtype: dict[torch.dtype, list[tuple[Blocking, Config]]] = defaultdict(list)
    configs = {p.position: p.config for p in parameters}
    for index, blocking in blockings:
        by_dtype[parameters[index].dtype].append((blocking, configs[parameters[index].position]))
    return [part for dtype, members in by_dtype.items() for part in split_parts(members, dtype)]


def _of_rank(
    parameters: Sequence[ParamShape],
    pieces: Sequence[Piece],
    scalars: StateBytes,
    traffic: Traffic,
    replicated: bool,
    device: torch.device,
) -> RankEstimate:
    parts = _parts(parameters, ((piece.parameter, piece.blocking) for piece in pieces))
    kernels = [*kernel_costs(parts), traffic.copies(replicated)]
    state = sum((state_bytes(part, device) for part in parts), scalars)
    return RankEstimate(
        state, RankLoad.of(kernels), RankLoad.of(root_costs(parts)), traffic.sent, traffic.received
    )
