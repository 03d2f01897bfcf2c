"""Budgets of the compiled Triton kernels that need no GPU, for every row of the tuning table.

They hold for the newest Triton and for the one that GPU images carry (`make test-triton-budgets`).
bench/gpu/kernels/evidence.py lists the numbers of the newest.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from inputs import square_root
from marks import slow

pytest.importorskip("triton")

from cuda.binaries import KB, Binary, Counter, Shape
from cuda.limits import CTA_SHARED, MOST_REGISTERS
from ptx_executor import Counters
from triton_ptx.binaries import ARCHITECTURES, PRECISIONS, Made, launches, made, tensor_cores, tuning
from triton_ptx.compiled import Compiled

from bench.gpu.kernels.counts import ELEMENTWISE, CountedCall, count
from bench.roofline.triton_costs import costs_of_blocks
from kradagrad_ext.triton_kernels.plan.groups import StepRule

EXECUTED = {name: functools.partial(Compiled, name) for name in ("sm_80", "sm_90")}
# The rows of sm_80 serve sm_86, sm_89 and sm_120 too, which have less.
SHARED = CTA_SHARED | {"sm_80": 99 * KB, "gfx942": 64 * KB}
REGISTERS = dict.fromkeys(CTA_SHARED, MOST_REGISTERS) | {"gfx942": 512}


STACK = 16
"""Largest stack of a thread in bytes; on AMD, scratch memory of a lane."""


def faults(kernel: Made, architecture: str) -> list[str]:
    """Return the budgets that a compiled kernel exceeds."""
    code, exceeded = kernel.binary.instructions, []
    if kernel.binary.stack + kernel.binary.local > STACK:
        exceeded.append(f"stack {kernel.binary.stack}, {code['LDL']} LDL, {code['STL']} STL")
    if code["ftz"]:  # the executor does not know that it takes subnormal numbers for 0
        exceeded.append(f"{code['ftz']} instructions that flush to zero")
    if kernel.binary.registers > REGISTERS[architecture]:
        exceeded.append(f"{kernel.binary.registers} registers")
    if kernel.launched.dynamic_shared > SHARED[architecture]:
        exceeded.append(f"{kernel.launched.dynamic_shared} bytes of shared memory")
    instruction = tensor_cores(kernel, architecture)
    if instruction and not code[instruction]:
        exceeded.append(f"no {instruction}")
    return exceeded


@slow
@pytest.mark.parametrize(
    ("precision", "architecture"),
    [("bf16x3", name) for name in ARCHITECTURES] + [(other, "sm_90") for other in PRECISIONS[1:]],
)
def test_every_specialisation_is_within_its_budgets(precision: str, architecture: str) -> None:
    compiled = made(precision, architecture)
    broken = {f"{kernel.kernel} {kernel.constants}": faults(kernel, architecture) for kernel in compiled}
    assert not {name: exceeded for name, exceeded in broken.items() if exceeded}
    assert len(compiled) >= 20 or tuning.served(precision, architecture) != precision


def test_faults_are_found() -> None:
    sound = Made(
        "gram", "small", {"PRECISION": "bf16x3"}, Binary(64, 0, 0, 0, Counter(HMMA=1)), Shape(128, 0)
    )
    assert not faults(sound, "sm_80")
    assert faults(sound, "sm_90") == ["no HGMMA"]
    spilled = Binary(64, 24, 0, 0, Counter(HMMA=1, LDL=2, STL=1))
    assert faults(replace(sound, binary=spilled), "sm_80") == ["stack 24, 2 LDL, 1 STL"]
    assert faults(replace(sound, launched=Shape(128, 164 * KB)), "sm_80") == ["167936 bytes of shared memory"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_row_of_the_table_is_compiled(architecture: str) -> None:
    rows = {(key.op, key.shape, key.precision) for key in tuning.table() if key.architecture == architecture}
    compiled = {
        (tuning.ROWS_OF.get(launch.kernel.__name__, launch.kernel.__name__), shape, precision)
        for precision in PRECISIONS
        for shape, launch in launches(precision, architecture)
        if launch.kernel.__name__ not in tuning.FIXED
    }
    assert rows == compiled


@slow
@pytest.mark.parametrize("architecture", EXECUTED)
@pytest.mark.parametrize("case", ELEMENTWISE, ids=str)
def test_bytes(case: CountedCall, architecture: str) -> None:
    """Bytes are at most 1.1 times the floor and the launches' tables."""
    counted = count(case, EXECUTED[architecture])
    assert counted.footprint <= 1.10 * counted.floor


STEP = replace(square_root.RULE, method="products", coupled=True)


@functools.cache
def step_counters(side: int, architecture: str) -> tuple[Counters, ...]:
    """Return the counters of the launches of a coupled step of two blocks in the square-root form."""
    torch.manual_seed(0)
    backend = Compiled(architecture)
    square_root.run(backend, square_root.given([square_root.group(2, (side, side))], STEP))
    return tuple(launch.counters for _, launch in backend.launches)


@slow
@pytest.mark.parametrize(
    ("side", "architecture"), [(32, "sm_80"), (64, "sm_90"), (128, "sm_80"), (256, "sm_90")]
)
def test_bytes_of_a_step(side: int, architecture: str) -> None:
    """Bytes are those of the matrices that launches read and write, and of the launches' tables."""
    rule = StepRule(STEP.refine, STEP.coupled, True, STEP.precision, architecture)
    expected = sum(cost.bytes for cost in costs_of_blocks([(2, side, side)], rule))
    counters = step_counters(side, architecture)
    counted = sum(c[name] for c in counters for name in ("footprint_read_bytes", "footprint_write_bytes"))
    assert 0.95 * expected <= counted <= 1.10 * expected


@slow
@pytest.mark.parametrize(
    ("side", "architecture", "most"), [(64, "sm_90", 1.5), (256, "sm_90", 1.03), (256, "sm_80", 1.5)]
)
def test_shared_memory_wavefronts_of_a_step(side: int, architecture: str, most: float) -> None:
    counters = step_counters(side, architecture)
    ideal, wavefronts = (
        sum(c[n] for c in counters) for n in ("shared_ideal_wavefronts", "shared_wavefronts")
    )
    assert wavefronts <= most * ideal


def test_architectures_are_the_tables() -> None:
    assert {key.architecture for key in tuning.table()} == set(tuning.ARCHITECTURES)
    assert set(tuning.ARCHITECTURES) == {*ARCHITECTURES, "interpreter"}
