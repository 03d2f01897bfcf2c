"""Detection of an exchanged kernel: the checks that notice it, by layer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from types import SimpleNamespace

import inputs
import ptx_executor

from cuda import executor_backend, toolchain

from .probes import Probe

OTHER_SEED = 5
STEP_LIMIT = 10_000_000
"""Warp instructions of a launch: several times as many as the largest launch of a probe takes."""

BUDGET = 1.02
"""Multiple of the unedited kernel's work that a mutant may do, plus `SLACK`."""
SLACK = 100
"""Allowance for a few words of a launch's parameters that the compiler may read again."""
BUDGETED = ("shared_wavefronts", "global_read_sectors", "global_write_sectors")

LAYERS = {
    "out of bounds": "bounds",
    "misaligned": "bounds",
    "read-only": "bounds",
    "in-flight": "in-flight",
    "in flight": "in-flight",
    "uninitialised": "uninitialised",
    "race": "race",
}
"""Layer of a report by a part of its kind; all other reports are about divergent warps and barriers."""


class Caught(Exception):  # noqa: N818, an outcome rather than an error
    """Raised when a check has noticed the mutant."""

    def __init__(self, *layers: str) -> None:
        super().__init__(*layers)
        self.layers = set(layers)


class Watched:
    """A kernel whose launches are stopped early, and raise `Caught` at a report."""

    def __init__(self, kernel: ptx_executor.Kernel) -> None:
        self.kernel = kernel

    def launch(self, *args: object, **options: object) -> ptx_executor.Launch:
        launch = self.kernel.launch(*args, **options, step_limit=STEP_LIMIT)
        if launch.reports:
            raise Caught(*(layer_of(report.kind) for report in launch.reports))
        return launch


def layer_of(kind: str) -> str:
    return next((layer for part, layer in LAYERS.items() if part in kind), "convergence")


@functools.cache
def unedited(name: str) -> Watched:
    """Return a kernel in a separate module, which loads faster than the whole one."""
    text = toolchain.ptx(inputs.kernels()[name].source)
    return Watched(ptx_executor.Kernel(ptx_executor.isolate(text, name), name))


@contextlib.contextmanager
def exchanged(name: str, kernel: Watched) -> Iterator[None]:
    """Run the executor backend with another kernel in place of the one with this name."""
    original = executor_backend.kernel
    executor_backend.kernel = lambda wanted: kernel if wanted == name else unedited(wanted)
    try:
        yield
    finally:
        executor_backend.kernel = original


def run(probe: Probe, seed: int = 0) -> tuple[SimpleNamespace, dict[str, int]]:
    """Return the results and the sums of the budgeted counters over all launches."""
    executor = probe.executor(seed)
    result = probe.run(executor)
    counts = [launch.counters for _, launch in executor.launches]
    return result, {name: sum(counters[name] for counters in counts) for name in BUDGETED}


@functools.cache
def budget_of(probe: Probe, name: str) -> dict[str, int]:
    with exchanged(name, unedited(name)):
        return run(probe)[1]


def check(probe: Probe, budget: dict[str, int]) -> None:
    """Raise `Caught` if a check of one call notices the exchanged kernel."""
    ours, counts = run(probe)
    try:
        probe.check(ours)
    except AssertionError:
        raise Caught("values") from None
    if any(counts[key] > BUDGET * budget[key] + SLACK for key in BUDGETED):
        raise Caught("budget")
    if not probe.same_bits(ours, run(probe, OTHER_SEED)[0]):
        raise Caught("bits")


def layers_that_notice(text: str, name: str, probes: list[Probe]) -> set[str]:
    """Return the layers of the first call that notices a mutant's PTX; empty if no call does."""
    try:
        kernel = Watched(ptx_executor.Kernel(text, name))
        for probe in probes:
            budget = budget_of(probe, name)
            with exchanged(name, kernel):
                check(probe, budget)
    except Caught as caught:
        return caught.layers
    except (ptx_executor.ParseError, ptx_executor.ExecutionError, ptx_executor.StepLimit) as error:
        return {type(error).__name__}
    return set()
