"""Counts of how often a kernel's machine code runs, from the executions of its PTX.

Every instruction of machine code has a line of PTX. ptxas moves and duplicates instructions, and folds short
branches into predicates, but all instructions of a basic block run equally often: as often as most of their
lines do in the PTX. A predicated instruction takes a slot even if its predicate is false, so a folded branch
counts on both its sides.

Loops that ptxas unrolls would count too often: for operations of one instruction in PTX and in machine code,
`test_issue_slots.py` compares the counts.
"""

from __future__ import annotations

import operator
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import ptx_executor

from .sass import Block, Instruction

SCHEDULERS = 4
Runs = tuple[float, ...]
"""Executions on each scheduler."""

Chain = tuple[tuple[str, int], ...]
"""File and line of an instruction, then of the calls that it was inlined at, from the innermost outwards."""

FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', re.MULTILINE)
POSITION = re.compile(r"\s*\.loc\s+(\d+ \d+ \d+)(?:,.*\binlined_at\s+(\d+ \d+ \d+))?")


def chains(text: str) -> list[Chain]:
    """Return the chain of every line of a module in PTX; the first line has index 1."""
    files = dict(FILE.findall(text))
    known: dict[str, Chain] = {}
    current: Chain = ()
    result = [current]
    for line in text.splitlines():
        if ".entry" in line:
            known, current = {}, ()
        elif position := POSITION.match(line):
            file, number, _ = position[1].split()
            current = ((files[file], int(number)), *known.get(position[2], ()))
            known[position[1]] = current
        result.append(current)
    return result


class Executions:
    """Executions of the PTX lines of one kernel, summed over some launches."""

    def __init__(self, launches: Sequence[ptx_executor.Counters]) -> None:
        self._runs: dict[int, Runs] = {}
        for same in zip(*(counters.instructions for counters in launches), strict=True):
            counts = zip(*(counts for *_, counts in same), strict=True)
            self._runs[same[0][0]] = tuple(map(sum, counts))

    def _votes(self, instructions: Iterable[Instruction]) -> Counter[Runs]:
        return Counter(self._runs[i.line] for i in instructions if i.line in self._runs)

    def of(self, block: Block) -> Runs:
        """Return how often a basic block runs."""
        # A predicated instruction may come from a branch that was folded into the block.
        votes = self._votes(i for i in block.instructions if not i.predicate) or self._votes(
            block.instructions
        )
        if not votes:
            return (0.0,) * SCHEDULERS
        return max(votes.items(), key=lambda vote: (vote[1], sum(vote[0])))[0]


@dataclass(frozen=True)
class Weighed:
    """Basic blocks, and the number of times that each runs."""

    blocks: tuple[tuple[Block, Runs], ...]

    def __sub__(self, other: Weighed) -> Weighed:
        """Return how much more often each block of the same code runs here."""
        return Weighed(
            tuple(
                (block, tuple(map(operator.sub, runs, fewer)))
                for (block, runs), (_, fewer) in zip(self.blocks, other.blocks, strict=True)
            )
        )

    @property
    def slots(self) -> Runs:
        """Number of issue slots used on each scheduler."""
        return self._sum(lambda instruction: True)

    def of_kind(self, *kinds: str) -> Runs:
        """Return the issue slots of some opcodes on each scheduler."""
        return self._sum(lambda instruction: instruction.kind in kinds)

    def _sum(self, counts: Callable[[Instruction], bool]) -> Runs:
        sums = [0.0] * SCHEDULERS
        for block, runs in self.blocks:
            number = sum(map(counts, block.instructions))
            sums = [total + number * times for total, times in zip(sums, runs, strict=True)]
        return tuple(sums)

    def by_place(
        self, place: Callable[[int], tuple[str, int]], scheduler: int
    ) -> dict[tuple[str, int], Counter[str]]:
        """Return a scheduler's slots by opcode, for each place that `place` returns for a line."""
        result: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
        for block, runs in self.blocks:
            for instruction in block.instructions:
                result[place(instruction.line)][instruction.kind] += runs[scheduler]
        return result


def weigh(code: Iterable[Block], launches: Sequence[ptx_executor.Counters]) -> Weighed:
    """Return how often the usual code of a kernel runs in some launches."""
    executions = Executions(launches)
    return Weighed(tuple((block, executions.of(block)) for block in code))
