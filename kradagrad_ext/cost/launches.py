"""The launches of an optimizer step, kernel by kernel, from the shapes of its parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import torch

from kradagrad_ext.config import Config
from kradagrad_ext.grafting import has_second_moment
from kradagrad_ext.plan import Group, Shape

from .gpus import Cost
from .products import FLOAT, KINDS, TRACES, Grouped, Resident, Rule, Work

RESIDENT_SIDE = 128  # kResidentSide
SMALL_SIDE = 256  # kSmallSide: below, and for tf32x3, CTA tiles of 64
SPAN = 4096  # kSpan
SCRATCH_BYTES = 256 << 20  # kScratchBytes


def rule_of(config: Config, dtype: torch.dtype) -> Rule:
    """What the products are told, and the sizes of what they read; `dtype`: of parameters and gradients."""
    direction = FLOAT if config.momentum_on == "gradient" else dtype.itemsize
    root = FLOAT if config.root_dtype is None else config.root_dtype.itemsize
    scale = config.op_scale(torch.device("cuda"))
    return Rule(scale, config.refine, config.precision, dtype.itemsize, direction, root)


def elements(shapes: Sequence[Shape]) -> int:
    """Of all shapes together."""
    return sum(math.prod(shape) for shape in shapes)


def before_blocks(
    matrices: Sequence[Shape], rest: Sequence[Shape], config: Config, dtype: torch.dtype
) -> Iterator[Cost]:
    """The guard against non-finite gradients, moments, and norms of the grafting updates.

    Args:
        matrices, rest: shapes of parameters with and without blocks.
        dtype: of parameters and gradients.
    """
    shapes = [*matrices, *rest]
    if not shapes:
        return
    count, size = elements(shapes), dtype.itemsize
    spans = sum(math.ceil(math.prod(shape) / SPAN) for shape in shapes)
    yield Cost("torch: foreach_norm", "guard", 1, size * count)
    averaged = config.momentum_on == "gradient"
    each = size + 2 * FLOAT * has_second_moment(config)
    each += averaged * (2 * FLOAT + FLOAT * config.nesterov)
    each += size * (averaged and not config.decoupled_weight_decay and config.weight_decay > 0)
    yield Cost("accumulate", "moments", 1, each * count + FLOAT * spans)
    yield Cost("sum_spans", "graft norms", 1, FLOAT * (spans + len(shapes)))


def parameter_step_costs(
    matrices: Sequence[Shape], rest: Sequence[Shape], config: Config, dtype: torch.dtype
) -> Iterator[Cost]:
    """Graft, weight decay, momentum of the update, and the write; as `before_blocks`."""
    if not matrices and not rest:
        return
    size, averaged = dtype.itemsize, config.momentum_on == "gradient"
    each = 2 * size + 2 * FLOAT * (not averaged)
    direction = (FLOAT if averaged else size) + FLOAT * has_second_moment(config)
    total = (
        each * (elements(matrices) + elements(rest)) + FLOAT * elements(matrices) + direction * elements(rest)
    )
    yield Cost("parameter_step", "write", 1, total)


def kron_step_costs(
    groups: Sequence[Group],
    rule: Rule,
    scratch_bytes: int = SCRATCH_BYTES,
    update: bool = True,
    precondition: bool = True,
) -> list[Cost]:
    """The launches of one call of ``kron_step_`` with all groups.

    Args:
        scratch_bytes: of a slice of the grouped products.
        update, precondition: what the call does.

    Raises:
        ValueError: blocks of an order other than 2, or with a side that has no factor, or exact updates: no
            kernel serves them.
    """
    if rule.scale == "exact":
        raise ValueError("no kernel serves exact updates of factors, which are torch's Cholesky")
    for group in groups:
        if len(group.block_shape) != 2 or not all(group.factored):
            raise ValueError(f"no kernel serves blocks {group.block_shape} with factors {group.factored}")
    resident = [group for group in groups if max(group.block_shape) <= RESIDENT_SIDE]
    grouped = [group for group in groups if max(group.block_shape) > RESIDENT_SIDE]
    costs = [resident_cost(resident, rule, update, precondition)] if resident else []
    return costs + (grouped_costs(grouped, rule, scratch_bytes, update, precondition) if grouped else [])


def resident_cost(groups: list[Group], rule: Rule, update: bool, precondition: bool) -> Cost:
    """The one launch that has all blocks of up to 128 a side."""
    side = 64 if max(max(group.block_shape) for group in groups) <= 64 else RESIDENT_SIDE
    size = flops = least = 0.0
    for group in groups:
        work = resident_work(*group.block_shape, side, rule, update, precondition)
        size += group.blocks * work.bytes
        flops += group.blocks * work.flops
        least += group.blocks * work.least_flops
    kernel = f"kron_step_resident_{side}_{rule.precision}"
    # One CTA of side 128 fills an SM; of the smaller ones two or three share it.
    return Cost(kernel, "all", 1, size, {KINDS[rule.precision]: flops}, least, overlaps=side == 64)


@functools.lru_cache(1024)  # as the ranks' blocks have few shapes
def resident_work(m: int, n: int, side: int, rule: Rule, update: bool, precondition: bool) -> Work:
    """Of one block."""
    return Resident(m, n, side, rule).step(update, precondition)


@functools.lru_cache(1024)
def grouped_work(
    m: int, n: int, tile: int, rule: Rule, update: bool, precondition: bool
) -> tuple[dict[tuple[int, int, str], Work], int]:
    """Work by launch, and floats of scratch memory."""
    own = Grouped(m, n, tile, rule)
    return own.step(update, precondition), own.scratch_floats(update, precondition)


def slices(blocks: list[int], floats: list[int], scratch_bytes: int) -> Iterator[list[int]]:
    """Which groups every slice holds blocks of: as many blocks as fit, one at least."""
    used = 0
    held: list[int] = []
    for index, (count, each) in enumerate(zip(blocks, floats, strict=True)):
        size = max(FLOAT * each, 1)
        while count > 0:
            if used > 0 and used + size > scratch_bytes:
                yield held
                used, held = 0, []
            fit = min(count, max((scratch_bytes - used) // size, 1))
            held.append(index)
            used += fit * size
            count -= fit
    yield held


def grouped_costs(
    groups: list[Group], rule: Rule, scratch_bytes: int, update: bool, precondition: bool
) -> list[Cost]:
    """`start_factors`, the grouped products step by step, and `finish_groups`."""
    large = any(max(group.block_shape) >= SMALL_SIDE for group in groups)
    tile = 128 if large and rule.precision != "tf32x3" else 64
    planned = [grouped_work(*group.block_shape, tile, rule, update, precondition) for group in groups]
    steps, floats = [work for work, _ in planned], [scratch for _, scratch in planned]
    counts = [group.blocks for group in groups]
    launches: dict[str, int] = {}
    for held in slices(counts, floats, scratch_bytes):
        for _, _, step in {key for index in held for key in steps[index]}:
            launches[step] = launches.get(step, 0) + 1
    costs = [
        product_cost(step, launches[step], steps, counts, f"grouped_product_{tile}_{rule.precision}", rule)
        for step in dict.fromkeys(key[2] for each in steps for key in each)
    ]
    start = [start_cost(groups)] if update else []
    return [*start, *costs, finish_cost(groups, tile, rule, update, precondition)]


def product_cost(
    step: str,
    launches: int,
    steps: list[dict[tuple[int, int, str], Work]],
    counts: list[int],
    kernel: str,
    rule: Rule,
) -> Cost:
    """Of the launches of a name, over all slices, chunks and groups."""
    works = [
        (count, work) for count, each in zip(counts, steps, strict=True) for key, work in each.items()
        if key[2] == step
    ]  # fmt: skip
    size = sum(count * work.bytes for count, work in works)
    flops = sum(count * work.flops for count, work in works)
    least = sum(count * work.least_flops for count, work in works)
    if step == TRACES:
        return Cost("traces_of_squares", "bound", launches, size)
    return Cost(kernel, step, launches, size, {KINDS[rule.precision]: flops}, least)


def start_cost(groups: list[Group]) -> Cost:
    """After the first gradient, of each side: two statistics and whether it is active in, one number out."""
    return Cost("start_factors", "books", 1, 2 * 13 * sum(group.blocks for group in groups))


def finish_cost(groups: list[Group], tile: int, rule: Rule, update: bool, precondition: bool) -> Cost:
    """Partial sums in; statistics in and out, whether it failed and took part, the norm out."""
    size = 0
    for group in groups:
        m, n = group.block_shape
        tiles = math.ceil(m / tile) * math.ceil(n / tile)
        chunks = len(rule.chunks(m, n)) + len(rule.chunks(n, m))
        books = update * (FLOAT * (tiles + chunks) + 40) + precondition * FLOAT * (tiles + 1) + 1
        size += group.blocks * books
    return Cost("finish_groups", "books", 1, size)
