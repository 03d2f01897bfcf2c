"""Costs of the launches of an optimizer step without new roots, by the CUDA kernels or by Triton's."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from bench.roofline.cuda_costs import Blocks, CallOptions, step_costs
from kradagrad_ext.blocking import ShapeGroup
from kradagrad_ext.cost.time_model.gpus import Gpu
from kradagrad_ext.cost.work import Cost, GroupShapes, block_costs, kernel_costs


def launch_costs(parts: Sequence[GroupShapes], triton_on: Gpu | None = None) -> list[Cost]:
    """Return the costs of a step without new roots, by the CUDA kernels or by Triton's for a GPU."""
    return kernel_costs(parts, functools.partial(costs_on_blocks, triton_on=triton_on))


def costs_on_blocks(part: GroupShapes, triton_on: Gpu | None) -> list[Cost]:
    """Return the launches of the fused kernels, and the least work of the other blocks."""
    config = part.options
    rule = config.update_rule(torch.device("cuda"), damped_updates=1.0)
    fused = [group for group in part.groups if is_fused(group)]
    rest = [group for group in part.groups if not is_fused(group)]
    sizes = [(group.blocks, *group.block_shape) for group in fused]
    if fused and triton_on is not None:
        from bench.roofline.triton_costs import architecture_by_name, costs_of_blocks
        from kradagrad_ext.triton_kernels.plan.groups import StepRule

        launched = StepRule(rule.refine, rule.coupled, True, rule.precision, architecture_by_name(triton_on))
        costs = costs_of_blocks(sizes, launched, part.dtype)
    elif fused:
        root = 4 if config.root_dtype is None else config.root_dtype.itemsize
        call = CallOptions(rule, grad=part.dtype.itemsize, root=root)
        costs = step_costs([Blocks(*size) for size in sizes], call)
    else:
        costs = []
    return [*costs, *block_costs(rest, config, part.dtype)]


def is_fused(group: ShapeGroup) -> bool:
    """Return True if one kernel updates both sides."""
    return len(group.block_shape) == 2 and all(group.factored)
