"""The sections of a check in order, with their tasks and time limits."""

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

from bench.gpu.check import specs, tools
from bench.gpu.check.process import Request, Task
from bench.gpu.check.specs import CaseSpec

STEP_MODES = ("eager", "sync", "capture", "stream", "tf32", "packed", "bfloat16")
STEP_BACKENDS = ("native", "triton", "auto")
MOST_SPECIALISATIONS = 500
"""Upper limit on the specialisations of Triton's kernels; only a worker knows their number."""

MEMCHECKED = {
    "resident_update": ("resident_update_64_bf16x3", "resident_update_128_bf16x3"),
    "resident_precondition": ("resident_precondition_64_bf16x3", "resident_precondition_128_bf16x3"),
    "resident_root": ("resident_root_64_bf16x3", "resident_root_128_bf16x3"),
    "wide": ("wide_update", "wide_precondition", "wide_root"),
    "square_root_product": ("square_root_product_64_tf32x3", "square_root_product_128_bf16x3"),
    **{name: (name,) for name in specs.NATIVE if not name.startswith(("resident", "wide", "square_root"))},
}
"""Part of the kernel's name that memcheck filters by, and the tasks whose cases it runs."""
RACECHECKED = {
    "resident_update_64": ("resident_update_64_bf16x3",),
    "resident_precondition_64": ("resident_precondition_64_bf16x3",),
    "resident_root_64": ("resident_root_64_bf16x3",),
    "wide_update": ("wide_update",),
    "square_root_product_64": ("square_root_product_64_tf32x3",),
    "update_moments": ("update_moments",),
}
PROFILED = (
    ("native", "resident_update_128", "kron_step_", 128),
    ("native", "resident_root_128", "polar_roots_", 128),
    ("native", "wide_update", "kron_step_", 256),
    ("native", "square_root_product_128", "kron_step_", 512),
    ("triton", "scaled_product", "kron_step_", 256),
    ("triton", "gram", "kron_step_", 256),
)
"""Backend, kernel, op and block side of each profiled case."""
NCU_SECTIONS = ("SpeedOfLight", "Occupancy", "WarpStateStats", "MemoryWorkloadAnalysis")


@dataclass(frozen=True)
class Context:
    """Options of a run that sections use.

    Attributes:
        only: globs of sections, tasks and cases; empty for all.
        small: less work, for a dry run.  judged: True if wrong values count.
        inject: failures (crash, hang, wrong) to add to the cases of the first task.
        details: folder for the files of tools.
        capability: the GPU's, 90 for 9.0.  sanitizer_help: compute-sanitizer's help text.
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
    """Tasks of one kind, and their limits.

    Attributes:
        seconds: limit of the section.  case_seconds: limit of a case.  lanes: parallel processes.
        tool: required program.  native: True if the section needs the native library.
    """

    name: str
    seconds: float
    case_seconds: float
    lanes: int
    tasks: Callable[[Context], list[Task]]
    tool: str | None = None
    native: bool = False

    def chosen(self, context: Context) -> list[Task]:
        """Return the tasks, with only the cases that `only` matches."""
        tasks = self.tasks(context)
        if not context.only or _matches(context.only, self.name):
            return tasks
        chosen = []
        for task in tasks:
            full_name = f"{self.name}/{task.name}"
            left = [r for r in task.requests if _matches(context.only, full_name, f"{self.name}/{r.name}")]
            if left:
                chosen.append(replace(task, requests=tuple(left)))
        return chosen


def _matches(globs: Sequence[str], *names: str) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in globs)


def ceilings(context: Context) -> list[Task]:
    names = ("copy", "bf16", "fp32", "tf32")
    return [Task("ceilings", tuple(Request(name, context.message("ceiling", name)) for name in names))]


def _checks(backend: str, groups: dict[str, tuple[CaseSpec, ...]], context: Context) -> list[Task]:
    tasks = []
    for task, cases in groups.items():
        requests = [
            Request(f"{task}/{spec.name}", context.message("check", spec.name, backend=backend, small=False))
            for spec in cases
        ]
        tasks.append(Task(task, tuple(requests)))
    return tasks


def native(context: Context) -> list[Task]:
    """Return a task, and so a process, per CUDA kernel."""
    tasks = _checks("native", specs.NATIVE, context)
    made = tuple(Request(f"made to {name}", context.message(name, name)) for name in context.inject)
    first = tasks[0].requests
    return [replace(tasks[0], requests=(first[0], *made, *first[1:])), *tasks[1:]]


def triton(context: Context) -> list[Task]:
    return _checks("triton", specs.TRITON, context)


def steps(context: Context) -> list[Task]:
    """Return a task per backend."""
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
    """Return one task, so that a process starts only once, with a request per column of every case."""
    requests = [
        Request(f"{spec.name}/{column}", context.message("time", spec.name, backend=column))
        for spec in specs.TIMES
        for column in specs.columns(spec.op)
    ]
    return [Task("times", tuple(requests))]


def gpt2(context: Context) -> list[Task]:
    """Return one task; the comparisons come last."""
    ours, blocks = ("native", "triton", "auto"), specs.GPT2_BLOCKS
    names = [f"{block}/{backend}/{how}" for how in ("eager", "graph") for block in blocks for backend in ours]
    names += [
        "adamw",
        *(f"{block}/{backend}/eager" for backend in ("roofline", "reference") for block in blocks),
    ]
    return [Task("gpt2", tuple(Request(name, context.message("gpt2", name)) for name in names))]


def _under(tool: str, name: str, task: Task, filters: tuple[str, ...], context: Context) -> Task:
    """Return a task with the same cases in one process under compute-sanitizer."""
    log = context.details / f"{tool}-{name}.txt"
    command = ("compute-sanitizer", "--tool", tool, "--log-file", str(log), "--print-limit", "20", *filters)
    # Without the caching allocator every tensor is a separate allocation, whose bounds are checked.
    environment = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    read = functools.partial(tools.read_sanitizer, tool, name, log)
    return Task(name, task.requests, command, environment, read)


def under_memcheck(task: Task, context: Context) -> Task:
    """Return a task of another section under memcheck, which checks every kernel."""
    return _under("memcheck", re.sub(r"[^\w.-]+", "-", task.name), task, (), context)


def _watched(tool: str, kernels: dict[str, tuple[str, ...]], most: int, context: Context) -> list[Task]:
    """Return tasks of small cases in which the tool checks only some kernels."""
    # The option's name depends on the version of the tool; the help text has it.
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
    """Return a task per specialisation of Triton's kernels: any process takes the next one."""
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
    """Return why a section cannot run on this machine; None if its tool exists."""
    if section.tool is None or shutil.which(section.tool):
        return None
    return f"there is no {section.tool} on PATH"


def compile_lanes() -> int:
    """Return the number of processes that compile in the background: 12 on 16 cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(12, cores - 4, cores))


def names(context: Context) -> Iterator[str]:
    """Yield the names of all cases of all sections, as --only takes them."""
    for section in SECTIONS:
        for task in section.chosen(context):
            yield from (f"{section.name}/{request.name}" for request in task.requests)
