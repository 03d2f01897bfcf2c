"""Measure Triton's tuning table on this GPU and write the best rows into a copy of the table in build/bench.

    python -m bench.tuning.tune_triton                # all rows of this GPU's architecture, minutes
    python -m bench.tuning.tune_triton --precision bf16x3 --record

For every op, shape class and precision, each candidate that fits the GPU is timed: a whole call of
`kron_step_` on 4096 x 4096 elements in blocks of the class, or of the elementwise op, with only this row
replaced. The row with the fastest median by CUDA events is kept. A candidate whose result differs from the
current row's by more than the precision allows ends the run. Rows that spill are not detected here;
tests/bench/test_triton_budgets.py refuses them. `--record` writes to the table that the package reads.

Exit status: 0, or 2 without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from triton.errors import TritonError

from bench.common import ROOT, UNRECORDED, add_record_option, relative_error
from bench.gpu.check.cases import ERROR_BOUNDS, DeviceCase
from bench.gpu.check.specs import TIMED, elementwise, kron
from bench.gpu.check.timing import device_times
from kradagrad_ext.triton_kernels.plan import plan_cache, tuning
from kradagrad_ext.triton_kernels.plan.tuning import Choice, Key

SIDES = {"16": 16, "32": 32, "64": 64, "small": 128, "large": 512}
ELEMENTS = [
    Choice(span, chunk, warps, 1) for span in (2048, 4096, 8192) for chunk, warps in ((512, 4), (1024, 8))
]
PRODUCTS = [
    Choice(tile, depth, warps, stages)
    for tile, warps in ((64, 4), (128, 8), (128, 4))
    for depth in (16, 32, 64)
    for stages in (2, 3, 4)
]
ROUNDS, SECONDS = 20, 2.0


def candidates(key: Key) -> list[Choice]:
    """Return the candidates of a row, the current one first."""
    current = tuning.table()[key]
    if key.shape == "elements":
        others = ELEMENTS
    elif key.op == "square_root_resident":
        others = [Choice(int(key.shape), 0, warps, 1) for warps in (1, 2, 4, 8)]
    else:
        others = PRODUCTS
    return [current, *(other for other in others if other != current)]


def case_of(key: Key, device: torch.device) -> DeviceCase:
    """Return a call that launches the row's kernel."""
    if key.shape == "elements":
        return DeviceCase(elementwise(f"{key.op}_", TIMED, TIMED[:1]), device)
    side = SIDES[key.shape]
    return DeviceCase(kron((side, side), shape=TIMED, precision=key.precision), device)


@contextlib.contextmanager
def exchanged(key: Key, choice: Choice) -> Iterator[None]:
    """Replace a row of the table; drop the plans that were made from the old one."""
    table = tuning.table()
    before = table[key]
    table[key] = choice
    forget()
    try:
        yield
    finally:
        table[key] = before
        forget()


def forget() -> None:
    tuning.config.cache_clear()
    plan_cache.forget()


def tune(key: Key, device: torch.device) -> Choice:
    """Return the fastest candidate of a row."""
    case = case_of(key, device)
    expected = case.results("triton")
    best, fastest = tuning.table()[key], float("inf")
    for choice in candidates(key):
        with exchanged(key, choice):
            try:
                results = case.results("triton")
            except (RuntimeError, ValueError, TritonError) as error:  # out of shared memory or registers
                print(f"  {tuple(choice)}: {type(error).__name__}")
                continue
            error = max(map(relative_error, results, expected))
            if error > ERROR_BOUNDS.get(key.precision, 1e-4):
                raise RuntimeError(f"{key}: {choice} differs from {best} by {error:.1e}")
            spread = device_times(case.call("triton"), ROUNDS, SECONDS).spread
        print(f"  {tuple(choice)}: {spread[1]:.3f} ms [{spread[0]:.3f}, {spread[2]:.3f}]", flush=True)
        if spread[1] < fastest:
            best, fastest = choice, spread[1]
    return best


def write(table: dict[Key, Choice], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Key._fields, *Choice._fields])
        writer.writerows([*key, *choice] for key, choice in table.items())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", help="tune only rows of this precision; default: all")
    parser.add_argument("--out", type=Path, help="the copy; default: build/bench/tuning_triton.csv")
    add_record_option(parser, "triton_kernels/plan/tuning.csv")
    options = parser.parse_args(arguments)
    recorded, unrecorded = ROOT / "triton_kernels/plan/tuning.csv", UNRECORDED / "tuning_triton.csv"
    out = options.out or (recorded if options.record else unrecorded)
    if not torch.cuda.is_available():
        print("no GPU: nothing was run", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    table, architecture = tuning.table(), tuning.architecture_of(device)
    for key in [key for key in table if key.architecture == architecture]:
        if options.precision in (None, key.precision):
            print(*key, flush=True)
            table[key] = tune(key, device)
            write(table, out)
    print(f"written to {out}: run tests/bench/test_triton_budgets.py on it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
