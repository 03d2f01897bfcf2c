"""The CUDA kernels that work on the scalars of matrices, on the PTX executor, against float64."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from inputs import guard_gradients as guard_gradients_inputs
from inputs import scale_updates as scale_updates_inputs
from tolerances import assert_each_as_accurate

from kradagrad_ext.backends import reference

from .executor_backend import Executor

MODULES = (guard_gradients_inputs, scale_updates_inputs)
CASES = [(module, options) for module in MODULES for options in module.OPTIONS]


@pytest.mark.parametrize(("module", "options"), CASES, ids=str)
def test_agrees_with_float64(module: ModuleType, options: dict[str, Any]) -> None:
    inputs = module.make(torch.float32)
    ours, plain = (module.run(backend, inputs, **options) for backend in (Executor(), reference))
    exact = module.run(reference, inputs, torch.float64, **options)
    for name in module.WRITTEN:
        results = [getattr(result, name) for result in (ours, plain, exact)]
        if results[0].dtype == torch.bool:
            assert torch.equal(results[0], results[2]), name
        else:
            assert_each_as_accurate(*results, name)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("count", [0, 1, 128, 129])
def test_any_number_of_matrices_in_one_launch(module: ModuleType, count: int) -> None:
    inputs, executor = module.make(torch.float32), Executor()
    chosen = torch.arange(count) % len(inputs.numel)
    ours = module.run(executor, module.rows(inputs, chosen))
    assert len(executor.launches) == (count > 0)
    whole = module.run(Executor(), inputs)
    for name in module.WRITTEN:
        assert torch.equal(getattr(ours, name).nan_to_num(), getattr(whole, name)[chosen].nan_to_num())


@pytest.mark.parametrize("module", MODULES)
def test_same_bits_for_any_order_of_blocks_and_warps(module: ModuleType) -> None:
    inputs = module.make(torch.float32)
    first, *others = (module.run(Executor(seed), inputs) for seed in (0, 1, 2))
    for name in module.WRITTEN:
        for other in others:
            assert torch.equal(getattr(first, name).nan_to_num(), getattr(other, name).nan_to_num())
