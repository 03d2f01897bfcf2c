"""Loads of global memory that a CTA waits for, from the order of its machine code.

A load is hidden if enough products run between the load and the first use of its data, in the order of the
code. Copies to shared memory (LDGSTS) are issued ahead by design and count as hidden.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import ptx_executor

from .issue_slots import Runs, Weighed
from .sass import Instruction

HIDING_PRODUCTS = 100
"""Products of one scheduler that hide a load: at least 4 cycles each on sm_90, together near its latency."""

REGISTER = re.compile(r"\bR(\d+)\b(\.64)?")
WIDTHS = {"64": 2, "WIDE": 2, "128": 4}
STORES = {"STS", "STG"}


@dataclass(frozen=True)
class Waits:
    """Waits of one CTA for its loads.

    Attributes:
        trips: consecutive loads of matrices.  lookups: consecutive loads of a few sectors, such as tables.
        share: share of the loaded bytes that the CTA waits for.
    """

    trips: float
    lookups: float
    share: float


def _width(instruction: Instruction) -> int:
    """Return the number of registers of an access."""
    return next((WIDTHS[part] for part in instruction.opcode.split(".") if part in WIDTHS), 1)


def filled(load: Instruction) -> set[int]:
    """Return the registers that a load, or an instruction with a result of one or two, fills."""
    first = REGISTER.search(load.operands)
    return {int(first[1]) + i for i in range(_width(load))} if first else set()


def read(instruction: Instruction) -> set[int]:
    """Return the registers that an instruction reads; of a wide operand that is not an address, the first."""
    operands = instruction.operands.split(",")
    stores = instruction.kind in STORES
    names = REGISTER.findall(",".join(operands if stores else operands[1:]))
    width = _width(instruction) if stores else 1
    return {int(number) + i for number, pair in names for i in range(max(width, 2 if pair else 1))}


FEW_SECTORS = 4
"""Sectors of a request in which all lanes read one value, or a few lanes one each; a matrix's has eight."""


def lookups(launches: Sequence[ptx_executor.Counters]) -> set[int]:
    """Return the lines of PTX whose loads request a few sectors."""
    sectors: Counter[int] = Counter()
    for counters in launches:
        for line in counters.by_line:
            sectors[line["ptx_line"]] += line["sectors"] - FEW_SECTORS * line["n"]
    return {line for line, beyond in sectors.items() if beyond <= 0}


def waits(weighed: Weighed, small: set[int], ctas: int, warps: int) -> Waits:
    """Return what CTAs wait for.

    Args:
        small: the lines that `lookups` returns.
        warps: number of a CTA's warps on a scheduler.
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
            # Code that one scheduler alone runs is one warp's, for which the others wait.
            one_warp = sum(number > 0 for number in runs) == 1
            block_trips = depths[place] * most / (ctas * (1 if one_warp else warps))
            trips[is_small, block] = max(trips[is_small, block], block_trips)
    numbers = [
        sum(number for (is_small, _), number in trips.items() if is_small == kind) for kind in (False, True)
    ]
    return Waits(*numbers, waited / asked if asked else 0.0)


def chained(instructions: Sequence[Instruction]) -> list[int]:
    """Return, for every instruction, how many loads of its block, itself included, depend on each other."""
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
