"""What a rank launches on a step, on average over many, from the plans of what it has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from kradagrad_ext.config import Config
from kradagrad_ext.plan import Group, ParameterPlan, Shape, group_blocks, plan_parameter

from .blocks import block_costs
from .blocks import root_costs as root_costs_of
from .elementwise import before_blocks, parameter_step_costs
from .gpus import Cost


@dataclass(frozen=True)
class Part:
    """Parameters or pieces of one parameter group, dtype and graft.

    Attributes:
        dtype: of parameters and gradients.
    """

    plans: tuple[ParameterPlan, ...]
    config: Config
    dtype: torch.dtype

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        return group_blocks(self.plans)

    @property
    def options(self) -> Config:
        """As they are for these parameters."""
        return self.config.for_blocks(bool(self.groups))

    @property
    def shapes(self) -> tuple[list[Shape], list[Shape]]:
        """Of those with blocks, and of the rest."""
        blocked = [plan.shape for plan in self.plans if plan.regions]
        return blocked, [plan.shape for plan in self.plans if not plan.regions]


def parts_of(
    shapes: Sequence[Shape],
    config: Config,
    dtype: torch.dtype = torch.float32,
    plain_shapes: Sequence[Shape] = (),
) -> list[Part]:
    """Of two parameter groups on one rank; `plain_shapes`: of parameters with ``precondition=False``."""
    plain = replace(config, precondition=False)
    given = ((shapes, config), (plain_shapes, plain))
    plans = [(plan_parameter(shape, options), options) for each, options in given for shape in each]
    return split_parts(plans, dtype)


def split_parts(plans: Iterable[tuple[ParameterPlan, Config]], dtype: torch.dtype) -> list[Part]:
    """Plans of one dtype by their options, and by what gives updates their lengths."""
    found: dict[tuple[int, str], tuple[list[ParameterPlan], Config]] = {}
    for plan, config in plans:
        key = id(config), config.for_blocks(bool(plan.regions)).graft
        found.setdefault(key, ([], config))[0].append(plan)
    return [Part(tuple(members), config, dtype) for members, config in found.values()]


def least_costs_on_blocks(part: Part) -> list[Cost]:
    """The least work of a part's blocks, whatever kernels do it."""
    return list(block_costs(part.groups, part.options, part.dtype))


def kernel_costs(
    parts: Sequence[Part], costs_on_blocks: Callable[[Part], list[Cost]] = least_costs_on_blocks
) -> list[Cost]:
    """A step without new roots; one of `factor_every` updates the factors.

    Args:
        costs_on_blocks: of a part's blocks by the kernels in question.
    """
    costs = [cost for part in parts for cost in before_blocks(*part.shapes, part.options, part.dtype)]
    costs += [cost for part in parts for cost in costs_on_blocks(part)]
    return costs + [
        cost for part in parts for cost in parameter_step_costs(*part.shapes, part.options, part.dtype)
    ]


def root_costs(parts: Sequence[Part]) -> list[Cost]:
    """New roots, of which one of `root_every` steps makes all."""
    return [cost for part in parts for cost in root_costs_of(part.groups, part.config)]
