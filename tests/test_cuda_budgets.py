"""Budgets of the CUDA kernels that need no GPU: what ptxas makes of them, and what the PTX executor counts.

bench/gpu_evidence.py lists the same numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from marks import slow

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))

from cuda import binaries
from cuda.binaries import ARCHITECTURES, KB, PRECISIONS, Binary, Shape
from gpu_counts import (
    ARITHMETIC,
    ELEMENTWISE,
    GROUPED,
    OTHER_PRECISIONS,
    RESIDENT,
    SQUARE_ROOT,
    SQUARE_ROOT_ARITHMETIC,
    Case,
    count,
)

PRODUCTS = (
    "kron_step_resident",
    "grouped_product",
    "square_root_product",
    "resident_update",
    "resident_precondition",
)

# The CTAs that must fit an SM; the kernels' launch bounds ask for the same or fewer.
LEAST_CTAS = {f"kron_step_resident_128_{precision}": 1 for precision in PRECISIONS}
LEAST_CTAS |= {f"kron_step_resident_64_{precision}": 2 for precision in PRECISIONS}
LEAST_CTAS |= {"kron_step_resident_64_bf16x3": 3}
LEAST_CTAS |= {f"grouped_product_128_{precision}": 1 for precision in PRECISIONS if precision != "tf32x3"}
LEAST_CTAS |= {f"grouped_product_64_{precision}": 2 for precision in PRECISIONS}
LEAST_CTAS |= {"grouped_product_64_fp32": 3}
LEAST_CTAS |= {f"square_root_product_128_{precision}": 1 for precision in PRECISIONS if precision != "tf32x3"}
LEAST_CTAS |= {f"square_root_product_64_{precision}": 2 for precision in PRECISIONS}
LEAST_CTAS |= {"square_root_product_64_fp32": 3}
LEAST_CTAS |= {
    f"resident_{half}_{side}_{precision}": ctas
    for half in ("update", "precondition")
    for side, ctas in ((64, 3), (128, 1))
    for precision in PRECISIONS
}
LEAST_CTAS |= dict.fromkeys(("gradient_norms", "start_sides", "finish_sides"), 3)
LEAST_CTAS |= {"finish_norms": 32}
LEAST_CTAS |= dict.fromkeys(("start_factors", "finish_groups", "traces_of_squares"), 4)
LEAST_CTAS |= dict.fromkeys(("accumulate", "sum_spans", "parameter_step"), 4)

CTA_SHARED = {"sm_80": 163 * KB, "sm_90": 227 * KB, "sm_100": 227 * KB}
MOST_REGISTERS = 255


def faults(kernel: str, made: Binary, shape: Shape, architecture: str) -> list[str]:
    """What breaks a budget. ptxas can report no spill and still keep a stack: hence the count of its code."""
    code, found = made.instructions, []
    if made.stack or made.local or code["LDL"] or code["STL"]:
        found.append(f"stack {made.stack}, local {made.local}, {code['LDL']} LDL, {code['STL']} STL")
    if made.registers > MOST_REGISTERS:
        found.append(f"{made.registers} registers")
    shared, ctas = binaries.shared_of_cta(made, shape), binaries.ctas_of_sm(made, shape, architecture)
    if shared > CTA_SHARED[architecture]:
        found.append(f"{shared} bytes of shared memory")
    if ctas < LEAST_CTAS[kernel]:
        found.append(f"{ctas} CTAs an SM, not {LEAST_CTAS[kernel]}")
    if kernel.startswith(PRODUCTS):
        if (code["HMMA"] == 0) != kernel.endswith("fp32"):
            found.append(f"{code['HMMA']} HMMA")
        if not code["LDGSTS"]:
            found.append("no LDGSTS")
    return found


@slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_is_within_its_budgets(architecture: str) -> None:
    made, shapes = binaries.all_binaries(architecture), binaries.launch_shapes()
    assert made.keys() == LEAST_CTAS.keys() == shapes.keys()
    broken = {name: faults(name, made[name], shapes[name], architecture) for name in LEAST_CTAS}
    assert {name: found for name, found in broken.items() if found} == {}


@pytest.mark.parametrize(
    ("kernel", "registers", "stack", "local", "static", "code", "dynamic", "found"),
    [
        ("kron_step_resident_64_fp32", 255, 0, 0, 0, {"LDGSTS": 1}, 0, []),
        ("kron_step_resident_64_fp32", 255, 8, 0, 0, {"LDGSTS": 1}, 0, ["stack 8, local 0, 0 LDL, 0 STL"]),
        ("grouped_product_128_bf16x3", 64, 0, 0, 0, {"HMMA": 1, "LDGSTS": 1, "LDL": 2, "STL": 1}, 0,
         ["stack 0, local 0, 2 LDL, 1 STL"]),
        ("grouped_product_128_bf16x3", 64, 0, 0, 0, {}, 0, ["0 HMMA", "no LDGSTS"]),
        ("grouped_product_128_fp32", 64, 0, 0, 0, {"HMMA": 1, "LDGSTS": 1}, 0, ["1 HMMA"]),
        ("accumulate", 255, 0, 0, 0, {}, 0, ["2 CTAs an SM, not 4"]),
        ("accumulate", 32, 0, 0, 0, {}, 164 * KB, ["167936 bytes of shared memory", "0 CTAs an SM, not 4"]),
    ],
)  # fmt: skip
def test_faults_are_found(
    kernel: str, registers: int, stack: int, local: int, static: int, code: dict[str, int], dynamic: int,
    found: list[str],
) -> None:  # fmt: skip
    made = Binary(registers, stack, local, static, binaries.Counter(code))
    assert faults(kernel, made, Shape(128, dynamic), "sm_80") == found


def test_instructions_are_found_in_a_listing() -> None:
    """An empty count must not pass for a kernel without spills."""
    listing = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;   /* 0x00000a0000017a02 */
                                                            /* 0x000fc40000000f00 */
        /*10010*/             @!P0 STL.64 [R1], R2 ;        /* 0x0000000201007387 */
        /*10020*/             @UP1 LDL R2, [R1+0x4] ;       /* 0x0000000201007387 */
    """
    assert binaries.count_instructions(listing) == {"LDC": 1, "STL": 1, "LDL": 1}


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "architecture", "ctas"),
    [
        (255, 256, 0, "sm_80", 1),
        (128, 256, 0, "sm_80", 2),
        (129, 256, 0, "sm_80", 1),
        (168, 128, 0, "sm_90", 3),
        (64, 256, 0, "sm_90", 4),
        (32, 256, 81 * KB, "sm_80", 2),
        (32, 256, 82 * KB, "sm_80", 1),
        (32, 256, 75 * KB, "sm_90", 3),
        (16, 256, 0, "sm_100", 8),
        (16, 32, 0, "sm_100", 32),
    ],
)
def test_occupancy_by_hand(registers: int, threads: int, shared: int, architecture: str, ctas: int) -> None:
    made = binaries.Binary(registers, 0, 0, 0, binaries.Counter())
    assert binaries.ctas_of_sm(made, binaries.Shape(threads, shared), architecture) == ctas


