"""Rates of plain copies and matrix products on this GPU: the ceilings for all other measurements."""

from __future__ import annotations

import time

import torch

from bench.gpu.check.products import tf32
from bench.gpu.check.timing import Call, event_time
from bench.gpu.check.words import Report

BYTES, SIDE = 1 << 30, 8192
ROUNDS, SECONDS = 20, 2.0


def measure(name: str, device: torch.device, small: bool, report: Report) -> None:
    """Measure ``copy`` in GB/s read and written, or a ``bf16``, ``fp32`` or ``tf32`` product in Tflop/s."""
    size, side = (BYTES >> 6, SIDE >> 4) if small else (BYTES, SIDE)
    report.fields |= {"op": "ceiling", "backend": "torch", "recipe": name}
    if name == "copy":
        source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        report.fields["shape"] = str(size)
        _rate("GB/s", 2 * size / 1e6, lambda: target.copy_(source), report)
        return
    dtype = torch.bfloat16 if name == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    report.fields |= {"shape": f"{side}x{side}", "dtype": str(dtype).removeprefix("torch.")}
    with tf32(name == "tf32"):
        _rate("Tflop/s", 2 * side**3 / 1e9, lambda: torch.mm(a, b, out=out), report)


def _rate(unit: str, work: float, call: Call, report: Report) -> None:
    """Report the rate of the median time; a rate's 20th percentile belongs to the times' 80th."""
    for _ in range(3):
        call()
    times, start = [], time.monotonic()
    while len(times) < ROUNDS and (len(times) < 5 or time.monotonic() - start < SECONDS):
        times.append(max(event_time(call, 0.05), 1e-6))
    times.sort()
    picked = (times[int(0.8 * len(times))], times[len(times) // 2], times[int(0.2 * len(times))])
    report.row(unit, *(work / spent for spent in picked))
