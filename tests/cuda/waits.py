"""Which loads of global memory a CTA waits for, from the order of its machine code.

A load is hidden where the code that runs, in the order in which it lies, has enough products between the load
and the first use of its data. Copies to shared memory (LDGSTS) are asked for ahead by design and are hidden.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import ptx

from .issue_slots import Runs, Weighed
from .sass import Instruction

HIDING_PRODUCTS = 100
"""Of one scheduler, between a load and its use: at least 4 cycles each on sm_90, near a load's latency."""

REGISTER = re.compile(r"\bR(\d+)\b(\.64)?")
WIDTHS = {"64": 2, "WIDE": 2, "128": 4}
STORES = {"STS", "STG"}


@dataclass(frozen=True)
class Waits:
    """Of one CTA for what it loads.

    Attributes:
        trips: loads of matrices, one after another.  lookups: of a few sectors, such as tables.
        share: of the bytes that are loaded, those that are waited for.
    """

    trips: float
    lookups: float
    share: float


def _width(instruction: Instruction) -> int:
    """Registers of an access."""
    return next((WIDTHS[part] for part in instruction.opcode.split(".") if part in WIDTHS), 1)


def filled(load: Instruction) -> set[int]:
    """Registers that a load, or what computes with one or two, fills."""
    first = REGISTER.search(load.operands)
    return {int(first[1]) + i for i in range(_width(load))} if first else set()


def read(instruction: Instruction) -> set[int]:
    """Registers that an instruction reads; of a wide operand of what does not access memory, the first."""
    operands = instruction.operands.split(",")
    stores = instruction.kind in STORES
    found = REGISTER.findall(",".join(operands if stores else operands[1:]))
    width = _width(instruction) if stores else 1
    return {int(number) + i for number, pair in found for i in range(max(width, 2 if pair else 1))}


FEW_SECTORS = 4
"""Of a request by all lanes for what they read alike, or a few of them on their own; a matrix's has eight."""


def lookups(launches: Sequence[ptx.Counters]) -> set[int]:
    """Lines of PTX whose loads ask for a few sectors."""
    sectors: Counter[int] = Counter()
    for counters in launches:
        for line in counters.by_line:
            sectors[line["ptx_line"]] += line["sectors"] - FEW_SECTORS * line["n"]
    return {line for line, beyond in sectors.items() if beyond <= 0}


def waits(weighed: Weighed, small: set[int], ctas: int, warps: int) -> Waits:
    """What CTAs wait for.

    Args:
        small: lines of `lookups`.
        warps: of a CTA on a scheduler.
    """
    listed = [
        (i, runs, at)
        for at, (block, runs) in enumerate(weighed.blocks)
        if any(runs)
        for i in block.instructions
    ]
    depths = [depth for block, runs in weighed.blocks if any(runs) for depth in chained(block.instructions)]
    trips: dict[tuple[bool, int], float] = defaultdict(float)
    asked = waited = 0.0
    for place, (load, runs, block) in enumerate(listed):
        if load.kind not in {"LDG", "LDGSTS"}:
            continue
        is_small = load.line in small
        most = max(runs)
        size = 0.0 if is_small else most * _width(load)
        asked += size
        if load.kind == "LDG" and _products_before_use(listed, place) < HIDING_PRODUCTS * ctas:
            waited += size
            # What one scheduler alone runs is one warp's, for which the others wait.
            one_warp = sum(own > 0 for own in runs) == 1
            own_trips = depths[place] * most / (ctas * (1 if one_warp else warps))
            trips[is_small, block] = max(trips[is_small, block], own_trips)
    numbers = [sum(number for (own, _), number in trips.items() if own == kind) for kind in (False, True)]
    return Waits(*numbers, waited / asked if asked else 0.0)


def chained(instructions: Sequence[Instruction]) -> list[int]:
    """Of every instruction, how many loads of the same block, itself included, have to follow each other."""
    behind: dict[int, int] = {}
    result = []
    for instruction in instructions:
        depth = max((behind.get(register, 0) for register in read(instruction)), default=0)
        depth += instruction.kind == "LDG"
        result.append(depth)
        if instruction.kind not in STORES:
            behind |= dict.fromkeys(filled(instruction), depth)
    return result


def _products_before_use(listed: Sequence[tuple[Instruction, Runs, int]], place: int) -> float:
    registers, products = filled(listed[place][0]), 0.0
    for instruction, runs, _ in listed[place + 1 :]:
        if registers & read(instruction):
            break
        products += max(runs) * (instruction.kind == "HMMA")
    return products
