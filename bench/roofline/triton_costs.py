"""Costs of the launches of ``kron_step_`` by the Triton backend, from its plan.

Bytes: every matrix of a launch once, even if the launch reads it twice, as B of B B^T. Flops: those of whole
tiles, including terms and padding. Least flops: those of the formulas, with half of a symmetric product.
Plans are made from tensors without memory, on torch's meta device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from bench.roofline.cuda_costs import FLOAT, KINDS, terms
from kradagrad_ext.cost.time_model.gpus import Gpu
from kradagrad_ext.cost.work import Cost
from kradagrad_ext.triton_kernels import entry
from kradagrad_ext.triton_kernels.plan import groups, launch, square_root_step

SYMMETRIC = ("gram", "inverse_root")
PRODUCTS = (*SYMMETRIC, "scaled_product")


def costs_of_blocks(
    shapes: Sequence[tuple[int, int, int]],
    rule: groups.StepRule,
    dtype: torch.dtype = torch.float32,
    stored: torch.dtype = torch.float32,
) -> list[Cost]:
    """Return the launches of one whole step.

    Args:
        shapes: count, rows and columns of each group's blocks.
        dtype: dtype of gradients and directions.  stored: dtype of factors and roots.
    """
    planned, first = [], 0
    for count, m, n in shapes:
        planned.append(_group(first, (count, m, n), dtype, stored))
        first += count
    plan = square_root_step.plan_groups(planned, rule)
    return [_cost(each, plan.entries[each.first : each.first + each.count], rule) for each in plan.launches]


def _group(
    first: int, shape: tuple[int, int, int], dtype: torch.dtype, stored: torch.dtype
) -> groups.KernelGroup:
    count, m, n = shape

    def tensor(*sizes: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(count, *sizes, dtype=of, device="meta")

    sides = [(tensor(d, d, of=stored), tensor(4)) for d in (m, n)]
    roots = [tensor(d, d, of=stored) for d in (m, n)]
    views = [[tensor(m, n, of=of)] for of in (dtype, dtype, torch.float32)]
    return groups.KernelGroup(count, first, views[0], *sides, *views[1:], *roots)


def _cost(item: launch.Launch, entries: list[list[int]], rule: groups.StepRule) -> Cost:
    name, step = item.kernel.__name__, str(item.constants.get("STEP", item.constants.get("SCALE", "")))
    counted = [_entry_cost(item, fields, blocks, rule) for fields, blocks in _blocks_of(item, entries)]
    size, flops, least = (sum(column) for column in zip(*counted, strict=True))
    kinds = {f"triton {KINDS[rule.precision]}": flops} if flops else {}
    return Cost(f"triton {name}", step, 1, size, kinds, least)


def _blocks_of(item: launch.Launch, entries: list[list[int]]) -> Iterator[tuple[list[int], int]]:
    starts = [fields[entry.FIRST_PROGRAM.value] for fields in entries] + [item.programs]
    for fields, start, end in zip(entries, starts[:-1], starts[1:], strict=True):
        yield fields, (end - start) // fields[entry.TILES.value]


def _entry_cost(
    item: launch.Launch, fields: list[int], blocks: int, rule: groups.StepRule
) -> tuple[float, float, float]:
    """Return bytes, executed flops and least flops of the blocks of one entry."""
    if item.kernel.__name__ in PRODUCTS:
        each = _product(item, fields, rule)
    elif item.kernel.__name__ == "square_root_resident":
        each = _resident(item, fields, rule)
    elif item.kernel.__name__ in ("square_gradients", "finish_sides"):
        m, n = fields[entry.ROWS.value], fields[entry.COLS.value] or fields[entry.ROWS.value]
        moved = _element(item, "A_TYPE") if "A_TYPE" in item.constants else FLOAT + _element(item, "TYPE")
        each = float(moved * m * n), 0.0, 0.0
    else:
        each = 16.0, 0.0, 0.0
    return blocks * each[0], blocks * each[1], blocks * each[2]


def _element(item: launch.Launch, name: str) -> int:
    return 2 if str(item.constants.get(name)) == "bf16" else FLOAT


def _product(item: launch.Launch, fields: list[int], rule: groups.StepRule) -> tuple[float, float, float]:
    """Return bytes and flops of a block of a grouped product."""
    rows, cols, depth = (fields[field.value] for field in (entry.ROWS, entry.COLS, entry.DEPTH))
    sizes = [(rows * depth, "A_TYPE"), (depth * cols, "B_TYPE"), (rows * rows, "F_TYPE"), (rows * cols, "")]
    distinct = {}
    for index, (count, dtype) in enumerate(sizes):
        at = entry.MATRICES.value + index * entry.MATRIX_WIDTH.value
        if any(fields[at : at + entry.MATRIX_WIDTH.value]):
            distinct[fields[at], fields[at + 1]] = count * _element(item, dtype)
    depths = [depth]
    if item.constants.get("DAMPED"):
        depths.append(rows)
    if item.constants.get("STEP") == "only":
        depths = []
    tile = item.config.constants["BM"]
    padded = sum(math.ceil(d / item.config.constants["BK"]) * item.config.constants["BK"] for d in depths)
    split = terms(rule.precision, _element(item, "A_TYPE") == 2, _element(item, "B_TYPE") == 2)
    flops = 2.0 * fields[entry.TILES.value] * tile * tile * padded * split
    half = 2 if item.kernel.__name__ in SYMMETRIC else 1
    return float(sum(distinct.values())), flops, 2.0 * rows * cols * sum(depths) / half


def _resident(item: launch.Launch, fields: list[int], rule: groups.StepRule) -> tuple[float, float, float]:
    """Return bytes and flops of a whole block: G, D and the product, both factors twice, both roots."""
    m, n = fields[entry.ROWS.value], fields[entry.COLS.value]
    views = sum(_element(item, f"{name}_TYPE") for name in ("GRAD", "DIRECTION")) + FLOAT
    sides = ((m, "LEFT"), (n, "RIGHT"))
    squares = sum(
        d * d * (2 * _element(item, f"{name}_TYPE") + _element(item, f"{name}_ROOT_TYPE"))
        for d, name in sides
    )
    padded = item.constants["M"], item.constants["N"]
    flops = terms(rule.precision) * _step_flops(*padded, rule, 1)
    return float(m * n * views + squares), flops, _step_flops(m, n, rule, 2)


def _step_flops(m: int, n: int, rule: groups.StepRule, halves: int) -> float:
    """Return the flops of both sides and the product; `halves` = 2 counts half of a symmetric result."""
    iteration = 3 * (rule.refine - 1)
    flops = 2.0 * m * n * (m + n)
    for d, k in ((m, n), (n, m)):
        flops += 2.0 * d * k * k * rule.coupled + 2.0 * d * d * k + 2.0 * d**3
        flops += (2.0 * d * d * k + 2.0 * d**3 * (iteration + rule.damped)) / halves
    return flops


def architecture_by_name(gpu: Gpu) -> str:
    """Return the tuning table's architecture of a GPU."""
    return {"A100": "sm_80", "B200": "sm_100"}.get(gpu.name, "sm_90")
