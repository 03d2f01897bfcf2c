"""The compiled Triton kernels of the elementwise ops on the PTX executor, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .checks import OPS, check_elements, check_rounding
from .compiled import Compiled

ARCHITECTURES = ["sm_80", "sm_90"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "transposed"), [(torch.float32, True), (torch.bfloat16, False)])
@pytest.mark.parametrize(
    ("op", "options"),
    [(name, options) for name, op in OPS.items() for options in op.options],
    ids=str,
)
def test_elements(op: str, options: dict[str, Any], dtype: torch.dtype, transposed: bool, arch: str) -> None:
    check_elements(OPS[op], Compiled(arch), OPS[op].make(dtype, transposed), **options)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("count", "residuals"), [(5, False), (0, True)])
def test_rounding(count: int, residuals: bool, arch: str) -> None:
    check_rounding(Compiled(arch), count, residuals)
