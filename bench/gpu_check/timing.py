"""Times by a GPU's own clock: CUDA events around graph replays, or around calls with a head start."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import percentiles
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]
Calls = dict[str, Call]

CYCLES_A_MS = 3_000_000
"""More than any GPU has, so that a head start is never shorter than meant."""
LEAST_MS, MOST_REPEATS = 0.5, 20
"""How long a sample is at least, and how often a short call is repeated within one."""
WARMUP, LEAST_ROUNDS = 3, 5


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call in every round, and how they were taken: ``graph`` or ``events``."""

    values: list[float]
    how: str

    @property
    def spread(self) -> tuple[float, float, float]:
        return percentiles(self.values)


def nothing() -> None:
    """Restores nothing."""


def captured(call: Call) -> torch.cuda.CUDAGraph:
    """A graph of the call, which is made twice before on a stream of its own: it compiles and makes plans."""
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
    """Milliseconds that a call keeps the GPU: of graph replays, or where it cannot be captured of calls.

    Args:
        rounds: samples.  limit: seconds after which no further one is taken.
        restore: puts back what the call changes, outside the time.
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
    """Milliseconds of one of `repeats` calls; the GPU waits `head_start` ms while the host queues them."""
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
    """Median milliseconds that a call keeps the host: Python, plan, table and launches."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    torch.cuda.synchronize()
    return percentiles(times)[1]


def kernel_times(call: Call) -> dict[str, float]:
    """Milliseconds of one call by kernel; raises RuntimeError where this machine lets nobody profile."""
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return {event.key: event.self_device_time_total / 1e3 for event in profiler.key_averages()}
