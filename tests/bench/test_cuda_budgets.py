"""Budgets of the CUDA kernels that need no GPU: ptxas's binaries, and the counts of the PTX executor.

bench/gpu/kernels/evidence.py lists the same numbers.
"""

from __future__ import annotations

import inputs
import pytest
from cuda import binaries
from cuda.binaries import ARCHITECTURES, KB, Binary, Shape
from cuda.limits import CTA_SHARED, MOST_REGISTERS
from marks import slow

from bench.gpu.kernels.counts import ARITHMETIC, ELEMENTWISE, STEPS, CountedCall, count

PRODUCTS = ("square_root_product", "resident", "wide")
LEAST_CTAS = {name: kernel.least_ctas for name, kernel in inputs.kernels().items()}


def faults(kernel: str, made: Binary, shape: Shape, architecture: str) -> list[str]:
    """List broken budgets. ptxas can report no spill and still keep a stack: hence the count of its code."""
    code, broken = made.instructions, []
    if made.stack or made.local or code["LDL"] or code["STL"]:
        broken.append(f"stack {made.stack}, local {made.local}, {code['LDL']} LDL, {code['STL']} STL")
    if made.registers > MOST_REGISTERS:
        broken.append(f"{made.registers} registers")
    shared, ctas = binaries.shared_of_cta(made, shape), binaries.ctas_of_sm(made, shape, architecture)
    if shared > CTA_SHARED[architecture]:
        broken.append(f"{shared} bytes of shared memory")
    if ctas < LEAST_CTAS[kernel]:
        broken.append(f"{ctas} CTAs an SM, not {LEAST_CTAS[kernel]}")
    if kernel.startswith(PRODUCTS):
        if (code["HMMA"] == 0) != kernel.endswith("fp32"):
            broken.append(f"{code['HMMA']} HMMA")
        # Resident kernels load through registers, since they split the values that they keep.
        if kernel.startswith("square_root_product") and not code["LDGSTS"]:
            broken.append("no LDGSTS")
    return broken


@slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_is_within_its_budgets(architecture: str) -> None:
    made, shapes = binaries.all_binaries(architecture), binaries.launch_shapes()
    assert made.keys() == LEAST_CTAS.keys() == shapes.keys()
    broken = {name: faults(name, made[name], shapes[name], architecture) for name in LEAST_CTAS}
    assert {name: texts for name, texts in broken.items() if texts} == {}


@slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_moments_run_beside_factors(architecture: str) -> None:
    made, shapes = binaries.all_binaries(architecture), binaries.launch_shapes()
    pair = [(made[name], shapes[name]) for name in ("update_moments", "resident_update_128_bf16x3")]
    assert binaries.fit_together(pair, architecture)


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "fits"),
    [(96, 128, 1, True), (97, 128, 1, False), (96, 160, 1, False), (48, 256, 1, True), (96, 128, 91, False)],
)
def test_kernels_that_fit_together_by_hand(registers: int, threads: int, shared: int, fits: bool) -> None:
    """The first kernel has 8 warps of 208 registers and 136 KB of an SM's 228 KB."""
    first = Binary(208, 0, 0, 0, binaries.Counter()), Shape(256, 136 * KB)
    second = Binary(registers, 0, 0, 0, binaries.Counter()), Shape(threads, shared * KB)
    assert binaries.fit_together([first, second], "sm_90") == fits


@pytest.mark.parametrize(
    ("kernel", "registers", "stack", "local", "static", "code", "dynamic", "expected"),
    [
        ("resident_update_128_fp32", 255, 0, 0, 0, {}, 0, []),
        ("resident_update_128_fp32", 255, 8, 0, 0, {}, 0, ["stack 8, local 0, 0 LDL, 0 STL"]),
        ("square_root_product_128_bf16x3", 64, 0, 0, 0, {"HMMA": 1, "LDGSTS": 1, "LDL": 2, "STL": 1}, 0,
         ["stack 0, local 0, 2 LDL, 1 STL"]),
        ("square_root_product_128_bf16x3", 64, 0, 0, 0, {}, 0, ["0 HMMA", "no LDGSTS"]),
        ("square_root_product_128_fp32", 64, 0, 0, 0, {"HMMA": 1, "LDGSTS": 1}, 0, ["1 HMMA"]),
        ("update_moments", 255, 0, 0, 0, {}, 0, ["2 CTAs an SM, not 4"]),
        ("update_moments", 32, 0, 0, 0, {}, 164 * KB,
         ["167936 bytes of shared memory", "0 CTAs an SM, not 4"]),
    ],
)  # fmt: skip
def test_faults_are_found(
    kernel: str, registers: int, stack: int, local: int, static: int, code: dict[str, int], dynamic: int,
    expected: list[str],
) -> None:  # fmt: skip
    made = Binary(registers, stack, local, static, binaries.Counter(code))
    assert faults(kernel, made, Shape(128, dynamic), "sm_80") == expected


def test_instructions_are_found_in_a_listing() -> None:
    """An unparsed listing must not count as a kernel without spills."""
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


ONE_PASS = [case for case in [*STEPS, *ELEMENTWISE] if case.side <= 128]
WIDE = [case for case in STEPS if case.side > 128]


@slow
@pytest.mark.parametrize("case", ONE_PASS, ids=str)
def test_bytes(case: CountedCall) -> None:
    """A launch touches the bytes that the roofline counts for it, and its table."""
    counted = count(case)
    assert 0.95 * counted.floor <= counted.footprint <= 1.10 * counted.floor


@slow
@pytest.mark.parametrize("case", ONE_PASS, ids=str)
def test_requested_sectors(case: CountedCall) -> None:
    """Requests with a cold L2 include the gradient's second read and accesses that are not wide."""
    counted = count(case)
    assert counted.requested <= 1.25 * counted.floor


@slow
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_bytes_of_wide_kernels(case: CountedCall) -> None:
    """Wide kernels touch less than the roofline counts, since every product reuses the CTA's memory."""
    counted = count(case)
    assert counted.footprint < 0.5 * counted.floor
    assert counted.floor <= counted.requested <= 1.7 * counted.floor


@slow
@pytest.mark.parametrize("case", [*STEPS, *ARITHMETIC], ids=str)
def test_shared_memory(case: CountedCall) -> None:
    """Loads have no bank conflicts, and at least one mma instruction for two loads."""
    counted = count(case)
    assert counted.conflicts_of_loads == 0
    # The stores of tf32x3, an optional precision, have conflicts.
    most = 1.3 if case.precision == "tf32x3" else 1.05
    assert counted.wavefronts <= most * counted.ideal_wavefronts
    if case.precision != "fp32":
        assert 2 * counted.mma >= counted.shared_loads > 0
