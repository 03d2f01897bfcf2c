"""The sections of a check in their order, which tasks each has, and how long it may take."""

from __future__ import annotations

import fnmatch
import functools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import specs, tools
from .process import Request, Task
from .specs import Spec

STEP_MODES = ("eager", "sync", "capture", "stream", "tf32", "packed", "bfloat16")
STEP_BACKENDS = ("native", "triton", "auto")
MOST_SPECIALISATIONS = 500
"""More than Triton's kernels have, whose number only a worker can tell."""

MEMCHECKED = {
    "resident_update": ("resident_update_64_bf16x3", "resident_update_128_bf16x3"),
    "resident_precondition": ("resident_precondition_64_bf16x3", "resident_precondition_128_bf16x3"),
    "resident_root": ("resident_root_64_bf16x3", "resident_root_128_bf16x3"),
    "wide": ("wide_update", "wide_precondition", "wide_root"),
    "square_root_product": ("square_root_product_64_tf32x3", "square_root_product_128_bf16x3"),
    "gradient_norms": ("gradient_norms",),
    "start_sides": ("start_sides",),
    "finish_sides": ("finish_sides",),
    "finish_norms": ("finish_norms",),
    "observe_gradients": ("observe_gradients",),
    "accumulate": ("accumulate",),
    "scale_updates": ("scale_updates",),
    "parameter_step": ("parameter_step",),
}
"""What of a kernel's name memcheck looks for, and the tasks whose cases it watches."""
RACECHECKED = {
    "resident_update_64": ("resident_update_64_bf16x3",),
    "resident_precondition_64": ("resident_precondition_64_bf16x3",),
    "resident_root_64": ("resident_root_64_bf16x3",),
    "wide_update": ("wide_update",),
    "square_root_product_64": ("square_root_product_64_tf32x3",),
    "accumulate": ("accumulate",),
}
PROFILED = (
    ("native", "resident_update_128", "kron_step_", 128),
    ("native", "resident_root_128", "polar_roots_", 128),
    ("native", "wide_update", "kron_step_", 256),
    ("native", "square_root_product_128", "kron_step_", 512),
    ("triton", "scaled_product", "kron_step_", 256),
    ("triton", "gram", "kron_step_", 256),
)
"""Backend, kernel, op, side of the blocks."""
NCU_SECTIONS = ("SpeedOfLight", "Occupancy", "WarpStateStats", "MemoryWorkloadAnalysis")


@dataclass(frozen=True)
class Context:
    """What sections go by.

    Attributes:
        only: globs of sections, tasks and cases; all where there are none.
        small: less work, for a dry run.  judged: whether wrong values count.
        inject: of crash, hang, wrong: put between the cases of the first task.
        details: folder for what tools write.
        capability: of the GPU, 90 for 9.0.  sanitizer_help: what compute-sanitizer says of its options.
    """

    only: tuple[str, ...] = ()
    small: bool = False
    judged: bool = True
    inject: tuple[str, ...] = ()
    seed: int = 0
    device: str = "cuda"
    details: Path = field(default_factory=Path)
    capability: int = 90
    sanitizer_help: str = ""

    def message(self, work: str, case: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        shared = {"device": self.device, "seed": self.seed, "judged": self.judged, "small": self.small}
        return {"work": work, "case": case, **shared, **more}


@dataclass(frozen=True)
class Section:
    """Tasks of one kind, and the limits that they have.

    Attributes:
        seconds: of the section at most.  case_seconds: of a case.  lanes: processes at a time.
        tool: what must be there, beside torch.  native: whether it needs the native library.
    """

    name: str
    seconds: float
    case_seconds: float
    lanes: int
    tasks: Callable[[Context], list[Task]]
    tool: str | None = None
    native: bool = False

    def chosen(self, context: Context) -> list[Task]:
        """The tasks, with what `only` leaves of them."""
        tasks = self.tasks(context)
        if not context.only or _matches(context.only, self.name):
            return tasks
        chosen = []
        for task in tasks:
            own = f"{self.name}/{task.name}"
            left = [r for r in task.requests if _matches(context.only, own, f"{self.name}/{r.name}")]
            if left:
                chosen.append(replace(task, requests=tuple(left)))
        return chosen


def _matches(globs: Sequence[str], *names: str) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in globs)


def ceilings(context: Context) -> list[Task]:
    names = ("copy", "bf16", "fp32", "tf32")
    return [Task("ceilings", tuple(Request(name, context.message("ceiling", name)) for name in names))]


def _checks(backend: str, groups: dict[str, tuple[Spec, ...]], context: Context) -> list[Task]:
    tasks = []
    for task, own in groups.items():
        requests = [
            Request(f"{task}/{spec.name}", context.message("check", spec.name, backend=backend, small=False))
            for spec in own
        ]
        tasks.append(Task(task, tuple(requests)))
    return tasks


def native(context: Context) -> list[Task]:
    """Every CUDA kernel in a process of its own."""
    tasks = _checks("native", specs.NATIVE, context)
    made = tuple(Request(f"made to {name}", context.message(name, name)) for name in context.inject)
    first = tasks[0].requests
    return [replace(tasks[0], requests=(first[0], *made, *first[1:])), *tasks[1:]]


def triton(context: Context) -> list[Task]:
    return _checks("triton", specs.TRITON, context)


