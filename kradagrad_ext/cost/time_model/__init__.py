"""Predicted times of launches on a GPU, from their work and the GPU's peaks; no time is measured.

The time of a kernel follows from the work of its CTAs, which is counted without a GPU (`kernel_work`). If it
is not counted, the time is the larger of bytes over bandwidth and flops over the arithmetic rate (`gpus`).
The few microseconds of overhead of each launch are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kradagrad_ext.cost.work import Cost

from .gpus import GPUS, Gpu
from .kernel_work import MMA_FLOPS, work_of

DEFAULT_GPUS = ("A100", "H100", "B200")

TRAINING_MFU = 0.45
"""Model flops utilisation of the training step that the optimizer's time is compared with."""

TOKENS = 64 * 1024
"""Number of tokens of that training step."""


def predict(costs: Iterable[Cost], gpu: Gpu | str) -> float:
    """Predict the milliseconds of launches on a GPU."""
    gpu = GPUS[gpu] if isinstance(gpu, str) else gpu
    costs = list(costs)
    return sum(milliseconds(cost, gpu)[0] for cost in costs) - saved_by_concurrency(costs, gpu)


def milliseconds(cost: Cost, gpu: Gpu) -> tuple[float, float]:
    """Return the time of one kernel, and the part of it in which CTAs wait for bytes, 0 if it is not counted.

    Without counted work it is the larger of both roofs.
    """
    work = work_of(cost.kernel, gpu.architecture)
    if work is None or not cost.flops:
        memory = 1e3 * cost.bytes / gpu.bandwidth
        arithmetic = 1e3 * sum(flops / gpu.rate(kind) for kind, flops in cost.flops.items())
        return max(memory, arithmetic), 0.0
    ctas = sum(flops / MMA_FLOPS[kind] for kind, flops in cost.flops.items()) / work.mma
    memory = cost.bytes / ctas / gpu.bytes_a_cycle
    each = 1e3 * ctas / (gpu.sms * gpu.clock)
    return each * work.cycles(gpu.mma_cycles, memory), each * work.exposed_cycles(memory)


def saved_by_concurrency(costs: Sequence[Cost], gpu: Gpu) -> float:
    """Return the milliseconds that launches save by sharing the SMs, compared with consecutive launches.

    A guest's bytes are loaded while its host computes. While the host waits for its bytes, the guest takes as
    long as when alone. Both together take at least the time that memory takes for their bytes.
    """
    saved = 0.0
    for kernel in {cost.concurrent_with for cost in costs} - {""}:
        hosts = [cost for cost in costs if cost.kernel == kernel]
        guests = [cost for cost in costs if cost.concurrent_with == kernel]
        if hosts:
            of_hosts = [milliseconds(cost, gpu) for cost in hosts]
            host, guest = sum(time for time, _ in of_hosts), predict(guests, gpu)
            together = host + guest * max(waiting / time for time, waiting in of_hosts)
            memory = 1e3 * sum(cost.bytes for cost in [*hosts, *guests]) / gpu.bandwidth
            saved += max(0.0, host + guest - max(together, memory))
    return saved


def training_step(parameters: int, gpu: Gpu | str, tokens: int = TOKENS) -> float:
    """Return the milliseconds of forward and backward on one GPU, at 6 flops per parameter and token."""
    gpu = GPUS[gpu] if isinstance(gpu, str) else gpu
    return 1e3 * 6 * parameters * tokens / (TRAINING_MFU * 1e12 * gpu.bf16)
