"""Costs of training with the optimizer, estimated before training: memory, work, traffic and time.

All estimates follow from shapes and options. Bytes of state and of traffic are those of the optimizer. Work
on blocks is the least that its formulas require (`work`). Times are predictions from this work and from the
peaks of a GPU (`time_model`). They leave out the microseconds of overhead of each launch, the bytes that
launches pass to each other through memory, and the bytes that ranks send.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from kradagrad_ext.config import default_block_size
from kradagrad_ext.distributed.partition import assign_pieces

from .estimate import Estimate, RankEstimate, RankLoad
from .parameters import Given, ParamShape, read_parameters
from .state import StateBytes, scalar_bytes, state_bytes
from .time_model import TOKENS
from .traffic import traffic_of
from .work import kernel_costs, root_costs, split_parts

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
    place = torch.device(device)
    options.setdefault("block_size", default_block_size(place))
    parameters = read_parameters(model, dtype, options)
    if world_size > 1 and any(p.config.capturable for p in parameters):
        raise ValueError("KrADagrad: `capturable` must be False where ranks share out the work, got True")
    count = sum(torch.Size(p.shape).numel() for p in parameters)
    ranks = tuple(_ranks(parameters, world_size, replicated, place))
    return Estimate(count, tokens, replicated, ranks)


def _ranks(
    parameters: list[ParamShape], world_size: int, replicated: bool, device: torch.device
) -> Iterator[RankEstimate]:
    assigned = assign_pieces([p.shape for p in parameters], [p.config for p in parameters], world_size)
    scalars = scalar_bytes(parameters, device)
    for pieces, traffic in zip(assigned, traffic_of(parameters, assigned, replicated), strict=True):
        parts = split_parts((parameters[piece.parameter], piece.blocking) for piece in pieces)
        kernels = [*kernel_costs(parts), traffic.copies(replicated)]
        roots = [cost for part in parts for cost in root_costs(part.groups, part.options)]
        state = state_bytes(parameters, pieces, scalars, device)
        yield RankEstimate(state, RankLoad.of(kernels), RankLoad.of(roots), traffic.sent, traffic.received)
