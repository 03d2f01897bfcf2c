"""Which loads of global memory a CTA waits for, from the order of its machine code.

A load is hidden where the code that runs, in the order in which it lies, has enough products between the load
and the first use of its data. Copies to shared memory (LDGSTS) are asked for ahead by design and are hidden.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import ptx

from .issue_slots import Runs, Weighed
from .sass import Instruction

HIDING_PRODUCTS = 100
"""Of one scheduler, between a load and its use: at least 4 cycles each on sm_90, near a load's latency."""

REGISTER = re.compile(r"\bR(\d+)\b(\.64)?")
WIDTHS = {"64": 2, "128": 4}
STORES = {"STS", "STG"}


@dataclass(frozen=True)
class Waits:
    """Of one CTA for what it loads.

    Attributes:
        trips: loads of matrices, one after another.  lookups: of what all lanes read alike, such as tables.
        share: of the bytes that are loaded, those that are waited for.
    """

    trips: float
    lookups: float
    share: float


def _width(instruction: Instruction) -> int:
    """Registers of an access."""
    return next((WIDTHS[part] for part in instruction.opcode.split(".") if part in WIDTHS), 1)


def filled(load: Instruction) -> set[int]:
    """Registers that a load fills."""
    first = REGISTER.search(load.operands)
    return {int(first[1]) + i for i in range(_width(load))} if first else set()


def read(instruction: Instruction) -> set[int]:
    """Registers that an instruction reads; of a wide operand of what does not access memory, the first."""
    operands = instruction.operands.split(",")
    stores = instruction.kind in STORES
    found = REGISTER.findall(",".join(operands if stores else operands[1:]))
    width = _width(instruction) if stores else 1
    return {int(number) + i for number, pair in found for i in range(max(width, 2 if pair else 1))}


def lookups(launches: Sequence[ptx.Counters]) -> set[int]:
    """Lines of PTX whose loads have all lanes read one sector."""
    sectors: Counter[int] = Counter()
    for counters in launches:
        for line in counters.by_line:
            sectors[line["ptx_line"]] += line["sectors"] - line["n"]
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
        if runs[0]
        for i in block.instructions
    ]
    alone: dict[tuple[bool, int], float] = {}
    asked = waited = 0.0
    for place, (load, runs, block) in enumerate(listed):
        if load.kind not in {"LDG", "LDGSTS"}:
            continue
        is_small = load.line in small
        size = 0.0 if is_small else runs[0] * _width(load)
        asked += size
        if load.kind == "LDG" and _products_before_use(listed, place) < HIDING_PRODUCTS * ctas:
            waited += size
            # What one scheduler alone runs is one warp's, for which the others wait.
            alone[is_small, block] = runs[0] / (ctas * (warps if any(runs[1:]) else 1))
    trips = [sum(number for (own, _), number in alone.items() if own == kind) for kind in (False, True)]
    return Waits(*trips, waited / asked if asked else 0.0)


def _products_before_use(listed: Sequence[tuple[Instruction, Runs, int]], place: int) -> float:
    registers, products = filled(listed[place][0]), 0.0
    for instruction, runs, _ in listed[place + 1 :]:
        if registers & read(instruction):
            break
        products += runs[0] * (instruction.kind == "HMMA")
    return products
