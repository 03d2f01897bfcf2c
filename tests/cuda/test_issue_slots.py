"""Counts of executed machine code, from listings written by hand and against PTX.

bench/gpu/kernels/work.py predicts times from these counts: an instruction that is counted twice or not at all
would make a kernel look slow or fast for no reason.
"""

from __future__ import annotations

from dataclasses import replace

import ptx_executor
import pytest
from inputs import square_root

from . import issue_slots, sass
from .executor_backend import Executor

LISTING = """
.text.k:
	//## File "/a/k.cu", line 3
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   BRA.DIV UR4, `(.L_x_9) ;
	//## File "/a/k.cu", line 7
        /*0020*/              @!P0 BRA `(.L_x_1) ;
        /*0030*/                   MOV R2, 0x50 ;
        /*0040*/                   CALL.REL.NOINC `($__internal_0) ;
        /*0050*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0060*/                   MUFU.RCP R0, R6 ;
.L_x_2:
        /*0070*/                   BRA.U UP0, `(.L_x_1) ;
        /*0080*/               @P0 EXIT ;
        /*0090*/                   STG.E [R2.64], R0 ;
        /*00a0*/                   EXIT ;
.L_x_9:
        /*00b0*/                   WARPSYNC.COLLECTIVE R5, `(.L_x_10) ;
        /*00c0*/                   BRA `(.L_x_1) ;
"""


def test_blocks_and_lines():
    blocks = sass.parse(LISTING)
    kinds = [[i.kind for i in block.instructions] for block in blocks]
    assert kinds == [
        ["S2R", "BRA"], ["BRA"], ["MOV", "CALL"], ["BRA"], ["MUFU"], ["BRA"], ["EXIT"], ["STG", "EXIT"],
        ["WARPSYNC", "BRA"],
    ]  # fmt: skip
    assert [i.line for i in blocks[0].instructions] == [3, 3]
    assert blocks[4].instructions[0].line == 7


def test_slow_paths_do_not_count():
    """Divisions and shuffles have code for operands and for divergent warps that do not occur."""
    reached = [[i.kind for i in block.instructions] for block in sass.usual(sass.parse(LISTING))]
    assert reached == [["S2R", "BRA"], ["BRA"], ["MUFU"], ["BRA"], ["EXIT"], ["STG", "EXIT"]]


MODULE = """\
.visible .entry k(
	.loc	1 3 0
	mov
	.loc	1 4 9
	.loc	2 7 5, function_name $L__info_string0, inlined_at 1 4 9
	add
	add
	sub
	.file	1 "/a/k.cu"
	.file	2 "/a/b.cuh"
"""


def test_chains_of_ptx():
    places = issue_slots.chains(MODULE)
    assert places[3] == (("/a/k.cu", 3),)
    assert places[6] == places[8] == (("/a/b.cuh", 7), ("/a/k.cu", 4))


def test_statements_say_their_line():
    body = "\t.loc\t1 9 0\n\t@%p1 bra L;\n$L:\n\t.reg .b32 %r1;\n\t{ mov.u32 %r1, 0; }"
    wanted = ".loc 1 2 0\n\t@%p1 bra L;\n$L:\n\t.reg .b32 %r1;\n.loc 1 5 0\n\t{ mov.u32 %r1, 0; }\n"
    assert sass.numbered(body) == wanted


def counted(*runs: int) -> ptx_executor.Counters:
    return ptx_executor.Counters(instructions=[(line, "add", [n, n, 0, 0]) for line, n in enumerate(runs, 1)])


def instruction(line: int, predicate: str = "") -> sass.Instruction:
    return sass.Instruction("IADD3.X", predicate, "R0, R0", line)


def test_a_block_runs_as_often_as_most_of_it():
    """Instructions that ptxas moved out of a loop, or folded into a predicate, are outvoted by the rest."""
    executions = issue_slots.Executions([counted(1, 8, 2), counted(1, 8, 2)])
    loop = sass.Block([], [instruction(2)])
    assert executions.of(loop) == (16, 16, 0, 0)
    assert executions.of(sass.Block([], [instruction(1), instruction(1), instruction(2)])) == (2, 2, 0, 0)
    assert executions.of(sass.Block([], [instruction(3, "@P0")] * 5 + [instruction(2)])) == (16, 16, 0, 0)
    assert executions.of(sass.Block([], [instruction(99)])) == (0, 0, 0, 0)
    weighed = issue_slots.weigh([loop], [counted(1, 8, 2)])
    assert weighed.slots == weighed.of_kind("IADD3") == (8, 8, 0, 0)
    assert weighed.of_kind("HMMA") == (0, 0, 0, 0)
    assert weighed.by_place(lambda line: ("k.cu", line), 0) == {("k.cu", 2): {"IADD3": 8}}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sass.binaries.ARCHITECTURES)
def test_agrees_with_ptx_where_one_instruction_is_one(architecture):
    """ptxas neither adds nor removes these: they must run as often as the executor counts."""
    executor = Executor(races=False)
    rule = replace(square_root.RULE, method="products", refine=2, coupled=True)
    call = square_root.given([square_root.group(2, (64, 64))], rule)
    call.scales.fill_(1)
    square_root.run(executor, call)
    for name, launch in executor.launches:
        counters = launch.counters
        weighed = issue_slots.weigh(sass.usual_code(name, architecture), [counters])
        assert list(weighed.of_kind("HMMA")) == counters.scheduler_mma
        for kind, opcode in (("MOVM", "movmatrix"), ("SHFL", "shfl"), ("BAR", "bar")):
            runs = [n for _, name, n in counters.instructions if name.startswith(opcode)]
            assert list(weighed.of_kind(kind)) == ([sum(n) for n in zip(*runs, strict=True)] or [0] * 4), kind
        # In all, machine code and PTX differ by less than half: branches are folded, addresses combined.
        for slots, issued in zip(weighed.slots, counters.scheduler_instructions, strict=True):
            assert 0.5 * issued < slots < 1.5 * issued


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sass.binaries.ARCHITECTURES)
def test_lines_change_no_code(architecture):
    """The weighed code equals the library's code, whose lines are those of the sources."""
    name = "resident_precondition_64_bf16x3"
    plain, weighed = (
        [
            (instruction.opcode, instruction.predicate, instruction.operands)
            for block in sass.parse(sass.binaries.disassemble(sass.assemble(name, architecture, lines)))
            for instruction in block.instructions
        ]
        for lines in (False, True)
    )
    assert plain == weighed


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sass.binaries.ARCHITECTURES)
def test_assembled_alone_as_in_the_library(architecture):
    name = "resident_precondition_64_bf16x3"
    alone = sass.registers_and_shared(name, architecture)
    shipped = sass.binaries.binary(name, architecture)
    assert replace(shipped, instructions=alone.instructions) == alone
