"""The command line of the check."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from . import sections
from .package import ROOT

WORK = ROOT / "build/gpu_check_work"
"""For the package, caches and details; what comes back is in the folder of --out."""
BUNDLE = ROOT / ".gpu-bundle"
DEADLINE = 560

EPILOG = """\
sections: {sections}
cases by name: --list; some of them: --only 'native/square_root_product_*,times/kron_step_/128x128/*'

exit status: 0 if nothing is wrong; 1 if anything is, or was not run; 2 without a usable device
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="bench/gpu_check.sh",
        description="Check and time every kernel on a GPU; docs/gpu-check.md says how to read the result.",
        epilog=EPILOG.format(sections=", ".join(section.name for section in sections.SECTIONS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "build/gpu_check"),
        help="folder of the result, at most six files; default: $OUT, else build/gpu_check",
    )  # fmt: skip
    made.add_argument("--deadline", type=float, default=DEADLINE, help=f"seconds in all; default: {DEADLINE}")
    made.add_argument("--only", type=lambda text: tuple(text.split(",")), default=(), metavar="GLOB[,GLOB]")
    made.add_argument("--list", action="store_true", help="print the names of all cases")
    made.add_argument(
        "--blocking", action="store_true", help="CUDA_LAUNCH_BLOCKING=1: errors where they arise"
    )
    made.add_argument("--memcheck", action="store_true", help="run all cases under compute-sanitizer")
    made.add_argument("--bundle", type=Path, default=BUNDLE, help="of make gpu-bundle; default: .gpu-bundle")
    made.add_argument(
        "--installed", action="store_true", help="check the package that python finds, not the tree's own"
    )
    made.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: what can be tried there"
    )
    made.add_argument(
        "--dry-run", action="store_true",
        help="less work, wrong values do not count: for a fake CUDA runtime, whose kernels compute nothing",
    )  # fmt: skip
    made.add_argument(
        "--inject", type=lambda text: tuple(text.split(",")), default=(), metavar="crash,hang,wrong",
        help="cases that go wrong in these ways, between the others of the first task",
    )  # fmt: skip
    made.add_argument("--seed", type=int, help="of the inputs; default: another one each time")
    made.add_argument("--worker", help=argparse.SUPPRESS)  # another command, for the driver's own tests
    made.add_argument("--work", type=Path, default=WORK, help=argparse.SUPPRESS)
    made.add_argument("--case-seconds", type=float, help=argparse.SUPPRESS)
    return made
