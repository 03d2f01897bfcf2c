"""Fixtures of the op benches: `pytest bench/ops --benchmark-only` times every op and appends to the CSV."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.common import RECORD_HELP, Row, append_rows, benchmarks_csv, usable_backends
from bench.ops.case import Case, bench

ROWS = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help=RECORD_HELP + "bench/results/benchmarks.csv")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let the backend vary fastest, so that all backends share a case and its float64 result."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", usable_backends())


@pytest.fixture
def time_op(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Callable[[Case, str], None]:
    """Return a function that verifies a case on a backend, times it and keeps the rows for the CSV."""
    if benchmark.disabled:
        pytest.skip("benchmarks are disabled")

    def time_case(case: Case, backend: str) -> None:
        request.config.stash[ROWS] += bench(benchmark, case, backend)

    return time_case


def pytest_sessionfinish(session: pytest.Session) -> None:
    rows = session.config.stash[ROWS]
    if rows:
        append_rows(rows, benchmarks_csv(session.config.getoption("record")))
