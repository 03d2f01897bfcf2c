"""The launches of ``kron_step_`` by the Triton backend as costs, counted from the package's own plan.

Plans are made from tensors without memory, on torch's meta device. Flops are those of whole tiles, terms and
padding included; bytes are each operand of a launch once, as in `kradagrad_ext.cost.launches`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from kradagrad_ext.config import Config
from kradagrad_ext.cost.gpus import Cost
from kradagrad_ext.cost.products import FLOAT, KINDS, Rule, terms
from kradagrad_ext.plan import Shape, group_blocks, plan_parameter
from kradagrad_ext.state import GroupState
from kradagrad_ext.triton_kernels import entry, groups, kron_step, launch

PRODUCTS = ("factor_product", "grouped_product", "refinement", "downdate")


def triton_kron_costs(shapes: Sequence[Shape], config: Config, rule: Rule, architecture: str) -> list[Cost]:
    """The launches of one call with all blocks of some parameters.

    Args:
        shapes: of the parameters.  architecture: of the tuning table.
    """
    own = meta_groups(shapes, config, rule)
    told = groups.Rule(rule.scale, rule.refine, rule.precision, architecture)
    plan = kron_step.plan_groups(own, told, config.damping > 0)
    return [cost_of(each, plan.words[each.first : each.first + each.count], rule) for each in plan.launches]


def meta_groups(shapes: Sequence[Shape], config: Config, rule: Rule) -> list[groups.Group]:
    """The groups' tensors, without memory."""
    dtype = torch.float32 if rule.grad == FLOAT else torch.bfloat16
    plans = [plan_parameter(shape, config) for shape in shapes]
    like = torch.empty(0, device="meta")
    states = [GroupState.new(group, plans, config, like) for group in group_blocks(plans)]
    grads = [torch.empty(shape, device="meta", dtype=dtype) for shape in shapes]
    floats = [torch.empty(shape, device="meta") for shape in shapes]
    found, first = [], 0
    for state in states:
        sides = list(zip(state.factors, state.statistics, strict=True))
        views = state.views(grads), state.views(floats)
        group = groups.Group(state.group.blocks, first, views[0], *sides, views[1], views[1], *state.roots)
        found.append(group)
        first += state.group.blocks
    return found


def cost_of(own: launch.Launch, words: list[list[int]], rule: Rule) -> Cost:
    """Of one launch."""
    name, step = f"triton {own.kernel.__name__}", str(own.constants.get("STEP", ""))
    if own.kernel.__name__ not in (*PRODUCTS, "kron_step_resident"):
        return Cost(name, "books", 1, 16.0 * own.programs)
    count = product if own.kernel.__name__ in PRODUCTS else resident
    each = [count(own, of, rule) for of in counted(own, words)]
    size, flops, least = (sum(column) for column in zip(*each, strict=True))
    return Cost(name, step, 1, size, {f"triton {KINDS[rule.precision]}": flops}, least)


def counted(own: launch.Launch, words: list[list[int]]) -> list[tuple[list[int], int]]:
    """Entries and their programs."""
    starts = [each[entry.FIRST_PROGRAM.value] for each in words] + [own.programs]
    return [(each, end - start) for each, start, end in zip(words, starts[:-1], starts[1:], strict=True)]


def element(own: launch.Launch, name: str) -> int:
    return 2 if str(own.constants.get(name)) == "bf16" else FLOAT


def product(own: launch.Launch, of: tuple[list[int], int], rule: Rule) -> tuple[float, float, float]:
    """Bytes, executed and least flops of an entry of a grouped product."""
    words, programs = of
    rows, cols, depth = (words[field.value] for field in (entry.ROWS, entry.COLS, entry.DEPTH))
    blocks = programs // words[entry.TILES.value]
    constants = own.config.constants
    symmetric = own.constants.get("SYMMETRIC", own.kernel.__name__ in ("refinement", "downdate"))
    sizes = element(own, "A_TYPE"), element(own, "B_TYPE")
    size = sizes[0] * rows * depth + sizes[1] * depth * cols
    size += FLOAT * rows * cols * (own.constants.get("OUT_ORDER") != "none")
    size += FLOAT * rows * cols // 2 * (own.constants.get("STEP", "product") != "product")
    size += FLOAT * rows * cols // 2 * (own.kernel.__name__ == "downdate")
    tile = constants["BM"] * constants.get("BN", constants["BM"])
    split = terms(rule.precision, sizes[0] == 2, sizes[1] == 2)
    flops = 2.0 * programs * tile * math.ceil(depth / constants["BK"]) * constants["BK"] * split
    return blocks * size, flops, blocks * 2.0 * rows * cols * depth / (2 if symmetric else 1)


def resident(own: launch.Launch, of: tuple[list[int], int], rule: Rule) -> tuple[float, float, float]:
    """The same of the whole step."""
    words, blocks = of
    m, n = words[entry.ROWS.value], words[entry.COLS.value]
    wide, high = own.constants["N"], own.constants["M"]
    elements = m * n
    size = elements * (rule.grad + rule.direction + FLOAT) + (m * m + n * n) * (2 * FLOAT + rule.root)
    flops = sum(side_flops(d, k, rule) for d, k in ((high, wide), (wide, high)))
    least = sum(side_flops(d, k, rule) for d, k in ((m, n), (n, m))) + 2.0 * elements * (m + n)
    flops += 2.0 * high * wide * (high + wide)
    return blocks * size, blocks * flops * terms(rule.precision), blocks * least


def side_flops(d: int, k: int, rule: Rule) -> float:
    """Y, B, the iterates, Y C and the downdate."""
    flops = 4.0 * d * d * k + 2.0 * d * k * k * rule.needs_gram
    if rule.refine:
        cubes = 1 if rule.refine == 1 else 2 + 3 * (rule.refine - 1) - 1
        flops += 2.0 * k**3 * cubes + 2.0 * d * k * k
    return flops


def architecture_by_name(gpu: Any) -> str:  # noqa: ANN401
    """Of the tuning table, by a GPU's name."""
    return {"A100": "sm_80", "B200": "sm_100"}.get(gpu.name, "sm_90")
