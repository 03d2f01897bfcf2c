"""Small calls of the ops on the scalars of matrices; mutants of their kernels are run on them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cases
import torch
from inputs.op import ScalarOp
from tolerances import assert_each_as_accurate

from cuda.executor_backend import Executor
from kradagrad_ext.backends import reference

MARGIN = 3
"""Number of matrices behind those of a call, which the call must not write."""

PARTS = ("graft_norms", "update_norms", "update_order")
"""Tensors with a number for each span or block, not for each matrix."""


def all_but_the_last(inputs: SimpleNamespace) -> SimpleNamespace:
    """Return the matrices of a call, as views of the memory of all matrices."""
    views = {
        name: value if value.ndim == 0 or name in PARTS else value[:-MARGIN]
        for name, value in vars(inputs).items()
    }
    return SimpleNamespace(**views)


@dataclass(frozen=True, eq=False)
class ScalarProbe:
    """One call of an op."""

    name: str
    op: ScalarOp
    given: SimpleNamespace
    options: dict[str, Any]
    executor = Executor

    def run(self, backend: Any, dtype: torch.dtype | None = None) -> SimpleNamespace:
        """Run on a copy of the given matrices and of all of their memory."""
        return self.op.run(backend, all_but_the_last(self.given), dtype, **self.options)

    @functools.cached_property
    def expected(self) -> tuple[SimpleNamespace, SimpleNamespace]:
        return self.run(reference), self.run(reference, torch.float64)

    def check(self, ours: SimpleNamespace) -> None:
        """Raise AssertionError if a number is not accurate enough or other memory was written."""
        plain, exact = self.expected
        for name in vars(self.given):
            value, *expected = (getattr(result, name) for result in (ours, plain, exact))
            if value.is_floating_point():
                assert_each_as_accurate(value, *expected, name)
            else:
                assert torch.equal(value, expected[1]), name
            behind, before = (
                cases.whole(tensor)[value.numel() :].nan_to_num()
                for tensor in (value, getattr(self.given, name))
            )
            assert torch.equal(behind, before), f"behind {name}"

    def same_bits(self, one: SimpleNamespace, other: SimpleNamespace) -> bool:
        return all(
            torch.equal(getattr(one, name).nan_to_num(), getattr(other, name).nan_to_num())
            for name in self.op.written
        )


def of(op: ScalarOp) -> list[ScalarProbe]:
    return [ScalarProbe(str(options), op, op.make(torch.float32), options) for options in op.options]
