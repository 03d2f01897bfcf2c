"""The ops on a GPU, every backend against float64, with the inputs of the whole suite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import inputs
import pytest
import torch
from cases import tensors_of
from inputs import roots, square_root
from inputs.op import ElementwiseOp, ScalarOp
from tolerances import assert_as_accurate, assert_each_as_accurate, precision_atol

from kradagrad_ext.backends import reference, resolve
from kradagrad_ext.backends.base import PRECISIONS, RESIDUAL, RootSide, Side, Turn

from . import CUDA, equal, judge, on

SIDES = [(33, 33), (64, 64), (128, 100), (129, 33), (256, 256), (40, 300)]
LAYOUTS = [("contiguous", torch.float32), ("grid", torch.float32), ("several", torch.bfloat16)]
RULES: list[dict[str, Any]] = [
    {"refine": 2},
    {"refine": 3, "coupled": True},
    {"refine": 1, "damped_updates": 0.0},
]
ELEMENTWISE = inputs.elementwise()
SCALARS = {name: op for name, op in inputs.ops().items() if isinstance(op, ScalarOp)}


def ops(backend: str) -> Any:
    return resolve(backend, CUDA, torch.float32)


def on_gpu(count: int, shape: tuple[int, int], layout: str, dtype: torch.dtype, **options: Any) -> Any:
    """Return a call of one group on the GPU."""
    rule = replace(square_root.RULE, method="products", **options)
    group = square_root.group(count, shape, layout, view_dtype=dtype)
    return square_root.copied(square_root.given([group], rule), device=CUDA)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize(("layout", "dtype"), LAYOUTS)
@pytest.mark.parametrize("shape", SIDES)
def test_a_whole_step(
    shape: tuple[int, int],
    layout: str,
    dtype: torch.dtype,
    options: dict[str, Any],
    precision: str,
    gpu_backend: str,
) -> None:
    call = on_gpu(4, shape, layout, dtype, precision=precision, **options)
    ours = square_root.run(ops(gpu_backend), square_root.copied(call))
    # Tensor cores truncate sums, the executor on a CPU rounds them: allow four times the tolerance.
    judge(square_root.check, call, ours, 4 * precision_atol(precision, options["refine"]))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_elementwise(op: ElementwiseOp, dtype: torch.dtype, transposed: bool, gpu_backend: str) -> None:
    given = on(op.make(dtype, transposed))
    for options in op.options:
        ours = op.run(ops(gpu_backend), given, **options)
        plain = op.run(reference, given, **options)
        exact = op.run(reference, given, torch.float64, **options)
        for name in op.written:
            for i, trio in enumerate(zip(*(tensors_of(r, name) for r in (ours, plain, exact)), strict=True)):
                judge(assert_as_accurate, *trio, f"{name}[{i}] {options}")


@pytest.mark.parametrize("op", SCALARS.values(), ids=SCALARS)
def test_scalars(op: ScalarOp, gpu_backend: str) -> None:
    given = on(op.make(torch.float32))
    for options in op.options:
        ours, plain = (op.run(b, given, **options) for b in (ops(gpu_backend), reference))
        exact = op.run(reference, given, torch.float64, **options)
        for name in op.written:
            results = [getattr(result, name).cpu() for result in (ours, plain, exact)]
            if results[0].dtype == torch.bool:
                judge(equal, [results[0]], [results[2]])
            else:
                judge(assert_each_as_accurate, *results, f"{name} {options}")


def assert_rooted(side: RootSide, atol: float) -> None:
    assert roots.error(side) < atol
    assert (side.root_stats[:, RESIDUAL] < roots.BOUND).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("d", [1, 33, 64, 96, 128, 129, 256, 300, 600])
def test_roots(d: int, precision: str, gpu_backend: str) -> None:
    given = roots.root_side(5, d)
    side = Side(*(tensor.to(CUDA) for tensor in (given.side.factor, given.side.statistics, given.side.root)))
    ours = RootSide(side, given.root_stats.to(CUDA), given.active.to(CUDA), given.columns)
    ops(gpu_backend).polar_roots_([ours], replace(roots.RULE, precision=precision), Turn())
    judge(assert_rooted, ours, max(2e-5, 4 * precision_atol(precision, 2)))


@pytest.mark.parametrize("side", [64, 128, 256])
def test_the_same_bits_twice(side: int, gpu_backend: str) -> None:
    call = on_gpu(9, (side, side), "contiguous", torch.float32, coupled=True)
    runs = [square_root.run(ops(gpu_backend), square_root.copied(call)).groups[0] for _ in range(2)]
    first, second = ([run.left.factor, run.right.factor, *run.out] for run in runs)
    judge(equal, first, second)
