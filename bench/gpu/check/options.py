"""The command line of the check."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bench.gpu.check import sections
from bench.gpu.check.package import ROOT

WORK = ROOT / "build/gpu_check_work"
"""Folder of the package, caches and details; the results go to the folder of --out."""
BUNDLE = ROOT / ".gpu-bundle"
DEADLINE = 560

EPILOG = """\
sections: {sections}
cases by name: --list; some of them: --only 'native/square_root_product_*,times/kron_step_/128x128/*'

exit status: 0 if nothing is wrong; 1 if anything is wrong or was not run; 2 without a usable device
"""


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="bench/gpu_check.sh",
        description="Check and time every kernel on a GPU; docs/gpu-check.md explains the result.",
        epilog=EPILOG.format(sections=", ".join(section.name for section in sections.SECTIONS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "build/gpu_check"),
        help="folder of the result, at most six files; default: $OUT, else build/gpu_check",
    )  # fmt: skip
    command.add_argument(
        "--deadline", type=float, default=DEADLINE, help=f"seconds in all; default: {DEADLINE}"
    )
    command.add_argument(
        "--only", type=lambda text: tuple(text.split(",")), default=(), metavar="GLOB[,GLOB]"
    )
    command.add_argument("--list", action="store_true", help="print the names of all cases")
    command.add_argument(
        "--blocking",
        action="store_true",
        help="CUDA_LAUNCH_BLOCKING=1: report an error at the launch that caused it",
    )
    command.add_argument("--memcheck", action="store_true", help="run all cases under compute-sanitizer")
    command.add_argument(
        "--bundle", type=Path, default=BUNDLE, help="folder of make gpu-bundle; default: .gpu-bundle"
    )
    command.add_argument(
        "--installed", action="store_true", help="check the package that python finds, not the tree's"
    )
    command.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: run only the sections that need no GPU",
    )
    command.add_argument(
        "--dry-run", action="store_true",
        help="less work, values are not judged: for a fake CUDA runtime, whose kernels compute nothing",
    )  # fmt: skip
    command.add_argument(
        "--inject", type=lambda text: tuple(text.split(",")), default=(), metavar="crash,hang,wrong",
        help="add cases that fail in these ways to the first task",
    )  # fmt: skip
    command.add_argument("--seed", type=int, help="seed of the inputs; default: a random one")
    command.add_argument("--worker", help=argparse.SUPPRESS)  # another command, for tests of the driver
    command.add_argument("--work", type=Path, default=WORK, help=argparse.SUPPRESS)
    command.add_argument("--case-seconds", type=float, help=argparse.SUPPRESS)
    return command
