"""Work of each CUDA kernel in one CTA, for every architecture: the data of the time model.

    python -m bench.gpu.kernels.work                 # prints a table
    python -m bench.gpu.kernels.work --record        # writes cost/time_model/kernel_work.csv, too
    python -m bench.gpu.kernels.work --lines resident_update_128_bf16x3 --architecture sm_90

Nothing here was measured on a GPU. The PTX executor runs calls and counts products, passes through shared
memory, bytes and barriers. The execution counts of the machine code follow from these
(tests/cuda/issue_slots.py), and from them the instructions that each of an SM's four schedulers issues. CTAs
of most kernels take several turns. All numbers are for one additional turn: the difference between a call
with twice as many blocks and a call.

`--lines` shows the issue slots of the busiest scheduler by source line, and by the line that inlines it.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import ptx_executor
import pytest
import torch
from cuda import binaries, issue_slots, sass, waits
from cuda.executor_backend import Executor, kernel
from inputs import square_root
from inputs.roots import RULE as ROOT_RULE
from inputs.roots import root_side

from bench.common import add_record_option, markdown_table
from kradagrad_ext.backends.base import Turn
from kradagrad_ext.cost.time_model.gpus import GPUS
from kradagrad_ext.cost.time_model.kernel_work import FILE, KernelWork
from kradagrad_ext.cost.work import RESIDENT_SIDES

WARP = 32


@dataclass(frozen=True)
class SquareCall:
    """One call of `kron_step_` with square blocks, or of `polar_roots_` with one side of each.

    Attributes:
        blocks: number of blocks with which each CTA has a turn.
        damped: True if F^T F is added, as on one of ten steps.
        shared_limit: shared bytes of a CTA; a call that needs more than an A100 has does not run on it.
    """

    side: int
    blocks: int = 1
    refine: int = 2
    damped: bool = False
    roots: bool = False
    precision: str = "bf16x3"
    shared_limit: int = Executor.shared_limit

    @property
    def multiprocessors(self) -> int:
        """Number of SMs: 1; wide blocks get one per turn, because the L2 cannot hold their CTAs' matrices."""
        return 1 if self.side <= RESIDENT_SIDES[-1] else 100

    def twice(self) -> SquareCall:
        """Return the call with twice as many blocks."""
        return replace(self, blocks=2 * self.blocks)

    def turns(self, kernel: str, ctas: int) -> int:
        """Count the turns of all CTAs of a kernel: work items, or pairs of items if a CTA has two teams."""
        if "product" in kernel:
            return ctas
        items = self.blocks * (2 if "update" in kernel else 1)
        return items // (2 if re.search("_(64|96)_", kernel) else 1)

    def runs_on(self, architecture: str) -> bool:
        """Return True if an SM of the architecture has enough shared memory."""
        reserved = binaries.RESERVED_SHARED
        return self.shared_limit + reserved <= binaries.SM_SHARED[architecture]

    def __str__(self) -> str:
        if self.roots:
            return f"{self.side}, {len(ROOT_RULE.polynomials)} steps"
        return f"{self.side}, coupled, refine {self.refine}{', damped' if self.damped else ''}"


CALLS = (
    SquareCall(64, blocks=4),
    SquareCall(64, blocks=4, damped=True),
    SquareCall(96, blocks=4),
    SquareCall(128),
    SquareCall(128, damped=True),
    SquareCall(128, refine=3, shared_limit=227 << 10),
    SquareCall(256),
    SquareCall(64, blocks=4, roots=True),
    SquareCall(96, blocks=4, roots=True),
    SquareCall(128, roots=True),
    SquareCall(256, roots=True),
    SquareCall(512),
    SquareCall(64, blocks=4, precision="tf32x3"),
    SquareCall(128, precision="tf32x3"),
    SquareCall(256, precision="tf32x3"),
    SquareCall(64, blocks=4, roots=True, precision="tf32x3"),
    SquareCall(128, roots=True, precision="tf32x3"),
)
"""Calls to record; predictions use the first call of a kernel."""


