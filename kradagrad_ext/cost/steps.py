"""What a rank launches on a step, on average over many, from the plans of what it has."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from kradagrad_ext.config import Config
from kradagrad_ext.plan import Group, ParameterPlan, Shape, group_blocks, plan_parameter

from .gpus import Cost
from .launches import SCRATCH_BYTES, before_blocks, kron_step_costs, parameter_step_costs, rule_of
from .products import FLOAT, Rule
from .torch_products import block_costs, damping_cost, root_cost


@dataclass(frozen=True)
class Part:
    """Parameters or pieces of one parameter group and dtype.

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
    return [
        Part(tuple(plan_parameter(shape, own) for shape in each), own, dtype) for each, own in given if each
    ]


def kernel_costs(parts: Sequence[Part], scratch_bytes: int = SCRATCH_BYTES) -> list[Cost]:
    """A step without new roots; one of `factor_every` updates the factors.

    Args:
        scratch_bytes: of a slice of the grouped products.
    """
    costs = [cost for own in parts for cost in before_blocks(*own.shapes, own.config, own.dtype)]
    costs += [cost for own in parts for cost in _on_blocks(own, scratch_bytes)]
    return costs + [
        cost for own in parts for cost in parameter_step_costs(*own.shapes, own.config, own.dtype)
    ]


def root_costs(parts: Sequence[Part]) -> list[Cost]:
    """New roots and the damping before them; one of `root_every` steps pays for both."""
    return [make(own.groups, own.config) for own in parts if own.groups for make in (root_cost, damping_cost)]


def _on_blocks(part: Part, scratch_bytes: int) -> Iterator[Cost]:
    config, rule = part.config, rule_of(part.config, part.dtype)
    fused = [group for group in part.groups if _is_fused(group, rule)]
    rest = [group for group in part.groups if not _is_fused(group, rule)]
    share = 1 / config.factor_every
    if fused:
        yield from _scaled(kron_step_costs(fused, rule, scratch_bytes), share)
    if fused and share < 1:
        yield from _scaled(kron_step_costs(fused, rule, scratch_bytes, update=False), 1 - share)
    yield from block_costs(rest, rule, share)
    if config.packed and part.groups:
        yield _packing_cost(part.groups, rule, share)


def _is_fused(group: Group, rule: Rule) -> bool:
    """Whether one kernel serves both sides."""
    return len(group.block_shape) == 2 and all(group.factored) and rule.scale != "exact"


def _scaled(costs: Sequence[Cost], share: float) -> Iterator[Cost]:
    """Of launches that some steps have."""
    for cost in costs:
        yield replace(
            cost,
            launches=share * cost.launches,
            bytes=share * cost.bytes,
            flops={kind: share * flops for kind, flops in cost.flops.items()},
            least_flops=share * cost.least_flops,
        )


def _packing_cost(groups: Sequence[Group], rule: Rule, update_share: float) -> Cost:
    """Triangles read and whole factors and roots written; factors that are updated, the other way round."""
    elements = sum(group.factor_elements for group in groups)
    triangles = sum(group.blocks * d * (d + 1) // 2 for group in groups for d in group.factor_dims)
    each = elements + triangles
    size = (FLOAT + rule.root) * each + update_share * FLOAT * each
    return Cost("torch: index", "triangles", (2 + update_share) * len(groups), size)