@slow
@pytest.mark.parametrize("case", SQUARE_ROOT, ids=str)
def test_bytes_of_the_square_root_form(case: Case) -> None:
    """Of what the roofline takes each launch to move, and the launch's table."""
    counted = count(case)
    assert 0.95 * counted.floor <= counted.footprint <= 1.10 * counted.floor
    if case.side <= 128:  # each side's CTA reads the gradient
        assert counted.requested <= 1.25 * counted.floor


@slow
@pytest.mark.parametrize("case", [*SQUARE_ROOT, *SQUARE_ROOT_ARITHMETIC], ids=str)
def test_shared_memory_of_the_square_root_form(case: Case) -> None:
    counted = count(case)
    assert counted.conflicts_of_loads == 0
    assert counted.wavefronts <= 1.05 * counted.ideal_wavefronts
    if case.precision != "fp32":
        assert 2 * counted.mma >= counted.shared_loads > 0


@slow
@pytest.mark.parametrize("case", [*RESIDENT, *GROUPED, *ELEMENTWISE], ids=str)
def test_bytes(case: Case) -> None:
    """Of the floor and the launch's table. Resident kernels read the lower halves of symmetric matrices."""
    counted = count(case)
    floor = counted.lower_floor if case in RESIDENT else counted.floor
    assert counted.footprint <= 1.10 * floor


@slow
@pytest.mark.parametrize("case", [*RESIDENT, *ELEMENTWISE], ids=str)
def test_requested_sectors(case: Case) -> None:
    """What a cold L2 would pass on: the gradient's second read included, and accesses that are not wide."""
    counted = count(case)
    assert counted.requested <= 1.25 * counted.floor


@slow
@pytest.mark.parametrize("case", [case for case in ARITHMETIC if case.precision != "fp32"], ids=str)
def test_mma_per_shared_load(case: Case) -> None:
    counted = count(case)
    assert 2 * counted.mma >= counted.shared_loads > 0


@slow
@pytest.mark.parametrize("case", [*RESIDENT, *GROUPED, *ARITHMETIC, *OTHER_PRECISIONS], ids=str)
def test_shared_memory_wavefronts(case: Case) -> None:
    counted = count(case)
    assert counted.conflicts_of_loads == 0
    assert counted.wavefronts <= 1.05 * counted.ideal_wavefronts


@slow
def test_floors_by_hand() -> None:
    """Per block of side 64 in float32: nine matrices, of which four are symmetric and read."""
    counted = count(Case("kron_step", torch.float32, 64))
    assert counted.floor == 2 * 4 * 9 * 64**2
    assert counted.lower_floor == 2 * 4 * (5 * 64**2 + 4 * 64 * 65 // 2)
    assert count(Case("kron_step", torch.float32, 256)).floor == 2 * 4 * 15 * 256**2
