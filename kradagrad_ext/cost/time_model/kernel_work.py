"""The work of the CUDA kernels in one CTA, counted without a GPU, and the time that an SM takes for it.

bench/gpu/kernels/work.py writes the table. Every limit in it is a count, which is converted to cycles by a
rate of the hardware (`gpus`) or by one of the four assumptions here.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("kernel_work.csv")

MMA_FLOPS = {"bf16": 16 * 8 * 16 * 2, "tf32": 16 * 8 * 8 * 2}
"""Flops of one mma.sync by the dtype that it multiplies; both take a tensor core the same time."""

BUSY_FRACTION = 0.80
"""Assumed: the share of time that the busiest of tensor cores, schedulers and shared memory is busy while a
CTA computes. With two warps per scheduler and limits close to each other, each waits for the others."""

PHASE_CYCLES = 100
"""Assumed: the cost of a barrier beside the slots. The last products end and the first reads of the next
phase arrive while nothing else runs: ldmatrix, mma.sync and a store, at about 30 cycles each ("Dissecting
Tensor Cores via Microbenchmarks", arXiv 2206.02874, measures the first two)."""

LATENCY_CYCLES = 500
"""Assumed: the time from a load of global memory to its data. Pointer chasing takes 450 to 500 cycles on idle
GPUs ("Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", arXiv 2402.13499)."""

LOOKUP_CYCLES = 100
"""Assumed: the same for a launch's tables, which every CTA reads: between the L1's 40 and the L2's 265 cycles
(ibid.)."""


@dataclass(frozen=True)
class KernelWork:
    """Means over the CTAs of a call of one kernel.

    Attributes:
        call: side of its blocks, and options.
        mma: mma.sync products of all warps; `mma_most`, `mma_least`: those of one of the four schedulers.
        slots_most, slots_least: instructions that a scheduler issues.
        wavefronts: passes through shared memory, one per cycle.
        bytes: bytes of distinct sectors of global memory.
        exposed_bytes: those of them that are loaded while the CTA has nothing else to do.
        exposed_trips, lookups: consecutive loads of matrices and of tables that the CTA waits for.
        ctas_of_sm: CTAs that an SM holds at once.
    """

    kernel: str
    call: str
    architecture: str
    mma: float
    mma_most: float
    mma_least: float
    slots_most: float
    slots_least: float
    wavefronts: float
    bytes: float
    exposed_bytes: float
    exposed_trips: float
    lookups: float
    barriers: float
    registers: float
    shared_bytes: float
    ctas_of_sm: float

    def limits(self, mma_cycles: float) -> dict[str, float]:
        """Return the cycles that an SM's units are busy for a CTA; `mma_cycles`: cycles per product."""
        return {
            "tensor cores": self.mma_most * mma_cycles,
            "issue slots": self.slots_most,
            "shared memory": self.wavefronts,
        }

    def cycles(self, mma_cycles: float, memory_cycles: float) -> float:
        """Return an SM's cycles for one CTA of many.

        Several CTAs hide each other's waiting: the busiest unit, or memory, is the limit. A single CTA waits
        for its loads, except those issued early; and so do a few CTAs that wait most of their time.

        Args:
            mma_cycles: see `limits`.
            memory_cycles: cycles that the SM's share of the bandwidth takes for the CTA's bytes.
        """
        busy = max(self.limits(mma_cycles).values()) / BUSY_FRACTION
        waiting = self.exposed_trips * LATENCY_CYCLES + self.lookups * LOOKUP_CYCLES
        waiting += self.barriers * PHASE_CYCLES
        waiting += self.exposed_cycles(memory_cycles)
        return max(busy, memory_cycles, (busy + waiting) / self.ctas_of_sm)

    def exposed_cycles(self, memory_cycles: float) -> float:
        """Return the part of `memory_cycles` in which a CTA has nothing else to do."""
        return memory_cycles * self.exposed_bytes / self.bytes


def read() -> list[KernelWork]:
    """Return all rows of the table, whose columns are the fields in their order."""
    with FILE.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [
        KernelWork(kernel, call, architecture, *map(float, counts))
        for kernel, call, architecture, *counts in rows
    ]


@functools.cache
def work_of(kernel: str, architecture: str) -> KernelWork | None:
    """Return the work of a kernel's first call in the table; None if it has none."""
    return next((row for row in read() if (row.kernel, row.architecture) == (kernel, architecture)), None)
