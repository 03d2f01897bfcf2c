"""Counted traffic and bank conflicts, against numbers computed by hand."""

import numpy as np
import pytest

from .kernel_text import execute

START = ".shared .align 128 .b8 s[8192]; mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, s;"


def run(body: str, words: int = 4096, **options: int):
    launch = execute(f"{START} {body} ret;", [np.zeros(words, np.uint32)], races=False, **options)
    launch.assert_clean()
    return launch.counters


# lanes' byte offsets as an expression of %r1 in %r4, bytes a lane, sectors of the request
GLOBAL = [
    ("shl.b32 %r4, %r1, 2;", 4, 4),
    ("shl.b32 %r4, %r1, 3;", 4, 8),
    ("shl.b32 %r4, %r1, 5;", 4, 32),
    ("shl.b32 %r4, %r1, 4;", 16, 16),
    ("mov.u32 %r4, 0;", 4, 1),
    ("shl.b32 %r4, %r1, 2; add.u32 %r4, %r4, 16;", 4, 5),
    ("shl.b32 %r4, %r1, 1;", 2, 2),
    ("sub.u32 %r4, 31, %r1; shl.b32 %r4, %r4, 2;", 4, 4),
    ("xor.b32 %r4, %r1, 21; shl.b32 %r4, %r4, 4;", 8, 16),
]
FORMS = {
    1: ("u8", "%h1"),
    2: ("u16", "%h1"),
    4: ("u32", "%r5"),
    8: ("v2.u32", "{%r5,%r6}"),
    16: ("v4.u32", "{%r5,%r6,%r7,%r8}"),
}


@pytest.mark.parametrize(("offsets", "size", "sectors"), GLOBAL)
def test_global_sectors(offsets, size, sectors):
    form, registers = FORMS[size]
    address = f"{offsets} cvt.u64.u32 %d1, %r4; add.s64 %d1, %d0, %d1;"
    read = run(f"{address} ld.global.{form} {registers}, [%d1];", grid=2)
    assert (read.global_read_bytes, read.global_read_sectors) == (2 * 32 * size, 2 * sectors)
    assert (read.footprint_read_bytes, read.footprint_write_bytes) == (32 * sectors, 0)
    written = run(f"{address} st.global.{form} [%d1], {registers};")
    assert (written.global_write_bytes, written.global_write_sectors) == (32 * size, sectors)
    assert (written.footprint_write_bytes, written.global_read_bytes) == (32 * sectors, 0)


def test_atomics_read_and_write():
    counters = run("mad.wide.u32 %d1, %r1, 4, %d0; red.global.add.u32 [%d1], 1;")
    assert (counters.global_read_bytes, counters.global_write_bytes) == (128, 128)
    assert (counters.footprint_read_bytes, counters.footprint_write_bytes) == (128, 128)


# offsets, bytes a lane, passes, passes without conflicts
SHARED = [
    ("shl.b32 %r4, %r1, 2;", 4, 1, 1),
    ("shl.b32 %r4, %r1, 3;", 4, 2, 1),
    ("shl.b32 %r4, %r1, 7;", 4, 32, 1),
    ("mul.lo.u32 %r4, %r1, 132;", 4, 1, 1),
    ("mov.u32 %r4, 64;", 4, 1, 1),
    ("shl.b32 %r4, %r1, 1;", 2, 1, 1),
    ("shl.b32 %r4, %r1, 3;", 8, 2, 2),
    ("shl.b32 %r4, %r1, 4;", 8, 4, 2),
    ("shl.b32 %r4, %r1, 4;", 16, 4, 4),
    ("mul.lo.u32 %r4, %r1, 128;", 16, 32, 4),
    ("mul.lo.u32 %r4, %r1, 144;", 16, 4, 4),
]