@dataclass(frozen=True)
class Launched:
    """All launches of one kernel in a call."""

    counters: tuple[ptx_executor.Counters, ...]
    shape: binaries.Shape
    turns: int

    def total(self, *counters: str) -> float:
        return sum(launch[counter] for launch in self.counters for counter in counters)

    def mma(self) -> list[float]:
        """Return the mma instructions of each scheduler."""
        return [sum(launches) for launches in zip(*(c["scheduler_mma"] for c in self.counters), strict=True)]


@functools.cache
def run(call: SquareCall) -> dict[str, Launched]:
    """Run a call and return its launches by kernel."""
    torch.manual_seed(0)
    executor = Executor(races=False)
    executor.shared_limit, executor.multiprocessors = call.shared_limit, call.multiprocessors
    if call.roots:
        rule = replace(ROOT_RULE, precision=call.precision)
        executor.polar_roots_([root_side(call.blocks, call.side)], rule, Turn())
    else:
        damped = square_root.RULE.damped_updates if call.damped else 0.0
        rule = replace(
            square_root.RULE,
            method="products",
            refine=call.refine,
            coupled=True,
            damped_updates=damped,
            precision=call.precision,
        )
        inputs = square_root.given([square_root.group(call.blocks, (call.side, call.side))], rule)
        inputs.scales.fill_(1)
        square_root.run(executor, inputs)
    by_kernel = defaultdict(list)
    for planned, (name, launch) in zip(executor.planned, executor.launches, strict=True):
        by_kernel[name].append((planned, launch.counters))
    return {
        name: Launched(
            tuple(counters for _, counters in same),
            binaries.Shape(same[0][0][2], same[0][0][3]),
            call.turns(name, sum(planned[1] for planned, _ in same)),
        )
        for name, same in by_kernel.items()
    }


def record(name: str, call: SquareCall, architecture: str) -> KernelWork:
    """Return the work of one turn of a CTA of one kernel on one architecture."""
    launched, twice = run(call)[name], run(call.twice())[name]
    turns, warps = twice.turns - launched.turns, math.ceil(launched.shape.threads / WARP)
    resources = sass.registers_and_shared(name, architecture)
    weighed = weigh(name, call, architecture)
    small = waits.lookups(twice.counters)
    waited = waits.waits(weighed, small, turns, math.ceil(warps / issue_slots.SCHEDULERS))

    def mean(*counters: str) -> float:
        return round((twice.total(*counters) - launched.total(*counters)) / turns, 1)

    mma = [after - before for after, before in zip(twice.mma(), launched.mma(), strict=True)]
    return KernelWork(
        kernel=name,
        call=str(call),
        architecture=architecture,
        mma=mean("mma"),
        mma_most=round(max(mma) / turns, 1),
        mma_least=round(min(mma) / turns, 1),
        slots_most=round(max(weighed.slots) / turns, 1),
        slots_least=round(min(weighed.slots) / turns, 1),
        wavefronts=mean("shared_wavefronts"),
        bytes=mean("footprint_read_bytes", "footprint_write_bytes"),
        exposed_bytes=round(waited.share * mean("footprint_read_bytes"), 1),
        exposed_trips=round(waited.trips, 1),
        lookups=round(waited.lookups, 1),
        barriers=mean("block_barriers"),
        registers=resources.registers,
        shared_bytes=binaries.shared_of_cta(resources, launched.shape),
        ctas_of_sm=binaries.ctas_of_sm(resources, launched.shape, architecture),
    )


def weigh(name: str, call: SquareCall, architecture: str) -> issue_slots.Weighed:
    """Weigh a kernel's machine code by its executions in the additional turns of a doubled call."""
    code = sass.usual_code(name, architecture)
    return issue_slots.weigh(code, run(call.twice())[name].counters) - issue_slots.weigh(
        code, run(call)[name].counters
    )


def records(architectures: Sequence[str]) -> Iterator[KernelWork]:
    """Yield the records of all kernels with tensor-core products that the calls launch."""
    for call in CALLS:
        for name, launched in run(call).items():
            if any(counters["mma"] for counters in launched.counters):
                yield from (
                    record(name, call, architecture)
                    for architecture in architectures
                    if call.runs_on(architecture)
                )


def write(rows: Sequence[KernelWork], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(KernelWork)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))


