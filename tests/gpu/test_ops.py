"""The ops on a GPU, every backend against float64, by the suite's own inputs."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import test_accumulate
import test_kron_step
import test_parameter_step
import torch
from tolerances import assert_as_accurate, precision_atol

from kradagrad_ext.backends import reference, resolve
from kradagrad_ext.backends.base import PRECISIONS

from . import CUDA, equal, judge, on

SIDES = [(33, 33), (64, 64), (128, 100), (129, 33), (256, 256), (40, 300)]
LAYOUTS = [("contiguous", torch.float32), ("strided", torch.float32), ("strided", torch.bfloat16)]
RULES: list[dict[str, Any]] = [
    {},
    {"factor_scale": "frobenius", "refine": 2},
    {"factor_scale": "schatten4", "damping": 1e-3},
]
ELEMENTWISE = [(test_accumulate, ("momenta", "second_moments")), (test_parameter_step, ("params", "momenta"))]


def ops(backend: str) -> Any:
    return resolve(backend, CUDA, torch.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize(("layout", "dtype"), LAYOUTS)
@pytest.mark.parametrize(("rows", "columns"), SIDES)
def test_a_whole_step(
    rows: int,
    columns: int,
    layout: str,
    dtype: torch.dtype,
    options: dict[str, Any],
    precision: str,
    gpu_backend: str,
) -> None:
    given = on(test_kron_step.inputs(4, rows, columns, dtype, layout))
    given.direction = [view.float() for view in given.direction]
    options = options | {"precision": precision}
    ours = test_kron_step.run(ops(gpu_backend), given, **options)
    plain = test_kron_step.run(reference, given, **options)
    exact = test_kron_step.run(reference, given, torch.float64, **options)
    # Tensor cores truncate sums where the tests on a CPU round: four times the share allowed there.
    atol = 4 * precision_atol(precision, options.get("refine", 0))
    judge(test_kron_step.compare, ours, plain, exact, atol)
    judge(cases.assert_same_padding, ours.out, given.out)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("module", "names"), ELEMENTWISE, ids=["accumulate", "parameter_step"])
def test_elementwise(
    module: Any, names: tuple[str, ...], dtype: torch.dtype, transposed: bool, gpu_backend: str
) -> None:
    given = on(module.inputs(dtype, transposed))
    for options in module.OPTIONS:
        ours = module.run(ops(gpu_backend), given, **options)
        plain = module.run(reference, given, **options)
        exact = module.run(reference, given, torch.float64, **options)
        for name in names:
            for i, trio in enumerate(zip(*(getattr(r, name) for r in (ours, plain, exact)), strict=True)):
                judge(assert_as_accurate, *trio, f"{name}[{i}] {options}")


@pytest.mark.parametrize("side", [64, 128, 256])
def test_the_same_bits_twice(side: int, gpu_backend: str) -> None:
    given = on(test_kron_step.inputs(9, side, side, torch.float32))
    rule = {"factor_scale": "frobenius", "refine": 2}
    first, second = (test_kron_step.run(ops(gpu_backend), given, **rule) for _ in range(2))
    for name in ("left", "right", "out"):
        judge(equal, getattr(first, name), getattr(second, name))