@pytest.mark.parametrize(("offsets", "size", "passes", "ideal"), SHARED)
def test_bank_conflicts(offsets, size, passes, ideal):
    form, registers = FORMS[size]
    counters = run(f"{offsets} add.u32 %r4, %r4, %r3; ld.shared.{form} {registers}, [%r4];")
    assert (counters.shared_wavefronts, counters.shared_ideal_wavefronts) == (passes, ideal)
    half = run(
        f"{offsets} add.u32 %r4, %r4, %r3; setp.lt.u32 %p1, %r1, 16; "
        f"@%p1 st.shared.{form} [%r4], {registers};"
    )
    assert half.shared_ideal_wavefronts == max(1, ideal // 2)
    assert half.shared_wavefronts <= passes


def test_instructions_and_lines():
    body = """mad.wide.u32 %d1, %r1, 4, %d0; setp.lt.u32 %p1, %r1, 5; mov.u32 %r4, 0;
      LOOP: @%p1 ld.global.u32 %r5, [%d1]; add.u32 %r4, %r4, 1; setp.lt.u32 %p2, %r4, 3; @%p2 bra LOOP;
      bar.sync 0; bar.sync 0;"""
    counters = run(body, block=64, grid=2)
    load = counters.by_opcode["ld.global.u32"]
    assert (load["n"], load["threads"], load["bytes"], load["sectors"]) == (12, 2 * 3 * 5, 2 * 3 * 20, 2 * 3)
    assert counters.by_opcode["add.u32"] == dict(n=12, threads=384, bytes=0, sectors=0, wavefronts=0, ideal=0)
    assert counters.warp_instructions == sum(c["n"] for c in counters.by_opcode.values())
    assert counters.thread_instructions == sum(c["threads"] for c in counters.by_opcode.values())
    assert counters.block_barriers == 4
    (line,) = (line for line in counters.by_line if line["n"])
    assert (line["opcode"], line["n"], line["sectors"]) == ("ld.global.u32", 12, 6)


def test_instructions_by_scheduler():
    """A kernel is as fast as its busiest scheduler: the counters must show work on only one of the four."""
    mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    operands = "{%f1,%f2,%f3,%f4}, {%r8,%r9,%r10,%r11}, {%r12,%r13}, {%f1,%f2,%f3,%f4}"
    body = f"""shr.u32 %r4, %r1, 5; and.b32 %r4, %r4, 3; setp.ne.u32 %p1, %r4, 1; @%p1 bra END;
      {mma} {operands}; {mma} {operands};
      END: bar.sync 0;"""
    counters = run(body, block=192, grid=2)  # warps 0 to 5: schedulers 0 and 1 have two, the others one
    assert counters.scheduler_mma == [0, 8, 0, 0]
    assert counters.mma == 8
    common = counters.scheduler_instructions[2]
    assert counters.scheduler_instructions == [2 * common, 2 * common + 8, common, common]
    assert sum(counters.scheduler_instructions) == counters.warp_instructions
    by_opcode = {opcode: n for _, opcode, n in counters.instructions}
    assert by_opcode["shr.u32"] == [4, 4, 2, 2]
    assert (
        len([n for _, opcode, n in counters.instructions if opcode.startswith("mma") and n == [0, 4, 0, 0]])
        == 2
    )


def test_instructions_that_never_ran_are_listed():
    """All instructions of a source line weigh machine code, including those of slow paths."""
    counters = run("setp.gt.u32 %p1, %r1, 99; @!%p1 bra END; add.u32 %r4, %r4, 1; END: bar.sync 0;")
    assert [n for _, opcode, n in counters.instructions if opcode == "add.u32"] == [[0, 0, 0, 0]]


def test_a_partial_copy_counts_what_it_reads():
    body = """mov.u32 %r9, 0; setp.lt.u32 %p1, %r1, 8; @%p1 mov.u32 %r9, 16; mad.wide.u32 %d1, %r1, 16, %d0;
      shl.b32 %r4, %r1, 4; add.u32 %r4, %r4, %r3; cp.async.cg.shared.global [%r4], [%d1], 16, %r9;
      cp.async.wait_all;"""
    counters = run(body)
    assert (counters.global_read_bytes, counters.global_read_sectors, counters.footprint_read_bytes) == (
        128,
        4,
        128,
    )
    assert counters.shared_wavefronts == counters.shared_ideal_wavefronts == 4


def test_without_counters():
    counters = run("mad.wide.u32 %d1, %r1, 4, %d0; ld.global.u32 %r5, [%d1];", counters=False)
    assert counters.global_read_bytes == counters.footprint_read_bytes == 0
    assert counters.by_opcode["ld.global.u32"]["n"] == 1
    with pytest.raises(AttributeError):
        _ = counters.nothing
