"""Memory of a step beyond the optimizer's state, measured twice.

`allocated` follows torch's allocator through the profiler: the peak of a step's allocations, and the tensors
that the optimizer keeps between steps without saving them. `resident` reads the process's memory from the
operating system. It includes buffers that C++ code allocates by malloc, but counts pages and includes the
allocator's overhead.

    python -m bench.steps.memory        # the child process of `resident`; prints JSON
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.profiler import ProfilerActivity, profile

from bench.common import ROOT, usable_backends
from bench.steps.baselines import BLOCK, ROOT_EVERY, Contender, kradagrad
from bench.workload import gradient

# At the default log level, the profiler's library prints its start and stop on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

STATUS = Path("/proc/self/status")
CLEAR_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Memory:
    """Bytes beyond parameters, gradients and state: kept between steps, and peaks of two kinds of step."""

    kept: int
    plain_step: int
    root_step: int


def storage_bytes(tensors: list[Tensor]) -> dict[int, int]:
    """Return the bytes of each storage, by address."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}


def live_storages() -> dict[int, int]:
    gc.collect()
    return storage_bytes([o for o in gc.get_objects() if type(o) in (Tensor, Parameter)])


def state_storages(optimizer: torch.optim.Optimizer) -> dict[int, int]:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return storage_bytes([value for value in values if isinstance(value, Tensor)])


def peak_of_step(contender: Contender, grads: list[Tensor]) -> int:
    """Return the peak of bytes allocated during one step, relative to its start."""
    for param, grad in zip(contender.params, grads, strict=True):
        param.grad = grad
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        contender.optimizer.step()
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    balance = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        balance += event.nbytes()
        peak = max(peak, balance)
    return peak


def allocated(contender: Contender) -> Memory:
    """Measure memory by torch's allocator, on the step before the second refresh of the roots and at it."""
    contender.start()
    before = live_storages()
    for step in range(1, 2 * ROOT_EVERY - 1):
        contender.step(contender.workload.gradients(step), record=False)
    for param in contender.params:
        param.grad = None
    after = live_storages().keys() - before.keys() - state_storages(contender.optimizer).keys()
    kept = sum(size for address, size in live_storages().items() if address in after)
    plain = peak_of_step(contender, contender.workload.gradients(2 * ROOT_EVERY - 1))
    root = peak_of_step(contender, contender.workload.gradients(2 * ROOT_EVERY))
    contender.finish()
    return Memory(kept, plain, root)


def status_bytes(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return 1024 * int(line.split()[1])


def resident_here(contender: Contender) -> Memory:
    """Measure memory by the resident set of this process, which must do nothing else; Linux only.

    One block is stepped first, because code, imports and the threads' buffers do not depend on the model.
    """
    warm = torch.nn.Parameter(torch.zeros(BLOCK, BLOCK))
    warm.grad = gradient((BLOCK, BLOCK), 0, 0)
    contender.factory([warm]).step()
    contender.start()
    grads = contender.workload.gradients(0)
    for param, grad in zip(contender.params, grads, strict=True):
        param.grad = grad
    before = status_bytes("VmRSS")
    for _ in range(ROOT_EVERY + 1):
        contender.optimizer.step()
    state = sum(state_storages(contender.optimizer).values())
    between = status_bytes("VmRSS")
    peaks = []
    for steps in (1, ROOT_EVERY - 2):
        CLEAR_PEAK.write_text("5")
        for _ in range(steps):
            contender.optimizer.step()
        peaks.append(status_bytes("VmHWM") - between)
    return Memory(between - before - state, *peaks)


def resident() -> Memory | None:
    """Measure memory by the resident set of a child process; None if the kernel does not report it."""
    if not CLEAR_PEAK.exists():
        return None
    # Freed memory returns to the kernel at once, so that the resident set follows the memory in use.
    environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    child = subprocess.run(
        [sys.executable, "-m", "bench.steps.memory"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return Memory(**json.loads(child.stdout.splitlines()[-1]))


if __name__ == "__main__":
    chosen = kradagrad("default", usable_backends()[0])
    print(json.dumps(vars(resident_here(chosen))))
