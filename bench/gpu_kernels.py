"""Every kernel on a GPU, CUDA and Triton: verified against float64, timed beside a prediction and rivals.

    python bench/gpu_kernels.py                    # verify and time, a minute or two; appends to a CSV
    python bench/gpu_kernels.py --smoke            # every kernel once on little work, for compute-sanitizer
    python bench/gpu_kernels.py --verify           # accuracy alone

Times are medians of interleaved calls by CUDA events, with their 20th and 80th percentile; the host is given
a head start, so that a call's launches follow one another. Rivals of ``kron_step_``: the reference backend,
and the same products as torch.bmm on contiguous blocks in float32 and in TF32 (one term, so less accurate).
Of the elementwise kernels: AdamW(fused=True) on the same parameters. In the end whole optimizer steps.

Exit status: 0 if all that ran is right; 1 if a result is wrong or an op failed; 2 without a CUDA device.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from common import HERE, Row, append_rows, available_backends, percentiles
from gpu_cases import MEASURED, VERIFIED, Case, cases, smoke_cases
from gpu_step import step_rows
from gpu_timing import Calls, host_time, kernel_times, milliseconds

from kradagrad_ext.cost.gpus import Gpu, gpu_of, predict

OURS = ("native", "triton")
FAILURES: tuple[type[Exception], ...] = (RuntimeError, ValueError, TypeError)
with contextlib.suppress(ImportError):
    from triton.errors import TritonError

    FAILURES += (TritonError,)
ROUNDS, WARMUP = 30, 3
SECONDS_A_CASE = 2.5


def backends(device: torch.device) -> list[str]:
    """Ours, of which each is verified and timed where it can run; the reason is told where it cannot."""
    reasons = {name: available_backends(device)[name] for name in OURS}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"no {name}: {reason}")
    return [name for name, reason in reasons.items() if reason is None]


def each(chosen: Iterable[Case], run: Callable[[Case], bool]) -> bool:
    """Whether all cases ran and were right; a failure is told and does not end the rest."""
    right = True
    for case in chosen:
        try:
            right &= run(case)
        except FAILURES as error:
            print(f"FAIL {case.label}: {type(error).__name__}: {error}", flush=True)
            right = False
        torch.cuda.empty_cache()
    return right


def smoke(device: torch.device) -> bool:
    """Run every kernel once; compute-sanitizer does the looking."""
    names = backends(device)

    def run(case: Case) -> bool:
        for name in names:
            case.call(name)()
            torch.cuda.synchronize()
        print(f"ran  {case.label}: {', '.join(names)}", flush=True)
        return bool(names)

    return each(smoke_cases(device), run)


def verify(device: torch.device) -> bool:
    """The accuracy of every case that is timed, on less work, and of the ragged ones.

    Of these a third of the blocks is inactive, and a CUDA graph must give the same bits.
    """
    names = backends(device)

    def run(case: Case) -> bool:
        errors = {name: case.error(name) for name in names}
        right = bool(errors) and max(errors.values()) <= case.bound
        told = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
        print(f"{'ok  ' if right else 'FAIL'} {case.label}: error {told}, bound {case.bound:.0e}")
        return right

    def run_ragged(case: Case) -> bool:
        case.arguments["active"][1::3] = False
        pairs = {name: zip(case.replayed(name), case.results(name), strict=True) for name in names}
        other = [name for name, both in pairs.items() if not all(torch.equal(*pair) for pair in both)]
        if other:
            print(f"FAIL {case.label}: other bits from a CUDA graph with {', '.join(other)}")
        return run(case) and not other

    right = each(cases(VERIFIED, device), run)
    return each(smoke_cases(device), run_ragged) and right


def adamw(case: Case) -> Calls:
    """AdamW fused on the parameters of an elementwise case."""
    params = [torch.nn.Parameter(tensor.clone()) for tensor in case.arguments["params"]]
    for param in params:
        param.grad = torch.full_like(param, 1e-3)
    return {"AdamW fused": torch.optim.AdamW(params, lr=1e-4, fused=True).step}


def row(case: Case, backend: str, metric: str, values: Sequence[float]) -> Row:
    op = case.label.replace(f" {case.shape} {case.recipe.dtype}", "")
    spread = percentiles(values)
    return Row(op, backend, case.recipe.dtype, case.shape, case.blocks, metric, *spread)


def measure(case: Case, gpu: Gpu | None, ours: Sequence[str]) -> list[Row]:
    """Times of a case and its rivals, and what the roofline says of the CUDA kernels."""
    calls: Calls = {name: case.call(name) for name in (*ours, "reference")} | case.rivals()
    if case.op == "parameter_step_":
        calls |= adamw(case)
    times = milliseconds(calls, ROUNDS, WARMUP, SECONDS_A_CASE)
    rows = [row(case, name, "ms", values) for name, values in times.items()]
    for backend in ours:
        rows.append(row(case, backend, "host_ms", [host_time(calls[backend])]))
        rows += [
            row(case, backend, f"ms of {name}", [spent])
            for name, spent in kernel_times(calls[backend]).items()
            if not name.startswith(("Mem", "void", "cuda"))
        ]
    if gpu and case.costs:
        rows.append(row(case, "roofline", "ms", [predict(case.costs, gpu)]))
        for kernel in dict.fromkeys(cost.kernel for cost in case.costs):
            costs = [cost for cost in case.costs if cost.kernel == kernel]
            rows.append(row(case, "roofline", f"ms of {kernel}", [predict(costs, gpu)]))
    return rows


def told(case: Case, rows: Iterable[Row]) -> str:
    """One line of the table: times, and as multiples of our first those of the others."""
    held = {line.backend: line for line in rows if line.metric == "ms"}
    own = held.pop(next(iter(held)))
    others = "".join(f"  {name} {line.p50:.3f} ({line.p50 / own.p50:.2f}x)" for name, line in held.items())
    return f"{case.label}: {own.p50:.3f} ms [{own.p20:.3f}, {own.p80:.3f}]{others}"


def measure_all(device: torch.device, path: Path) -> bool:
    """Time every case; rows are appended as they come, so that a time limit loses none."""
    gpu = gpu_of(torch.cuda.get_device_name(device))
    print(f"prediction for: {gpu.name if gpu else 'none, this GPU is not in the table of peaks'}")

    ours = backends(device)

    def run(case: Case) -> bool:
        rows = measure(case, gpu, ours)
        append_rows(rows, path)
        print(told(case, rows), flush=True)
        return True

    right = each(cases(MEASURED, device), run)
    rows = step_rows(device, gpu, [*ours, "auto", "reference"])
    append_rows(rows, path)
    for line in rows:
        print(f"{line.op} ({line.backend}): {line.p50:.3f} {line.metric} [{line.p20:.3f}, {line.p80:.3f}]")
    print(f"appended to {path.name}")
    return right


def default_path() -> Path:
    name = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name().lower().removeprefix("nvidia ")).strip("_")
    return HERE / "results" / f"gpu_{name}.csv"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--smoke", action="store_true", help="run every kernel once")
    what.add_argument("--verify", action="store_true", help="compare every kernel with float64")
    parser.add_argument("--csv", type=Path, help="default: bench/results/gpu_<name>.csv")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was run", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    if options.smoke:
        return 0 if smoke(device) else 1
    right = verify(device)
    if not options.verify:
        right &= measure_all(device, options.csv or default_path())
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
