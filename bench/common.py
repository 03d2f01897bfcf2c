"""Measurement, verification and recording, shared by all benches.

A result is verified against the float64 reference before it is timed. Times come from interleaved repeats
after a warm-up; the 20th, 50th and 80th percentile are reported. Each run appends rows to one tidy CSV, which
is a file that git tracks only with `--record`.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kradagrad_ext.backends import available_backends

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "bench/results"
"""Folder of the results that git tracks."""

UNRECORDED = ROOT / "build/bench"
"""Folder of all other results."""

BENCHMARKS = "benchmarks.csv"
RECORD_HELP = "write to the files that git tracks: "
MEASURED = ("op", "backend", "dtype", "shape", "blocks", "metric", "p20", "p50", "p80")
CIRCUMSTANCES = ("git_sha", "machine", "versions", "date")


@dataclass(frozen=True)
class Row:
    """One measured quantity of one op: its percentiles and a description of the measurement."""

    op: str
    backend: str
    dtype: str
    shape: str
    blocks: int
    metric: str
    p20: float
    p50: float
    p80: float


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the 20th, 50th and 80th percentile, by linear interpolation."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleave(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 2,
    prepare: Callable[[str], object] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of every call. A round times all calls once; each round starts with another call.

    Args:
        calls: functions to time, by name.  repeats, warmup: timed and untimed rounds.
        prepare: called with the name before each call, outside the time.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(-warmup, repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            if prepare is not None:
                prepare(name)
            elapsed = seconds_of(calls[name])
            if repeat >= 0:
                seconds[name].append(elapsed)
    return seconds


def relative_error(got: Tensor, want: Tensor) -> float:
    """Return |got - want|_F / |want|_F in float64; infinite if `got` is not finite."""
    got, want = got.detach().double(), want.detach().double()
    if got.shape != want.shape or not torch.isfinite(got).all():
        return float("inf")
    return ((got - want).norm() / want.norm().clamp_min(1e-300)).item()


def verify(name: str, got: Tensor, want: Tensor, bound: float) -> float:
    """Check the relative error of `got` against a bound and return it.

    Raises:
        RuntimeError: the error exceeds `bound`; a wrong result must not be timed.
    """
    error = relative_error(got, want)
    if not error <= bound:
        raise RuntimeError(
            f"{name} must agree with the float64 reference to {bound:g}, differs by {error:.2e}"
        )
    return error


class MatmulRate:
    """`torch.mm` of two square float32 matrices, to measure the machine's rate of matrix products."""

    def __init__(self, size: int = 2048) -> None:
        generator = torch.Generator().manual_seed(0)
        self.left, self.right = (torch.randn(size, size, generator=generator) for _ in range(2))
        self.out = torch.empty(size, size)
        self.flops = 2 * size**3

    def __call__(self) -> None:
        torch.mm(self.left, self.right, out=self.out)


@cache
def matmul_rate() -> float:
    """Return the flop/s of a float32 product of size 2048: the best of nine rounds, once per process."""
    product = MatmulRate()
    return product.flops / min(interleave({"mm": product}, repeats=9)["mm"])


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table in Markdown, with a line break at its end."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def usable_backends() -> list[str]:
    """Return the names of the backends that run on the CPU here."""
    reasons = available_backends(torch.device("cpu"))
    return [name for name, reason in reasons.items() if reason is None]


@cache
def git_sha() -> str:
    """Return the short commit at the first call, with a + if the tree has changes outside bench/results."""
    commands = (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", ".", ":!bench/results"])
    try:
        sha, changes = (
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return sha.strip() + ("+" if changes.strip() else "")


def machine() -> str:
    """Return the CPU model, the cores that this process may use and torch's threads."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {torch.get_num_threads()} threads"


def versions() -> str:
    packages = ("torch", "kradagrad-ext", "pytorch_optimizer", "heavyball", "schedulefree")
    installed = [f"python {platform.python_version()}"]
    for package in packages:
        try:
            installed.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "; ".join(installed)


def add_record_option(parser: argparse.ArgumentParser, files: str) -> None:
    """Add `--record`, which permits a command to change these files."""
    parser.add_argument("--record", action="store_true", help=RECORD_HELP + files)


def benchmarks_csv(record: bool) -> Path:
    """Return the CSV of all benches: the tracked one, or `$KRADAGRAD_BENCH_CSV` or else one in build/."""
    if record:
        return RECORDED / BENCHMARKS
    return Path(os.environ.get("KRADAGRAD_BENCH_CSV", UNRECORDED / BENCHMARKS))


def append_rows(rows: Iterable[Row], path: Path) -> None:
    """Append the rows with the circumstances of this run; write the header into a new file."""
    circumstances = (
        git_sha(),
        machine(),
        versions(),
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(MEASURED + CIRCUMSTANCES)
        for row in rows:
            values = [getattr(row, column) for column in MEASURED]
            writer.writerow(
                [f"{value:.6g}" if isinstance(value, float) else value for value in values] + [*circumstances]
            )
