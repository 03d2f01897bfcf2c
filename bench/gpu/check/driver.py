"""The driver: it runs the sections in order under one deadline; a failed section does not stop the others."""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from bench.gpu.check import package, sections, tables
from bench.gpu.check.options import parser
from bench.gpu.check.pool import run_tasks
from bench.gpu.check.process import Launcher, Request, Task
from bench.gpu.check.record import CSV, Record
from bench.gpu.check.sections import Context, Section
from bench.gpu.check.words import FAIL, NOT_RUN, PASS, SKIP

ROOT = package.ROOT
END_SECONDS = 15
"""Part of the deadline reserved for plots, summary and archive."""
BUILD_SECONDS, COMPILE_SECONDS = 240, 240
CPU_SLOWER, MEMCHECK_SLOWER = 6, 10
"""Factors on the time limit of a case on a CPU, and under compute-sanitizer."""
ON_CPU = ("native", "steps")
"""Sections that make sense without a GPU."""


class Check:
    """One run of the check."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.work: Path = options.work.resolve()
        self.folder = self.work / "package"
        shutil.rmtree(self.work / "details", ignore_errors=True)  # keeps Triton's cache
        self.options = options
        self.record = Record(options.out.resolve(), self.work / "details")
        self.end = self.record.start + options.deadline - END_SECONDS
        self.record.circumstances["git_sha"] = package.git_sha() or package.bundled_sha(options.bundle)
        self.context = Context(
            only=options.only,
            small=options.dry_run,
            judged=not options.dry_run,
            inject=options.inject,
            seed=random.randrange(2**31) if options.seed is None else options.seed,
            device=options.device,
            details=self.record.details,
        )
        command = (
            options.worker.split()
            if options.worker
            else [sys.executable, "-u", "-m", "bench.gpu.check.worker"]
        )
        self.launcher = Launcher(command, self._environment(), self.folder, self.record)
        self.building: threading.Thread | None = None
        self.builder: subprocess.Popen[str] | None = None

    def _environment(self) -> dict[str, str]:
        """Return the workers' environment: the laid out folder, a Triton cache, no network, no buffering."""
        paths = [str(self.folder), os.environ.get("PYTHONPATH", "")]
        added = {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUNBUFFERED": "1",
            "PIP_NO_INDEX": "1",
            "TRITON_CACHE_DIR": str(self.work / "triton"),
            "PATH": os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"]),
        }
        added |= {"CUDA_LAUNCH_BLOCKING": "1"} if self.options.blocking else {}
        added |= {"KRADAGRAD_DRY_RUN": "1"} if self.options.dry_run else {}
        inherited = {name: value for name, value in os.environ.items() if name != "KRADAGRAD_BACKEND"}
        return inherited | added

    def run(self) -> int:
        """Run the whole check and return the exit status."""
        try:
            self._look()
            package.lay_out(self.folder, with_package=not self.options.installed)
            self._compile()
            self._library()
            if not self._machine():
                return 2 if self.options.device == "cuda" and not self.record.found else 1
            for section in self._order():
                self._guarded(section)
        finally:
            self._finish()
        return 1 if self.record.failed else 0

    def _look(self) -> None:
        """Log the machine's description of its GPU and find the architecture before torch is imported."""
        self.record.say(f"inputs from seed {self.context.seed}, {self.options.deadline:.0f} s in all")
        os.environ["PATH"] = self.launcher.environment["PATH"]
        for command in (["nvidia-smi"], ["nvcc", "--version"], ["ncu", "--version"]):
            output(command, self.record)
        listed = output(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], self.record)
        capability = "".join(filter(str.isdigit, next(iter(listed.splitlines()), "")))
        sanitizer_help = output(["compute-sanitizer", "--help"], None)
        self.context = dataclasses.replace(
            self.context, capability=int(capability or 90), sanitizer_help=sanitizer_help
        )

    def _library(self) -> None:
        """Put the first usable native library into the package; without one, build it in the background."""
        if self.options.installed or self.options.worker:
            return
        folder, bundle, tree = self.folder, self.options.bundle.resolve(), ROOT / "kradagrad_ext"
        for place, look in (
            (bundle, lambda: f"bundle, built from {package.check(bundle)['git_sha']}"),
            (tree, lambda: f"the tree's, for {package.installed(self.options.device)['native']}"),
        ):
            try:
                description = look()
                package.put_library(folder, place)
                reason = package.loads(sys.executable, folder, self.launcher.environment)
            except package.PackageError as error:
                self.record.say(str(error))
                continue
            if reason is None:
                self.record.verdict("library", "ready", PASS, description)
                return
            package.take_library(folder)
            self.record.say(f"{description}: it does not load: {reason}")
        self._build(folder)

    def _build(self, folder: Path) -> None:
        if shutil.which("nvcc") is None:
            self.record.verdict(
                "library", "build", SKIP, "there is no usable library, and no nvcc to build one"
            )
            return

        def build() -> None:
            major_minor = f"{self.context.capability // 10}.{self.context.capability % 10}"
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", major_minor)
            try:
                package.build(sys.executable, self.work / "bundle", started=self._take_builder)
                package.put_library(folder, self.work / "bundle")
                reason = package.loads(sys.executable, folder, self.launcher.environment)
            except package.PackageError as error:
                reason = str(error)
            if not self.launcher.stopped:
                self.record.verdict("library", "build", FAIL if reason else PASS, reason or "built here")

        self.building = threading.Thread(target=build, daemon=True)
        self.building.start()

    def _take_builder(self, process: subprocess.Popen[str]) -> None:
        """Keep the process of the build, which must not outlive the check."""
        self.builder = process
        if self.launcher.stopped:
            package.end(process)

    def _compile(self) -> None:
        """Compile Triton's kernels in the background, from the first second."""
        users = [section for section in sections.SECTIONS if section.name not in ("ceilings", "native")]
        if self.options.device != "cuda" or not any(section.chosen(self.context) for section in users):
            return
        lanes, until = sections.compile_lanes(), min(self.end, time.monotonic() + COMPILE_SECONDS)
        limit = (CPU_SLOWER if self.options.dry_run else 1) * 60.0
        arguments = (self.launcher, "compile", sections.compilation(self.context), lanes, limit, until)
        threading.Thread(target=run_tasks, args=arguments, daemon=True).start()

    def _machine(self) -> bool:
        """Describe the device, for every row; return False if there is none."""
        request = Request("facts", self.context.message("machine", "facts"), 60.0)
        run_tasks(self.launcher, "machine", [Task("facts", (request,))], 1, 60.0, self.end)
        for name, reason in self.record.found.get("backends", {}).items():
            self.record.say(f"backend {name}: {reason}")
        return bool(self.record.found)

    def _order(self) -> list[Section]:
        """Return the sections in order; during a build, those that need no native library come first."""
        if self.building is None:
            return list(sections.SECTIONS)
        first = [section for section in sections.SECTIONS if section.name in ("ceilings", "triton")]
        return first + [section for section in sections.SECTIONS if section not in first]

    def _guarded(self, section: Section) -> None:
        """Run a section; an error in it does not end the others."""
        try:
            self._section(section)
        except Exception as error:  # noqa: BLE001
            self.record.log(traceback.format_exc(), section.name)
            self.record.verdict(section.name, "all", FAIL, f"{type(error).__name__}: {error}")

    def _section(self, section: Section) -> None:
        if self.building is not None and section.name not in ("ceilings", "triton"):
            self.building.join(max(min(BUILD_SECONDS, self.end - time.monotonic()), 0.0))
            self.building = None
        tasks = section.chosen(self.context)
        if not tasks:
            return
        reason = self._reason(section)
        if reason is not None:
            self.record.verdict(section.name, "all", *reason)
            return
        by_cpu = self.options.dry_run or self.options.device == "cpu"
        slower = MEMCHECK_SLOWER if self.options.memcheck else CPU_SLOWER if by_cpu else 1
        left = self.end - time.monotonic()
        # With --only, a section may use all remaining time.
        seconds = left if self.context.only else min(slower * section.seconds, left)
        self.record.say(f"{self.record.elapsed():5.0f} s  {section.name}, at most {max(seconds, 0):.0f} s")
        if self.options.memcheck and not tasks[0].command:
            tasks = [sections.under_memcheck(task, self.context) for task in tasks]
        limit = self.options.case_seconds or slower * section.case_seconds
        run_tasks(self.launcher, section.name, tasks, section.lanes, limit, time.monotonic() + seconds)

    def _reason(self, section: Section) -> tuple[str, str] | None:
        """Return the verdict and the reason for leaving a section out; None if it can run."""
        if self.options.device == "cpu" and section.name not in ON_CPU:
            return SKIP, "it needs a GPU"
        missing = sections.missing_tool(section)
        if missing is not None:
            return SKIP, missing
        refused = self.record.found.get("backends", {}).get("native", "usable")
        if section.native and refused != "usable" and not self._built_later():
            return FAIL, f"the native backend cannot run: {refused}"
        if time.monotonic() >= self.end:
            return NOT_RUN, "no time was left"
        return None

    def _built_later(self) -> bool:
        """Return True if the library was built after the machine was described."""
        return (self.folder / "kradagrad_ext" / package.LIBRARY).exists()

    def _finish(self) -> None:
        """End the remaining processes and write the remaining files, the summary first."""
        self.launcher.end_all()
        if self.builder is not None:
            package.end(self.builder)
        try:
            text = "\n\n".join(table.text() for table in tables.tables(tables.words(self.record.rows)))
        except (KeyError, ValueError) as error:
            text = f"no tables: {error!r}"
        summary = self.record.write_summary(text)
        if not self.options.worker:
            csv, folder = self.record.folder / CSV, self.record.folder
            plot = [sys.executable, "-m", "bench.gpu.check.plots", str(csv), "--out", str(folder)]
            limit = (CPU_SLOWER if self.options.dry_run else 1) * END_SECONDS
            output(plot, self.record, self.launcher.environment, self.folder, limit)
        self.record.archive()
        self.record.close()
        print(f"\n{summary}", flush=True)


def output(
    command: Sequence[str],
    record: Record | None,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
    limit: float = 10.0,
) -> str:
    """Run a command, log its output and return it; return an empty text if it cannot run."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=limit, env=environment, cwd=folder,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        if record is not None:
            record.log(f"{command[0]}: {error}")
        return ""
    for line in done.stdout.splitlines() if record is not None else ():
        record.log(line, Path(command[0]).name)
    return done.stdout if done.returncode == 0 else ""


def stop(number: int, frame: FrameType | None) -> None:
    """End the check in order: write the files and end the workers."""
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.list:
        print("\n".join(sections.names(Context(only=options.only, inject=options.inject))))
        return 0
    signal.signal(signal.SIGTERM, stop)
    return Check(options).run()
