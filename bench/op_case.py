"""One op on one input: run it on any backend, check it against float64, time it under pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from common import Row, matmul_rate, percentiles, seconds_of, verify
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from kradagrad_ext.backends import resolve
from kradagrad_ext.backends.base import BlockGroup, Side

SECONDS_A_BENCH = 0.4
MIN_ROUNDS, MAX_ROUNDS = 5, 60

Arguments = dict[str, Any]


def identity(results: list[Tensor]) -> list[Tensor]:
    return results


@dataclass(frozen=True)
class Case:
    """An op's arguments and what is known of them.

    Attributes:
        op: the backend's function.  arguments: by name.  writes: the names it writes, none if functional.
        shape: of one block, for names.  blocks: how many.  recipe: what else varies, for names.
        flops, bytes: least work of a call; 0 leaves the rate out.
        bound: on the relative Frobenius error of every result, against the float64 reference.
        dtype: of gradients and parameters, for names.
        canonical: what is compared of the results, where not all of it.
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
        """The float64 reference's results."""
        arguments = copies(self.arguments, torch.float64)
        return self.canonical(run(self, "reference", arguments, torch.float64))


def run(case: Case, backend: str, arguments: Arguments, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Runs the op in `dtype` and gives what it returned, or else what it wrote."""
    returned = getattr(resolve(backend, torch.device("cpu"), dtype), case.op)(**arguments)
    if returned is not None:
        return list(returned) if isinstance(returned, tuple) else [returned]
    return tensors(arguments, case.writes)


def tensors(arguments: Arguments, names: tuple[str, ...]) -> list[Tensor]:
    return [tensor for name in names for tensor in written(arguments[name])]


def written(value: object) -> list[Tensor]:
    """What an op writes of an argument: of a group of blocks, factors, statistics and the product."""
    if isinstance(value, list):
        return [tensor for item in value for tensor in written(item)]
    if isinstance(value, BlockGroup):
        sides = [value.left, value.right]
        return [t for side in sides for t in (side.factor, side.statistics)] + list(value.out)
    assert isinstance(value, Tensor)
    return [value]


def copied(value: object, dtype: torch.dtype | None = None) -> object:
    """A copy with the strides of the original; floating tensors in `dtype`, if one is given."""
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
    """The largest relative error of the op's results.

    Raises:
        RuntimeError: one exceeds the case's bound.
    """
    results = case.canonical(run(case, backend, copies(case.arguments)))
    name = f"{case.label} on {backend}"
    return max(verify(name, *pair, case.bound) for pair in zip(results, case.expected, strict=True))


class Runner:
    """Repeated calls of a case on a backend, each from the same state of what the op writes."""

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
    """Verifies, then times in rounds of one call each; the rows for the CSV."""
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
    """Milliseconds of a call and, where its work is known, the rates. p20 is always the smaller value."""
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
