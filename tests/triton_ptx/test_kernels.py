"""The compiled Triton kernels on the PTX executor, against float64."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import test_accumulate
import test_parameter_step
import torch
from test_kron_step import compare, inputs, merged, run
from tolerances import assert_as_accurate, precision_atol

from kradagrad_ext.backends import reference

from .compiled import Compiled

ARCHITECTURES = ["sm_80", "sm_90"]
MODULES = {"accumulate_": test_accumulate, "parameter_step_": test_parameter_step}
WRITTEN = {
    "accumulate_": ("momenta", "second_moments", "directions", "graft_norms"),
    "parameter_step_": ("params", "momenta"),
}
RULES: list[dict[str, Any]] = [
    {"factor_scale": "trace"},
    {"factor_scale": "product"},
    {"factor_scale": "schatten4"},
    {"factor_scale": "frobenius", "refine": 2},
    {"factor_scale": "trace_dim", "refine": 3},
]
SHAPES = [(7, 32), (33, 40), (64, 64), (130, 40), (40, 200), (256, 128)]


def check(given: Any, arch: str, **options: Any) -> None:
    ours = run(Compiled(arch), given, **options)
    plain, exact = run(reference, given, **options), run(reference, given, torch.float64, **options)
    compare(ours, plain, exact, precision_atol("bf16x3", options.get("refine", 0)))
    cases.assert_same_padding(ours.out, given.out)
    for factor in (*ours.left, *ours.right):
        assert torch.equal(factor, factor.mT), "the factor must be symmetric to the bit"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_kron_step(rows: int, columns: int, options: dict[str, Any], arch: str) -> None:
    dtype = torch.bfloat16 if rows == 64 else torch.float32
    check(inputs(3, rows, columns, dtype, "strided"), arch, **options)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("blocks", [0, 1, 1000])
def test_any_number_of_blocks(blocks: int, arch: str) -> None:
    check(inputs(blocks, 6, 5, torch.float32, "strided"), arch, **RULES[3])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_groups_of_several_shapes(arch: str) -> None:
    shapes = [(2, 16, 16), (1, 130, 40), (0, 8, 8), (3, 33, 70), (2, 9, 30)]
    check(merged([inputs(*shape, torch.float32) for shape in shapes]), arch, **RULES[3])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "transposed"), [(torch.float32, True), (torch.bfloat16, False)])
@pytest.mark.parametrize(
    ("op", "options"),
    [(op, options) for op, module in MODULES.items() for options in module.OPTIONS],
    ids=str,
)
def test_elements(op: str, options: dict[str, Any], dtype: torch.dtype, transposed: bool, arch: str) -> None:
    module = MODULES[op]
    given = module.inputs(dtype, transposed)
    results = [module.run(Compiled(arch), given, **options), module.run(reference, given, **options)]
    results.append(module.run(reference, given, torch.float64, **options))
    for name in WRITTEN[op]:
        values = [getattr(result, name) for result in results]
        lists = [value if isinstance(value, list) else [value] for value in values]
        for i, trio in enumerate(zip(*lists, strict=True)):
            assert_as_accurate(*trio, f"{name}[{i}]")
