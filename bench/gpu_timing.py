"""Times by a GPU's own clock: CUDA events around interleaved calls; kernels' times from the profiler."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from common import percentiles
from torch.profiler import ProfilerActivity, profile

Calls = dict[str, Callable[[], object]]
HEAD_START_CYCLES = 1_000_000
"""About half a millisecond in which the host queues a call's launches, so that they follow one another."""


def milliseconds(calls: Calls, rounds: int, warmup: int, limit: float) -> dict[str, list[float]]:
    """Times of every call, all of them once a round, each round starting with another one.

    Args:
        rounds, warmup: timed and untimed rounds.  limit: seconds after which no new round begins.
    """
    names, spent = list(calls), time.monotonic()
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            elapsed = event_time(calls[name])
            if number >= 0:
                times[name].append(elapsed)
        if number >= 2 and time.monotonic() - spent > limit:
            break
    return times


def event_time(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(HEAD_START_CYCLES)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def host_time(call: Callable[[], object]) -> float:
    """Median milliseconds that a call keeps the host: Python, plan, table and launches."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    torch.cuda.synchronize()
    return percentiles(times)[1]


def kernel_times(call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of one call by kernel; empty where this machine lets nobody profile."""
    call()
    torch.cuda.synchronize()
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize()
        return {event.key: event.self_device_time_total / 1e3 for event in profiler.key_averages()}
    except RuntimeError as error:
        print(f"no times by kernel: {error}")
        return {}


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether torch's float32 products may use TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