COLUMNS = (
    *("kernel", "call", "GPU", "mma", "tensor cycles", "issue slots", "least / most", "wavefronts"),
    *("DRAM cycles", "limit", "cycles", "KB", "exposed KB", "exposed loads", "lookups", "barriers"),
    *("registers", "shared KB", "CTAs an SM"),
)


def line(row: KernelWork) -> Iterator[str]:
    """Yield the cells of a row of the printed table: the busiest scheduler's counts, predicted cycles."""
    gpu = next(gpu for gpu in GPUS.values() if gpu.architecture == row.architecture)
    limits = row.limits(gpu.mma_cycles)
    memory = row.bytes / gpu.bytes_a_cycle
    limit = max({**limits, "DRAM": memory}.items(), key=lambda item: item[1])[0]
    yield from (f"`{row.kernel}`", row.call, gpu.name, f"{row.mma_most:.0f}")
    yield from (f"{limits['tensor cores']:.0f}", f"{row.slots_most:.0f}")
    yield from (f"{row.slots_least / row.slots_most:.1%}", f"{row.wavefronts:.0f}", f"{memory:.0f}", limit)
    yield from (f"{row.cycles(gpu.mma_cycles, memory):.0f}", f"{row.bytes / 1024:.0f}")
    yield from (f"{row.exposed_bytes / 1024:.0f}", f"{row.exposed_trips:.0f}", f"{row.lookups:.0f}")
    yield from (f"{row.barriers:.0f}", f"{row.registers:.0f}", f"{row.shared_bytes / 1024:.0f}")
    yield f"{row.ctas_of_sm:.0f}"


def lines(name: str, architecture: str, most: int) -> str:
    """Return tables of the busiest scheduler's issue slots by place, the largest first, with opcodes."""
    call = next(call for call in CALLS if name in run(call))
    weighed, turns = weigh(name, call, architecture), run(call.twice())[name].turns - run(call)[name].turns
    busiest = max(range(issue_slots.SCHEDULERS), key=lambda scheduler: weighed.slots[scheduler])
    chains = issue_slots.chains(kernel(name).text)
    parts = [f"# {name}, {call}, {architecture}\n\n{weighed.slots[busiest] / turns:.0f} issue slots a turn\n"]
    for title, depth in (("By source line", 0), ("By line of the kernel's class", -4)):
        places = weighed.by_place(lambda line, depth=depth: place(chains[line], depth), busiest)
        ordered = sorted(places.items(), key=lambda item: -item[1].total())[:most]
        rows = [
            (f"{Path(file).name}:{number}", f"{kinds.total() / turns:.0f}", shares(kinds, turns))
            for (file, number), kinds in ordered
        ]
        parts.append(f"## {title}\n\n{markdown_table(('place', 'slots', 'of which'), rows)}")
    return "\n".join(parts)


def place(chain: issue_slots.Chain, depth: int) -> tuple[str, int]:
    """Return a line of a chain of inlined calls: from the inside or, if `depth` < 0, from the outside.

    A shorter chain gives its outermost line.
    """
    if not chain:
        return "no line", 0
    return chain[max(depth, -len(chain))]


def shares(kinds: Counter[str], turns: int) -> str:
    return ", ".join(f"{kind} {slots / turns:.0f}" for kind, slots in kinds.most_common(6))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", metavar="KERNEL", help="show this kernel's issue slots by source line")
    parser.add_argument(
        "--architecture", choices=binaries.ARCHITECTURES, help="only this architecture; default: all"
    )
    parser.add_argument("--most", type=int, default=25, help="lines to show at most")
    add_record_option(parser, "kradagrad_ext/cost/time_model/kernel_work.csv, which has all architectures")
    options = parser.parse_args(arguments)
    if options.record and (options.architecture or options.lines):
        parser.error("--record writes all architectures: leave out --architecture and --lines")
    architectures = [options.architecture] if options.architecture else binaries.ARCHITECTURES
    if options.lines:
        for architecture in architectures:
            print(lines(options.lines, architecture, options.most))
        return
    rows = sorted(records(architectures), key=lambda row: binaries.ARCHITECTURES.index(row.architecture))
    if options.record:
        write(rows, FILE)
    print(markdown_table(COLUMNS, map(line, rows)))


if __name__ == "__main__":
    try:
        main()
    except pytest.skip.Exception as missing:
        raise SystemExit(str(missing)) from None
