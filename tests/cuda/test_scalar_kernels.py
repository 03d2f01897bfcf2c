"""The CUDA kernels that work on the scalars of matrices, on the PTX executor, against float64."""

from __future__ import annotations

from typing import Any

import inputs
import pytest
import torch
from inputs.op import ScalarOp
from tolerances import assert_each_as_accurate

from kradagrad_ext.backends import reference

from .executor_backend import Executor

OPS = {name: op for name, op in inputs.ops().items() if isinstance(op, ScalarOp)}
CASES = [(op, options) for op in OPS.values() for options in op.options]


def named(value: object) -> str:
    return value.name if isinstance(value, ScalarOp) else str(value)


@pytest.mark.parametrize(("op", "options"), CASES, ids=named)
def test_agrees_with_float64(op: ScalarOp, options: dict[str, Any]) -> None:
    given = op.make(torch.float32)
    ours, plain = (op.run(backend, given, **options) for backend in (Executor(), reference))
    exact = op.run(reference, given, torch.float64, **options)
    for name in op.written:
        results = [getattr(result, name) for result in (ours, plain, exact)]
        if results[0].dtype == torch.bool:
            assert torch.equal(results[0], results[2]), name
        else:
            assert_each_as_accurate(*results, name)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("count", [0, 1, 128, 129])
def test_any_number_of_matrices_in_one_launch(op: ScalarOp, count: int) -> None:
    given, executor = op.make(torch.float32), Executor()
    chosen = torch.arange(count) % len(given.numel)
    ours = op.run(executor, op.rows(given, chosen))
    assert len(executor.launches) == (count > 0)
    whole = op.run(Executor(), given)
    for name in op.written:
        assert torch.equal(getattr(ours, name).nan_to_num(), getattr(whole, name)[chosen].nan_to_num())


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_same_bits_for_any_order_of_blocks_and_warps(op: ScalarOp) -> None:
    given = op.make(torch.float32)
    first, *others = (op.run(Executor(seed), given) for seed in (0, 1, 2))
    for name in op.written:
        for other in others:
            assert torch.equal(getattr(first, name).nan_to_num(), getattr(other, name).nan_to_num())
