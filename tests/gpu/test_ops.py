"""The ops on a GPU, every backend against float64, with the inputs of the whole suite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from inputs import apply_updates as apply_updates_inputs
from inputs import guard_gradients as guard_gradients_inputs
from inputs import roots, square_root
from inputs import scale_updates as scale_updates_inputs
from inputs import update_moments as update_moments_inputs
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
ELEMENTWISE = [
    (update_moments_inputs, ("momenta", "second_moments")),
    (apply_updates_inputs, ("params", "momenta")),
]


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
@pytest.mark.parametrize(("module", "names"), ELEMENTWISE, ids=["update_moments", "apply_updates"])
def test_elementwise(
    module: Any, names: tuple[str, ...], dtype: torch.dtype, transposed: bool, gpu_backend: str
) -> None:
    inputs = on(module.make(dtype, transposed))
    for options in module.OPTIONS:
        ours = module.run(ops(gpu_backend), inputs, **options)
        plain = module.run(reference, inputs, **options)
        exact = module.run(reference, inputs, torch.float64, **options)
        for name in names:
            for i, trio in enumerate(zip(*(getattr(r, name) for r in (ours, plain, exact)), strict=True)):
                judge(assert_as_accurate, *trio, f"{name}[{i}] {options}")


@pytest.mark.parametrize("module", [guard_gradients_inputs, scale_updates_inputs])
def test_scalars(module: Any, gpu_backend: str) -> None:
    inputs = on(module.make(torch.float32))
    for options in module.OPTIONS:
        ours, plain = (module.run(b, inputs, **options) for b in (ops(gpu_backend), reference))
        exact = module.run(reference, inputs, torch.float64, **options)
        for name in module.WRITTEN:
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
    inputs = roots.root_side(5, d)
    side = Side(
        *(tensor.to(CUDA) for tensor in (inputs.side.factor, inputs.side.statistics, inputs.side.root))
    )
    ours = RootSide(side, inputs.root_stats.to(CUDA), inputs.active.to(CUDA), inputs.columns)
    ops(gpu_backend).polar_roots_([ours], replace(roots.RULE, precision=precision), Turn())
    judge(assert_rooted, ours, max(2e-5, 4 * precision_atol(precision, 2)))


@pytest.mark.parametrize("side", [64, 128, 256])
def test_the_same_bits_twice(side: int, gpu_backend: str) -> None:
    call = on_gpu(9, (side, side), "contiguous", torch.float32, coupled=True)
    runs = [square_root.run(ops(gpu_backend), square_root.copied(call)).groups[0] for _ in range(2)]
    first, second = ([run.left.factor, run.right.factor, *run.out] for run in runs)
    judge(equal, first, second)
