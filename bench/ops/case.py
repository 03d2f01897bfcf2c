"""One op on one input: runs on any backend, checks against float64, times under pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.common import Row, matmul_rate, percentiles, seconds_of, verify
from kradagrad_ext.backends import resolve
from kradagrad_ext.backends.base import BlockGroup, Side

SECONDS_A_BENCH = 0.4
MIN_ROUNDS, MAX_ROUNDS = 5, 60

Arguments = dict[str, Any]


def identity(results: list[Tensor]) -> list[Tensor]:
    return results


@dataclass(frozen=True)
class Case:
    """An op's arguments, with their description and bounds.

    Attributes:
        op: name of the backend's function.  arguments: its keywords.
        writes: names of the arguments that it writes; empty if it is functional.
        shape: shape of one block, for names.  blocks: their number.  recipe: other options, for names.
        flops, bytes: least work of a call; 0 leaves the rate out.
        bound: on the relative Frobenius error of every result, against the float64 reference.
        dtype: of gradients and parameters, for names.
        canonical: selects the results to compare, if not all.
    """

    op: str
    arguments: Arguments
    writes: tuple[str, ...]
    shape: str
    blocks: int
    recipe: str = ""
    flops: float = 0.0
    bytes: float = 0.0
    bound: float = 1e-4
    dtype: str = "float32"
    canonical: Callable[[list[Tensor]], list[Tensor]] = identity

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.op, self.recipe, self.dtype, self.shape)))

    @cached_property
    def expected(self) -> list[Tensor]:
        """Results of the float64 reference."""
        arguments = copies(self.arguments, torch.float64)
        return self.canonical(run(self, "reference", arguments, torch.float64))


def run(case: Case, backend: str, arguments: Arguments, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Run the op in `dtype`; return its results, or else the tensors that it wrote."""
    returned = getattr(resolve(backend, torch.device("cpu"), dtype), case.op)(**arguments)
    if returned is not None:
        return list(returned) if isinstance(returned, tuple) else [returned]
    return tensors(arguments, case.writes)


def tensors(arguments: Arguments, names: tuple[str, ...]) -> list[Tensor]:
    return [tensor for name in names for tensor in written(arguments[name])]


def written(value: object) -> list[Tensor]:
    """Return the tensors of an argument that an op writes; of a group: factors, statistics, the product."""
    if isinstance(value, list):
        return [tensor for item in value for tensor in written(item)]
    if isinstance(value, BlockGroup):
        sides = [value.left, value.right]
        return [t for side in sides for t in (side.factor, side.statistics)] + list(value.out)
    assert isinstance(value, Tensor)
    return [value]


def copied(value: object, dtype: torch.dtype | None = None) -> object:
    """Copy an argument with its strides; floating tensors in `dtype` if not None."""
    if isinstance(value, list):
        return [copied(item, dtype) for item in value]
    if isinstance(value, (BlockGroup, Side)):
        parts = {field.name: copied(getattr(value, field.name), dtype) for field in fields(value)}
        return replace(value, **parts)
    if not isinstance(value, Tensor):
        return value
    return value.to(dtype, copy=True) if dtype and value.is_floating_point() else value.clone()


def copies(arguments: Arguments, dtype: torch.dtype | None = None) -> Arguments:
    return {name: copied(value, dtype) for name, value in arguments.items()}


def verify_case(case: Case, backend: str) -> float:
    """Return the largest relative error of the op's results.

    Raises:
        RuntimeError: an error exceeds the case's bound.
    """
    results = case.canonical(run(case, backend, copies(case.arguments)))
    name = f"{case.label} on {backend}"
    return max(verify(name, *pair, case.bound) for pair in zip(results, case.expected, strict=True))


class Runner:
    """Repeated calls of a case on a backend; `reset` restores the tensors that the op writes."""

    def __init__(self, case: Case, backend: str) -> None:
        self.case, self.backend = case, backend
        self.arguments = copies(case.arguments)
        self._written = tensors(self.arguments, case.writes)
        self._initial = tensors(case.arguments, case.writes)

    def reset(self) -> None:
        for tensor, initial in zip(self._written, self._initial, strict=True):
            tensor.copy_(initial)

    def __call__(self) -> None:
        run(self.case, self.backend, self.arguments)


def bench(benchmark: BenchmarkFixture, case: Case, backend: str) -> list[Row]:
    """Verify a case, time it in rounds of one call each, and return the rows for the CSV."""
    error = verify_case(case, backend)
    runner = Runner(case, backend)
    runner.reset()
    rounds = int(SECONDS_A_BENCH / max(seconds_of(runner), 1e-6))
    rounds = min(max(rounds, MIN_ROUNDS), MAX_ROUNDS)
    benchmark.group = case.label
    benchmark.pedantic(runner, setup=runner.reset, rounds=rounds, warmup_rounds=2, iterations=1)
    rows = rows_of(case, backend, benchmark.stats.stats.data)
    benchmark.extra_info.update({row.metric: row.p50 for row in rows}, relative_error=error)
    return rows


def rows_of(case: Case, backend: str, seconds: list[float]) -> list[Row]:
    """Return rows of a call's milliseconds and, if its work is known, its rates. p20 is the smaller value."""
    fast, middle, slow = percentiles(seconds)
    metrics = {"ms": (1e3 * fast, 1e3 * middle, 1e3 * slow)}
    if case.flops:
        rates = (case.flops / slow, case.flops / middle, case.flops / fast)
        metrics["gflops"] = tuple(rate / 1e9 for rate in rates)
        metrics["share_of_matmul"] = tuple(rate / matmul_rate() for rate in rates)
    if case.bytes:
        metrics["gbytes_per_s"] = tuple(case.bytes / time / 1e9 for time in (slow, middle, fast))
    op = " ".join(filter(None, (case.op, case.recipe)))
    return [
        Row(op, backend, case.dtype, case.shape, case.blocks, metric, *values)
        for metric, values in metrics.items()
    ]
