"""The compiled Triton kernels of elementwise ops on the PTX executor, against float64."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import test_accumulate
import test_parameter_step
import torch
from cuda.test_elementwise_kernels import tensors_of
from tolerances import assert_as_accurate

from kradagrad_ext.backends import reference

from .compiled import Compiled

ARCHITECTURES = ["sm_80", "sm_90"]
MODULES = {"accumulate_": test_accumulate, "parameter_step_": test_parameter_step}
WRITTEN = {
    "accumulate_": ("momenta", "second_moments", "directions", "graft_norms"),
    "parameter_step_": ("params", "momenta"),
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "transposed"), [(torch.float32, True), (torch.bfloat16, False)])
@pytest.mark.parametrize(
    ("op", "options"),
    [(op, options) for op, module in MODULES.items() for options in module.OPTIONS],
    ids=str,
)
def test_elements(op: str, options: dict[str, Any], dtype: torch.dtype, transposed: bool, arch: str) -> None:
    check_elements(op, Compiled(arch), MODULES[op].inputs(dtype, transposed), **options)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("count", "residuals"), [(5, False), (0, True)])
def test_rounding(count: int, residuals: bool, arch: str) -> None:
    check_rounding(Compiled(arch), count, residuals)


def check_rounding(backend: Compiled, count: int, residuals: bool) -> None:
    """Where arithmetic is exact, the same bits."""
    given = test_parameter_step.exact_inputs(count)
    ours, plain = (test_parameter_step.run(own, given, residuals=residuals) for own in (backend, reference))
    for name in ("params", "residuals"):
        assert all(map(torch.equal, tensors_of(ours, name), tensors_of(plain, name)))


def check_elements(op: str, backend: Compiled, given: Any, **options: Any) -> None:
    module = MODULES[op]
    results = [module.run(backend, given, **options), module.run(reference, given, **options)]
    results.append(module.run(reference, given, torch.float64, **options))
    for name in WRITTEN[op]:
        lists = [tensors_of(result, name) for result in results]
        for i, trio in enumerate(zip(*lists, strict=True)):
            assert_as_accurate(*trio, f"{name}[{i}]")
        cases.assert_same_padding(lists[0], tensors_of(given, name)[: len(lists[0])])
