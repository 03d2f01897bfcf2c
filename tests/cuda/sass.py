"""The machine code that ptxas makes of one kernel: basic blocks, whose instructions know their lines of PTX.

Lines of the sources are not enough: code that is inlined many times has the same lines each time. So the line
directives name the PTX as the source. Code off the usual path is recognised: subroutines for operands out of
the usual range, code for warps whose lanes have diverged, and the branches to both.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ptx_executor

from . import binaries, toolchain
from .executor_backend import kernel

LOCATION = re.compile(r'\s*//## File "[^"]+", line (\d+)')
STATEMENT = re.compile(r"\s*(?:@!?%p\d+\s+)?[{a-z][^;]*;")
LABEL = re.compile(r"(\.L_x_\d+):")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
TARGET = re.compile(r"\.L_x_\d+")
ENDS = {"BRA", "BRX", "CALL", "EXIT", "RET"}
"""Opcodes that end a basic block."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of machine code.

    Attributes:
        opcode: the opcode with all its dotted suffixes.
        line: the instruction's line in the PTX module.
    """

    opcode: str
    predicate: str
    operands: str
    line: int

    @property
    def kind(self) -> str:
        """Part of the opcode before its first dot."""
        return self.opcode.partition(".")[0]

    @property
    def conditional(self) -> bool:
        """True if a branch may fall through: it has a predicate, before it or among its operands."""
        return bool(self.predicate) or "P" in self.operands.partition("`")[0]

    @property
    def targets(self) -> list[str]:
        """Labels among the operands."""
        return TARGET.findall(self.operands)


@dataclass
class Block:
    """A basic block."""

    labels: list[str] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)

    @property
    def calls(self) -> bool:
        """True if the block always ends in a call of a subroutine."""
        last = self.instructions[-1]
        return last.kind == "CALL" and not last.predicate

    def successors(self) -> Iterator[str | None]:
        """Yield the labels of the blocks that follow on the usual path; None stands for the next block."""
        for instruction in self.instructions:
            if instruction.kind == "BSSY":  # where its BSYNC goes
                yield from instruction.targets
        last = self.instructions[-1]
        diverged = last.opcode.startswith("BRA.DIV")
        if last.kind in {"BRA", "BRX"} and not diverged:
            yield from last.targets
        if last.kind not in ENDS or diverged or (last.kind != "BRX" and last.conditional):
            yield None


def parse(listing: str) -> list[Block]:
    """Return the basic blocks in the output of ``nvdisasm -g -c``."""
    blocks, number = [Block()], 0
    for line in listing.splitlines():
        if match := LOCATION.match(line):
            number = int(match[1])
        elif match := LABEL.match(line):
            if blocks[-1].instructions:
                blocks.append(Block())
            blocks[-1].labels.append(match[1])
        elif match := INSTRUCTION.match(line):
            instruction = Instruction(match[2], match[1] or "", match[3], number)
            blocks[-1].instructions.append(instruction)
            if instruction.kind in ENDS:
                blocks.append(Block())
    return [block for block in blocks if block.instructions]


def usual(blocks: list[Block]) -> list[Block]:
    """Return the blocks that run if no warp diverges and operands are in the usual range."""
    places = {label: i for i, block in enumerate(blocks) for label in block.labels}
    reached, waiting = set(), [0]
    while waiting:
        at = waiting.pop()
        if at in reached or at >= len(blocks) or blocks[at].calls:
            continue
        reached.add(at)
        waiting += [at + 1 if label is None else places[label] for label in blocks[at].successors()]
    return [blocks[i] for i in sorted(reached)]


@functools.cache
def numbered(text: str) -> str:
    """Return a module in PTX with a line directive before each statement that names the statement's line."""
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if STATEMENT.match(line):
            lines.append(f".loc 1 {number} 0")
        if not line.lstrip().startswith(".loc"):
            lines.append(line)
    return "\n".join(lines) + "\n"


def _ptxas() -> str:
    nvcc = Path(toolchain.require_nvcc())
    ptxas = shutil.which("ptxas", path=str(nvcc.parent)) or shutil.which("ptxas")
    if ptxas is None:
        toolchain.give_up("no ptxas beside nvcc")
    return ptxas


@functools.cache
def assemble(name: str, architecture: str, lines: bool = True) -> Path:
    """Return the cubin of one kernel, whose code is that of the native library.

    Args:
        lines: instructions name lines of PTX in place of the source's.
    """
    folder = toolchain.BUILD / ("assembled" if lines else "assembled-plain")
    folder.mkdir(parents=True, exist_ok=True)
    source, target = folder / f"{name}.ptx", folder / f"{name}.{architecture}.cubin"
    text = kernel(name).text
    source.write_text(ptx_executor.isolate(numbered(text) if lines else text, name))
    command = [_ptxas(), "-lineinfo", f"-arch={architecture}", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


@functools.cache
def usual_code(name: str, architecture: str) -> tuple[Block, ...]:
    """Return the basic blocks on a kernel's usual path."""
    return tuple(usual(parse(binaries.disassemble(assemble(name, architecture)))))


def registers_and_shared(name: str, architecture: str) -> binaries.Binary:
    """Return the registers and the shared memory that a kernel needs."""
    (made,) = binaries.read_usage(assemble(name, architecture), architecture).values()
    return made
