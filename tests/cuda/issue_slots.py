"""How often the machine code of a kernel runs, from the executions of its PTX.

Every instruction of machine code has a line of PTX. ptxas moves and duplicates instructions, and folds short
branches into predicates, but all instructions of a basic block run equally often: as often as most of their
lines do in the PTX. What is predicated takes a slot whether or not its predicate holds, so a folded branch
counts on both its sides.

Loops that ptxas unrolls would count too often: `test_issue_slots.py` compares with the PTX what has one
instruction in both.
"""

from __future__ import annotations

import operator
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import ptx

from .sass import Block, Instruction

SCHEDULERS = 4
Runs = tuple[float, ...]
"""Of every scheduler."""

Chain = tuple[tuple[str, int], ...]
"""File and line of an instruction, then those that it was inlined at, from the inside to the outside."""

FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', re.MULTILINE)
POSITION = re.compile(r"\s*\.loc\s+(\d+ \d+ \d+)(?:,.*\binlined_at\s+(\d+ \d+ \d+))?")


def chains(text: str) -> list[Chain]:
    """Of every line of a module in PTX, the first line at index 1."""
    files = dict(FILE.findall(text))
    known: dict[str, Chain] = {}
    current: Chain = ()
    result = [current]
    for line in text.splitlines():
        if ".entry" in line:
            known, current = {}, ()
        elif found := POSITION.match(line):
            file, number, _ = found[1].split()
            current = ((files[file], int(number)), *known.get(found[2], ()))
            known[found[1]] = current
        result.append(current)
    return result


class Executions:
    """Of the PTX of one kernel, over some launches."""

    def __init__(self, launches: Sequence[ptx.Counters]) -> None:
        self._runs: dict[int, Runs] = {}
        for same in zip(*(counters.instructions for counters in launches), strict=True):
            counts = zip(*(counts for *_, counts in same), strict=True)
            self._runs[same[0][0]] = tuple(map(sum, counts))

    def _votes(self, instructions: Iterable[Instruction]) -> Counter[Runs]:
        return Counter(self._runs[i.line] for i in instructions if i.line in self._runs)

    def of(self, block: Block) -> Runs:
        """How often a basic block runs."""
        # A predicated instruction may come from a branch that was folded into the block.
        votes = self._votes(i for i in block.instructions if not i.predicate) or self._votes(
            block.instructions
        )
        if not votes:
            return (0.0,) * SCHEDULERS
        return max(votes.items(), key=lambda vote: (vote[1], sum(vote[0])))[0]


@dataclass(frozen=True)
class Weighed:
    """Basic blocks, and how often each runs."""

    blocks: tuple[tuple[Block, Runs], ...]

    def __sub__(self, other: Weighed) -> Weighed:
        """How often each block of the same code runs more."""
        return Weighed(
            tuple(
                (block, tuple(map(operator.sub, runs, fewer)))
                for (block, runs), (_, fewer) in zip(self.blocks, other.blocks, strict=True)
            )
        )

    @property
    def slots(self) -> Runs:
        """Issue slots of every scheduler."""
        return self._sum(lambda instruction: True)

    def of_kind(self, *kinds: str) -> Runs:
        """Issue slots of some opcodes."""
        return self._sum(lambda instruction: instruction.kind in kinds)

    def _sum(self, counts: Callable[[Instruction], bool]) -> Runs:
        sums = [0.0] * SCHEDULERS
        for block, runs in self.blocks:
            number = sum(map(counts, block.instructions))
            sums = [total + number * own for total, own in zip(sums, runs, strict=True)]
        return tuple(sums)

    def by_place(
        self, place: Callable[[int], tuple[str, int]], scheduler: int
    ) -> dict[tuple[str, int], Counter[str]]:
        """Slots of a scheduler by what `place` makes of an instruction's line, and opcode."""
        result: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
        for block, runs in self.blocks:
            for instruction in block.instructions:
                result[place(instruction.line)][instruction.kind] += runs[scheduler]
        return result


def weigh(code: Iterable[Block], launches: Sequence[ptx.Counters]) -> Weighed:
    """How often the usual code of a kernel runs in some launches."""
    executions = Executions(launches)
    return Weighed(tuple((block, executions.of(block)) for block in code))
