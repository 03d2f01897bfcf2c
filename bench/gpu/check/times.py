"""Times of a case's op by one backend or baseline, the roofline's prediction, and times by kernel."""

from __future__ import annotations

import torch

from bench.gpu.check import factors
from bench.gpu.check.cases import DeviceCase
from bench.gpu.check.inputs import Arguments, copied
from bench.gpu.check.products import tf32
from bench.gpu.check.specs import OURS
from bench.gpu.check.timing import Call, device_times, host_time, kernel_times, nothing
from bench.gpu.check.words import Report, SkippedError
from kradagrad_ext.cost.time_model import predict
from kradagrad_ext.cost.time_model.gpus import gpu_of

ROUNDS, SECONDS = 30, 1.5
OTHERS = ("Mem", "void", "cuda")
"""First letters of the names of kernels from other libraries."""


def measure(case: DeviceCase, column: str, report: Report) -> None:
    """Time one column of a case, and report it as rows."""
    if column == "roofline":
        _predict(case, report)
        return
    if column in ("torch.bmm fp32", "torch.bmm tf32"):
        with tf32(column.endswith("tf32")):
            _time(factors.bmm_products(case.arguments), nothing, report)
        return
    if column == "AdamW fused":
        _time(_adamw(case.arguments), nothing, report)
        return
    call, restore = case.call(column), _restore(case)
    _time(call, restore, report)
    if column in OURS:
        restore()
        report.row("host_ms", host_time(call))
        _by_kernel(call, report)


def _by_kernel(call: Call, report: Report) -> None:
    """Report times by kernel from the profiler, if the machine permits profiling."""
    try:
        times = kernel_times(call)
    except RuntimeError as error:
        print(f"no times by kernel: {error}", flush=True)
        return
    for name, spent in times.items():
        if not name.startswith(OTHERS):
            report.row(f"ms of {name}", spent)


def _time(call: Call, restore: Call, report: Report) -> None:
    times = device_times(call, ROUNDS, SECONDS, restore)
    report.row("ms", *times.spread, note=times.how)


def _restore(case: DeviceCase) -> Call:
    """Return a call that restores the tensors that the op updates in place.

    Without it, factors would grow with every call until they are NaN.
    """
    changed = {name: tensors for name, tensors in case.written().items() if name not in ("out", "norms")}
    kept = {name: copied(tensors) for name, tensors in changed.items() if tensors}

    def restore() -> None:
        written = case.written()
        for name, tensors in kept.items():
            torch._foreach_copy_(written[name], tensors)

    return restore


def _predict(case: DeviceCase, report: Report) -> None:
    gpu = gpu_of(torch.cuda.get_device_name(case.device))
    costs = case.costs()
    if gpu is None or not costs:
        raise SkippedError("this GPU is not in the table of peaks" if gpu is None else "there is none")
    report.row("ms", predict(costs, gpu))
    for kernel in dict.fromkeys(cost.kernel for cost in costs):
        report.row(f"ms of {kernel}", predict([cost for cost in costs if cost.kernel == kernel], gpu))


def _adamw(arguments: Arguments) -> Call:
    """Return a step of fused AdamW on the parameters of an elementwise case."""
    params = [torch.nn.Parameter(tensor.clone()) for tensor in arguments["params"]]
    for param in params:
        param.grad = torch.full_like(param, 1e-3)
    optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True, capturable=True)
    return optimizer.step
