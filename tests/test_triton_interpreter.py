"""The mended interpreter multiplies and rounds bfloat16 as a GPU does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import torch, triton, triton.language as tl
import interpreter

if sys.argv[1] == "mended":
    interpreter.mend()

@triton.jit
def kernel(a, b, product, rounded, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    x, y = tl.load(a + at), tl.load(b + at)
    tl.store(product + at, tl.dot(x.to(tl.bfloat16), y.to(tl.bfloat16)))
    tl.store(rounded + at, x.to(tl.bfloat16))

a, b = torch.randn(2, 16, 16)
product, rounded = torch.zeros(16, 16), torch.zeros(16, 16, dtype=torch.bfloat16)
kernel[(1,)](a, b, product, rounded, N=16)
exact = a.bfloat16().double() @ b.bfloat16().double()
print(float((product - exact).abs().max()) < 1e-5, torch.equal(rounded, a.bfloat16()))
"""


@pytest.mark.parametrize(("how", "expected"), [("mended", "True True"), ("plain", "False False")])
def test_bfloat16(how: str, expected: str, tmp_path: Path) -> None:
    """If the plain interpreter is right too, the mend can be removed."""
    pytest.importorskip("triton")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(program), how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == expected, done.stderr
