"""What training with the optimizer costs, told before training: memory, work, traffic and time.

Everything follows from shapes and options. Bytes of state and of traffic are those of the optimizer; work on
blocks is the least that its formulas take (`blocks`); times are predictions from it and from the peaks of a
GPU (`gpus`), without the microseconds that a launch takes by itself, what launches move between one another
and what ranks send.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from kradagrad_ext.config import Config, default_block_size
from kradagrad_ext.distributed.pieces import Piece, deal
from kradagrad_ext.plan import ParameterPlan, plan_parameter

from .estimate import Estimate, Load, RankEstimate
from .gpus import TOKENS
from .memory import StateBytes, scalar_bytes, state_bytes
from .parameters import Given, Parameter, read_parameters
from .steps import Part, kernel_costs, root_costs, split_parts
from .traffic import Traffic, traffic_of

__all__ = ["Estimate", "Load", "RankEstimate", "StateBytes", "cost"]


def cost(
    model: Given,
    *,
    world_size: int = 1,
    replicated: bool = False,
    dtype: torch.dtype = torch.float32,
    tokens: int = TOKENS,
    device: str = "cuda",
    **options: Any,  # noqa: ANN401
) -> Estimate:
    """What `KrADagrad` would keep, do and send on every rank; ``print`` shows it as a table.

    Args:
        model: a module, of which frozen parameters are left out; parameters, named parameters or parameter
            groups, as for the optimizer; or shapes in place of parameters. Nothing but shapes and dtypes is
            read: the module may lie on the meta device.
        world_size: ranks that share out state and work.
        replicated: parameters and gradients lie on all ranks (`DistributedDataParallel`); else in shards of
            rows (`fully_shard`).
        dtype: float32 or bfloat16, of parameters that are given as shapes; those of a module have their own.
        tokens: of a training step, over all ranks.
        device: ``cuda`` or ``cpu``, which decides on `block_size`, and on triangles for packed factors.
        options: of the optimizer, and ``precondition``.

    Raises:
        ValueError, TypeError: as `KrADagrad`, for a parameter of float64, and for arguments out of range.
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
    dealt = deal([p.shape for p in parameters], [p.config for p in parameters], world_size)
    whole = [plan_parameter(p.shape, p.config) for p in parameters]
    scalars = scalar_bytes(_parts(parameters, enumerate(whole)))
    place = torch.device(device)
    exchanged = traffic_of(parameters, dealt, replicated)
    ranks = (
        _of_rank(parameters, pieces, scalars, own, replicated, place)
        for pieces, own in zip(dealt, exchanged, strict=True)
    )
    count = sum(torch.Size(p.shape).numel() for p in parameters)
    return Estimate(count, tokens, replicated, tuple(ranks))


def _parts(parameters: Sequence[Parameter], plans: Iterable[tuple[int, ParameterPlan]]) -> list[Part]:
    """Plans, each of the parameter of an index, by parameter group and dtype."""
    found: dict[torch.dtype, list[tuple[ParameterPlan, Config]]] = defaultdict(list)
    configs = {p.position: p.config for p in parameters}
    for index, plan in plans:
        found[parameters[index].dtype].append((plan, configs[parameters[index].position]))
    return [part for dtype, members in found.items() for part in split_parts(members, dtype)]


def _of_rank(
    parameters: Sequence[Parameter],
    pieces: Sequence[Piece],
    scalars: StateBytes,
    traffic: Traffic,
    replicated: bool,
    device: torch.device,
) -> RankEstimate:
    parts = _parts(parameters, ((piece.parameter, piece.plan) for piece in pieces))
    kernels = [*kernel_costs(parts), traffic.copies(replicated)]
    state = sum((state_bytes(part, device) for part in parts), scalars)
    return RankEstimate(state, Load.of(kernels), Load.of(root_costs(parts)), traffic.sent, traffic.received)
