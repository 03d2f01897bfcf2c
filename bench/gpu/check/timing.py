"""Times by the GPU's clock: CUDA events around graph replays, or around calls with a head start."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from bench.common import percentiles

Call = Callable[[], object]
Calls = dict[str, Call]

CYCLES_A_MS = 3_000_000
"""Cycles of a millisecond, more than on any GPU, so that a head start is never too short."""
LEAST_MS, MOST_REPEATS = 0.5, 20
"""Least duration of a sample, and most repeats of a short call within one."""
WARMUP, LEAST_ROUNDS = 3, 5


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call in every round, and the method: ``graph`` or ``events``."""

    values: list[float]
    how: str

    @property
    def spread(self) -> tuple[float, float, float]:
        return percentiles(self.values)


def nothing() -> None:
    """Restore nothing."""


def captured(call: Call) -> torch.cuda.CUDAGraph:
    """Return a graph of the call. Two calls on a side stream come first: they compile and make plans."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
        call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        call()
    torch.cuda.synchronize()
    return graph


def device_times(call: Call, rounds: int, limit: float, restore: Call = nothing) -> Times:
    """Measure the GPU milliseconds of a call: of graph replays, or of calls if capture fails.

    Args:
        rounds: number of samples.  limit: seconds after which no sample starts.
        restore: restores the tensors that the call changes, outside the time.
    """
    try:
        run, how = captured(call).replay, "graph"
    except RuntimeError as error:
        print(f"timed without a graph: {error}", flush=True)
        run, how = call, "events"
    head_start = 0.0 if how == "graph" else 1.5 * host_time(call) + 0.5
    restore()
    once = event_time(run, head_start)
    repeats = max(1, min(MOST_REPEATS, round(LEAST_MS / max(once, 1e-3))))
    values, start = [], time.monotonic()
    for number in range(-WARMUP, rounds):
        restore()
        elapsed = event_time(run, head_start, repeats)
        if number >= 0:
            values.append(elapsed)
        if number >= LEAST_ROUNDS and time.monotonic() - start > limit:
            break
    return Times(values, how)


def event_time(call: Call, head_start: float, repeats: int = 1) -> float:
    """Return the milliseconds of one of `repeats` calls; the GPU first waits `head_start` ms per call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(int(CYCLES_A_MS * (0.05 + head_start * repeats)))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def host_time(call: Call) -> float:
    """Return the median host milliseconds of a call: Python, plan, table and launches."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    torch.cuda.synchronize()
    return percentiles(times)[1]


def kernel_times(call: Call) -> dict[str, float]:
    """Return the milliseconds of one call by kernel. Raise RuntimeError if the machine forbids profiling."""
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return {event.key: event.self_device_time_total / 1e3 for event in profiler.key_averages()}