def steps(context: Context) -> list[Task]:
    """By backend."""
    return [
        Task(
            backend,
            tuple(
                Request(f"{backend}/{mode}", context.message("steps", mode, backend=backend))
                for mode in STEP_MODES
            ),
        )
        for backend in STEP_BACKENDS
    ]


def times(context: Context) -> list[Task]:
    """One process for all, so that its start is paid once; every column of a case is a request of its own."""
    requests = [
        Request(f"{spec.name}/{column}", context.message("time", spec.name, backend=column))
        for spec in specs.TIMES
        for column in specs.columns(spec.op)
    ]
    return [Task("times", tuple(requests))]


def gpt2(context: Context) -> list[Task]:
    """One process for all; what is least like a rival comes last."""
    ours, blocks = ("native", "triton", "auto"), specs.GPT2_BLOCKS
    names = [f"{block}/{backend}/{how}" for how in ("eager", "graph") for block in blocks for backend in ours]
    names += [
        "adamw",
        *(f"{block}/{backend}/eager" for backend in ("roofline", "reference") for block in blocks),
    ]
    return [Task("gpt2", tuple(Request(name, context.message("gpt2", name)) for name in names))]


def _under(tool: str, name: str, task: Task, filters: tuple[str, ...], context: Context) -> Task:
    """A task's cases in one process under compute-sanitizer."""
    log = context.details / f"{tool}-{name}.txt"
    command = ("compute-sanitizer", "--tool", tool, "--log-file", str(log), "--print-limit", "20", *filters)
    # Without the caching allocator every tensor is an allocation of its own, whose bounds are watched.
    environment = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    read = functools.partial(tools.read_sanitizer, tool, name, log)
    return Task(name, task.requests, command, environment, read)


def under_memcheck(task: Task, context: Context) -> Task:
    """A task of another section, with its eyes on every kernel."""
    return _under("memcheck", re.sub(r"[^\w.-]+", "-", task.name), task, (), context)


def _watched(tool: str, kernels: dict[str, tuple[str, ...]], most: int, context: Context) -> list[Task]:
    """Small cases, of which the tool looks at some kernels only."""
    # The option was named anew; the help tells which one this version has.
    option = "--kernel-name" if "--kernel-name " in context.sanitizer_help else "--kernel-regex"
    tasks = []
    for kernel, groups in kernels.items():
        chosen = [spec for group in groups for spec in specs.NATIVE[group][:most]]
        requests = [
            Request(f"{kernel}/{spec.name}", context.message("run", spec.name, backend="native", small=False))
            for spec in dict.fromkeys(chosen)
        ]
        filters = (option, f"kernel_substring={kernel}")
        tasks.append(_under(tool, kernel, Task(kernel, tuple(requests)), filters, context))
    return tasks


def memcheck(context: Context) -> list[Task]:
    return _watched("memcheck", MEMCHECKED, 4, context)


def racecheck(context: Context) -> list[Task]:
    return _watched("racecheck", RACECHECKED, 1, context)


def ncu(context: Context) -> list[Task]:
    tasks = []
    for backend, kernel, op, side in PROFILED:
        spec = next(spec for spec in specs.TIMES if spec.op == op and spec.blocks == ((side, side),))
        report = context.details / f"ncu-{backend}-{kernel}.csv"
        command = ["ncu", "--clock-control", "none", "--csv", "--page", "details", "--log-file", str(report)]
        command += [part for name in NCU_SECTIONS for part in ("--section", name)]
        command += ["--kernel-name", f"regex:^{kernel}", "--launch-count", "1"]
        request = Request(f"{backend}/{kernel}", context.message("run", spec.name, backend=backend))
        read = functools.partial(tools.read_profile, backend, kernel, report)
        tasks.append(Task(f"{backend}-{kernel}", (request,), tuple(command), read=read))
    return tasks


def compilation(context: Context) -> list[Task]:
    """Triton's kernels, one a task: any process takes the next one."""
    tasks = []
    for name in map(str, range(MOST_SPECIALISATIONS)):
        message = context.message("compile", name, capability=context.capability)
        tasks.append(Task(name, (Request(name, message),), numbered=True))
    return tasks


SECTIONS = (
    Section("ceilings", 30, 20, 1, ceilings),
    Section("native", 75, 30, 4, native, native=True),
    Section("triton", 75, 40, 4, triton),
    Section("steps", 50, 30, 3, steps),
    Section("times", 150, 20, 1, times),
    Section("gpt2", 60, 25, 1, gpt2),
    Section("memcheck", 60, 50, 8, memcheck, tool="compute-sanitizer", native=True),
    Section("racecheck", 45, 40, 3, racecheck, tool="compute-sanitizer", native=True),
    Section("ncu", 50, 40, 2, ncu, tool="ncu"),
)


def missing_tool(section: Section) -> str | None:
    """Why a section cannot run on this machine."""
    if section.tool is None or shutil.which(section.tool):
        return None
    return f"there is no {section.tool} on PATH"


def compile_lanes() -> int:
    """Processes that compile in the background: a dozen of sixteen cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(12, cores - 4, cores))


def names(context: Context) -> Iterator[str]:
    """Every case of every section, as --only takes it."""
    for section in SECTIONS:
        for task in section.chosen(context):
            yield from (f"{section.name}/{request.name}" for request in task.requests)
