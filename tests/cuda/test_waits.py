"""Loads that a CTA waits for, in listings written by hand.

If the time model wrongly takes a load to be hidden, or not hidden, it errs by some 500 cycles of a CTA.
"""

from __future__ import annotations

import ptx_executor
import pytest

from . import sass, waits
from .issue_slots import Weighed

LOAD = ("LDG.E.128", "R8, desc[UR4][R2.64]")
PRODUCT = ("HMMA.16816.F32.BF16", "R40, R20, R24, R40")
USE = ("FADD", "R30, R31, R11")  # of the last of the four registers that are loaded


def instructions(*listed: tuple[str, str]) -> list[sass.Instruction]:
    return [sass.Instruction(opcode, "", operands, line) for line, (opcode, operands) in enumerate(listed, 1)]


def weighed(*blocks: tuple[list[sass.Instruction], tuple[float, ...]]) -> Weighed:
    return Weighed(tuple((sass.Block([], list(code)), runs) for code, runs in blocks))


EVERYWHERE = (2.0, 2.0, 2.0, 2.0)  # one CTA with two warps a scheduler


@pytest.mark.parametrize(("products", "hidden"), [(0, False), (49, False), (50, True)])
def test_products_hide_a_load(products: int, hidden: bool) -> None:
    code = instructions(LOAD, *[PRODUCT] * products, USE)
    result = waits.waits(weighed((code, EVERYWHERE)), set(), ctas=1, warps=2)
    assert result == waits.Waits(0 if hidden else 1, 0, 0 if hidden else 1)


def test_what_never_runs_uses_nothing() -> None:
    """The other branch may use the register for something else."""
    usual = instructions(LOAD), instructions(*[PRODUCT] * 60, USE)
    code = weighed((usual[0], EVERYWHERE), (instructions(USE), (0.0,) * 4), (usual[1], EVERYWHERE))
    assert waits.waits(code, set(), ctas=1, warps=2).trips == 0


def test_lookups_and_loads_of_one_warp() -> None:
    """A table is read from a cache; the other warps wait as long for code that one scheduler alone runs."""
    code = instructions(("LDG.E", "R9, desc[UR4][R2.64]"), ("IADD3", "R1, R9, R9, RZ"), LOAD, USE)
    result = waits.waits(weighed((code, (1.0, 0.0, 0.0, 0.0))), {1}, ctas=1, warps=2)
    assert result == waits.Waits(1, 1, 1)


def test_loads_at_the_same_time_are_one_trip() -> None:
    code = instructions(LOAD, ("LDG.E.64", "R12, desc[UR4][R2.64]"), USE, ("FMUL", "R30, R13, R13"))
    assert waits.waits(weighed((code, EVERYWHERE)), set(), ctas=1, warps=2).trips == 1


def test_loads_one_after_another_are_as_many_trips() -> None:
    """The first load gives the address of the second."""
    code = instructions(
        ("LDG.E.64", "R2, desc[UR4][R6.64]"),
        ("IMAD.WIDE", "R4, R3, 0x30, R10"),
        ("LDG.E", "R9, desc[UR4][R4.64]"),
        ("LDG.E", "R12, desc[UR4][R6.64+0x8]"),
        ("FADD", "R1, R9, R12"),
    )
    assert waits.chained(code) == [1, 1, 2, 1, 2]
    assert waits.waits(weighed((code, EVERYWHERE)), set(), ctas=1, warps=2).trips == 2


def test_asynchronous_copies_are_hidden() -> None:
    code = instructions(("LDGSTS.E.BYPASS.128", "[R8], desc[UR4][R2.64]"), LOAD, USE)
    assert waits.waits(weighed((code, EVERYWHERE)), set(), ctas=1, warps=2) == waits.Waits(1, 0, 0.5)


def test_registers_that_are_read() -> None:
    (store, plain, address) = instructions(
        ("STS.128", "[R4+0x10], R8"), ("FADD", "R8, R9, |R10|"), ("LDG.E", "R8, desc[UR4][R2.64]")
    )
    assert waits.read(store) >= {4, 8, 9, 10, 11}
    assert waits.read(plain) == {9, 10}
    assert waits.read(address) == {2, 3}


def test_lookups_are_requests_of_a_few_sectors() -> None:
    """Three lanes of a warp may each look up a value."""
    lines = [{"ptx_line": 1, "sectors": 12, "n": 4}, {"ptx_line": 2, "sectors": 32, "n": 4}]
    assert waits.lookups([ptx_executor.Counters(by_line=lines)]) == {1}
