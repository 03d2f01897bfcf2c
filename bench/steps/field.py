"""Whole steps against the field over sizes, block sizes and threads.

    python -m bench.steps.field                                   # everything, about an hour on two cores
    python -m bench.steps.field --only tiny --threads 1
    python -m bench.steps.field --blocks 128 256 --record

Workloads: the matrices of a GPT-2 layer with every block size; 50,000 tiny matrices; one of 8192 x 8192. The
optimizers take turns on the same gradients, float32, with roots every 10 steps: 10 steps of warm-up, 20 that
are timed. An optimizer that has spent `--limit` seconds takes no further step. The command prints a table of
mean steps, and appends all rows to a CSV in build/bench, or with `--record` to that of bench/results.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from bench.common import (
    Row,
    add_record_option,
    append_rows,
    benchmarks_csv,
    git_sha,
    machine,
    markdown_table,
    usable_backends,
    versions,
)
from bench.steps.baselines import (
    BLOCK,
    Contender,
    kradagrad,
    matrix_baselines,
    race,
    torch_baselines,
    unpreconditioned,
)
from bench.workload import Workload, gpt2, tiny

BLOCKS = (64, 128, 256, 512, 1024)
LARGE = Workload("8192x8192", ((8192, 8192),))
WORKLOADS = {"layer": gpt2(), "tiny": tiny(50_000), "large": LARGE}
WHOLE_DIMS_LIMIT = 4096
"""Longest side for an optimizer that decomposes whole dimensions: beyond it, a refresh takes minutes."""


@dataclass(frozen=True)
class FieldCase:
    """A workload with blocks of one size, on a number of threads."""

    workload: Workload
    threads: int
    block: int

    @property
    def longest(self) -> int:
        return max(map(max, self.workload.shapes))

    @property
    def has_large_blocks(self) -> bool:
        """True if matrices are cut into blocks; if not, one block size says everything."""
        return self.longest > min(BLOCKS)

    def contenders(self) -> list[Contender]:
        """Return the optimizers: ours with blocks and without, torch's, and those of other packages."""
        backend = usable_backends()[0]
        others = matrix_baselines(whole=False, block=self.block, compiled=self.has_large_blocks)
        chosen = [*torch_baselines(), unpreconditioned(backend)]
        chosen += [kradagrad("default", backend, block=self.block), *others]
        whole = self.longest <= WHOLE_DIMS_LIMIT
        kept = [one for one in chosen if whole or "whole dims" not in one.name]
        return [replace(one, workload=self.workload, block=self.block) for one in kept]


def cases_of(options: argparse.Namespace) -> Iterator[FieldCase]:
    """Yield the cases; the number of threads changes last, as heavyball compiles for each block size."""
    for name in options.only:
        blocks = options.blocks if name == "layer" else [BLOCK]
        for block, threads in itertools.product(blocks, options.threads):
            yield FieldCase(WORKLOADS[name], threads, block)


def measure(case: FieldCase, options: argparse.Namespace) -> tuple[list[str], list[Row]]:
    """Race the optimizers of a case; return the cells of its line in the table, and the CSV's rows."""
    torch.set_num_threads(case.threads)
    contenders = case.contenders()
    race(contenders, options.warmup, options.steps, options.limit)
    cells = {one.label: f"{1e3 * one.mean:.4g}{note(one, options.steps)}" for one in contenders}
    block = case.block if case.has_large_blocks else "-"
    line = [case.workload.name, str(case.threads), str(block)]
    where = f"{case.threads} threads, blocks of {case.block}"
    rows = [replace(row, metric=f"{row.metric}, {where}") for one in contenders for row in one.rows()]
    return line + [cells.get(label, "") for label in labels()], rows


def note(contender: Contender, steps: int) -> str:
    """Return a note on a mean over fewer steps than were asked for."""
    count = len(contender.seconds)
    return "" if count == steps else f" ({count} steps)"


def labels() -> list[str]:
    return [contender.label for contender in FieldCase(gpt2(), 1, BLOCK).contenders()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--blocks", nargs="+", type=int, default=list(BLOCKS), help="of the layer")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=float, default=90.0, help="seconds of an optimizer in a case")
    add_record_option(parser, "bench/results/benchmarks.csv")
    options = parser.parse_args(arguments)
    print(f"{git_sha()}; {machine()}; {versions()}; mean step in ms")
    lines = []
    for case in tqdm(list(cases_of(options)), "cases", disable=None):
        line, rows = measure(case, options)
        lines.append(line)
        append_rows(rows, benchmarks_csv(options.record))
    print(markdown_table(["workload", "threads", "blocks", *labels()], lines), end="")


if __name__ == "__main__":
    main()
