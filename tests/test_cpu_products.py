"""Products of the CPU kernels: sides beyond a chunk of the inner dimension, threads within one block, and all
vector widths of processors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cases
import pytest
import torch
from inputs.square_root import RULE, RULES, compare, copied, given, group, run

HERE = Path(__file__).parent
WANTED = "(native and agrees and coupled) or (chunk and float32)"


@pytest.mark.parametrize("rule", [RULES["coupled"], RULES["coupled products"]], ids=["cholesky", "products"])
@pytest.mark.parametrize("shape", [(300, 520), (257, 40)], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_sides_beyond_a_chunk(count: int, shape: tuple[int, int], rule: object, dtype: torch.dtype) -> None:
    """With one block and several threads, the threads share the block's products."""
    compare(given([group(count, shape, dtype=dtype)], rule), cases.ops("native", dtype))


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def test_the_number_of_threads_changes_no_bit() -> None:
    call = given([group(1, (300, 520))], RULE)
    threads = torch.get_num_threads()
    factors = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            ran = run(cases.ops("native", torch.float32), copied(call))
            factors.append(ran.groups[0].left.factor)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(factors[0], factors[1])
    assert torch.equal(factors[0], factors[2])


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_narrower_vectors(capability: str) -> None:
    """torch reads the variable once a process; this process runs with the processor's width."""
    tests = [f"{HERE}/test_square_root_step.py::test_agrees_with_float64", f"{HERE}/test_cpu_products.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *tests, "-k", WANTED],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parent,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
