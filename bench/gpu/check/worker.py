"""A process that runs the driver's cases consecutively (pool.py): `python -m bench.gpu.check.worker`.

Requests come as lines of JSON on stdin, or as arguments; answers go to stdout (words.py). All other output
goes to stderr, which the driver writes to its log.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import IO, Any

from bench.gpu.check.words import ExhaustedError, Report, SkippedError

Request = dict[str, Any]
THREADS = 2  # many workers share the cores


def answers() -> IO[str]:
    """Reserve stdout for answers and return it; redirect other output on stdout to stderr."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream


def requests(arguments: list[str]) -> Iterator[Request]:
    """Yield the requests of the command line, or of stdin as they arrive."""
    for line in arguments or iter(sys.stdin.readline, ""):
        yield json.loads(line)


def device_of(request: Request) -> Any:  # noqa: ANN401
    import torch

    return torch.device(request.get("device", "cuda"))


def spec_of(request: Request) -> Any:  # noqa: ANN401
    from bench.gpu.check.specs import SPECS

    spec = SPECS[request["case"]]
    return spec.small() if request.get("small") else spec


def case_of(request: Request, report: Report) -> Any:  # noqa: ANN401
    """Make the request's case on its device; set its fields in the report."""
    from bench.gpu.check.cases import DeviceCase

    spec = spec_of(request)
    case = DeviceCase(spec, device_of(request), request["seed"])
    report.fields |= {
        "op": spec.op,
        "backend": request["backend"],
        "recipe": spec.recipe,
        "dtype": spec.dtype,
        "shape": spec.size,
        "blocks": case.count,
    }
    return case


def do_machine(request: Request, report: Report) -> list[str]:
    from bench.gpu.check import machine

    machine.describe(device_of(request), report)
    return []


def do_compile(request: Request, report: Report) -> list[str]:
    from bench.gpu.check import compiling

    print(compiling.compile_one(int(request["case"]), request["capability"]), flush=True)
    return []


def do_ceiling(request: Request, report: Report) -> list[str]:
    from bench.gpu.check import ceilings

    ceilings.measure(request["case"], device_of(request), bool(request.get("small")), report)
    return []


def do_check(request: Request, report: Report) -> list[str]:
    from bench.gpu.check import correctness

    return correctness.check(case_of(request, report), request["backend"], report)


def do_steps(request: Request, report: Report) -> list[str]:
    from bench.gpu.check import trajectory

    mode, backend = request["case"], request["backend"]
    report.fields |= {"op": "30 steps", "backend": backend, "recipe": mode}
    return trajectory.check(
        backend, mode, device_of(request), request["seed"], bool(request.get("small")), report
    )


def do_time(request: Request, report: Report) -> list[str]:
    from bench.gpu.check import times

    times.measure(case_of(request, report), request["backend"], report)
    return []


def do_gpt2(request: Request, report: Report) -> list[str]:
    from bench.gpu.check import gpt2

    gpt2.measure(request["case"], device_of(request), 1 if request.get("small") else None, report)
    return []


def do_run(request: Request, report: Report) -> list[str]:
    """Run only the op, for tools that observe it."""
    case = case_of(request, report)
    case.call(request["backend"])()
    synchronize()
    return []


def do_crash(request: Request, report: Report) -> list[str]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return []


def do_hang(request: Request, report: Report) -> list[str]:
    while True:
        time.sleep(60)


def do_wrong(request: Request, report: Report) -> list[str]:
    report.judged = True  # in a dry run, too
    return ["it was made wrong on purpose"]


WORK: dict[str, Callable[[Request, Report], list[str]]] = {
    name.removeprefix("do_"): function for name, function in list(globals().items()) if name.startswith("do_")
}


def synchronize() -> None:
    """Wait for the GPU, if one was used. Raise RuntimeError after an error on it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def forget() -> None:
    """Free the GPU memory of one case for the next one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def usable() -> bool:
    """Return True if the GPU still works: after an illegal access, every later call in the process fails."""
    try:
        synchronize()
    except RuntimeError as error:
        print(f"this process ends, the GPU answers no more: {error}", flush=True)
        return False
    return True


def answer(request: Request, report: Report, compiled: Callable[[], str]) -> bool:
    """Run one case; an exception is its verdict. Return True if this process can run another case."""
    report.fields = {}
    report.judged = request.get("judged", True)
    start = time.monotonic()
    try:
        wrong = WORK[request["work"]](request, report)
        synchronize()
        remarks = [f"{time.monotonic() - start:.1f} s"] + [words for words in [compiled()] if words]
        report.end(wrong, ", ".join(remarks))
    except ExhaustedError:
        report.exhausted()
    except SkippedError as reason:
        report.skipped(str(reason))
    except Exception as error:  # noqa: BLE001  (it is reported, and costs only this case)
        traceback.print_exc()
        can_continue = usable()
        report.failed(f"{type(error).__name__}: {first_line(error)}", last=not can_continue)
        return can_continue
    return True


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def watch_triton() -> Callable[[], str]:
    """Return a function that reports Triton's cache hits since its last call; empty without Triton."""
    with contextlib.suppress(ImportError):
        from bench.gpu.check.compiling import Compiled

        return Compiled().taken
    return lambda: ""


def main() -> int:
    report = Report(answers())
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # prints the stack of a hung worker on request
    try:
        import torch

        import kradagrad_ext  # noqa: F401
    except (ImportError, OSError) as error:
        report.failed(f"the worker cannot start: {error}")
        return 1
    torch.set_num_threads(THREADS)
    compiled = watch_triton()
    report.send(ready=True)
    for request in requests(sys.argv[1:]):
        if not answer(request, report, compiled):
            return 1
        forget()
    return 0


if __name__ == "__main__":
    sys.exit(main())
