"""Arguments of the Python interface, malformed text, and edits of good text."""

import random

import numpy as np
import pytest

from ptx_executor import ExecutionError, Kernel, Memory, ParseError, StepLimit, isolate

from .kernel_text import module

STORE = module(
    "ld.param.u64 %d0, [a]; ld.param.f32 %f1, [b]; st.global.f32 [%d0], %f1; ret;", [".u64 a", ".f32 b"]
)


def store(value, **options):
    memory, out = Memory(), np.zeros(1, np.float32)
    Kernel(STORE).launch(memory, 1, 1, [memory.place(out), value], **options).assert_clean()
    return out[0]


def test_parameters():
    assert Kernel(STORE).parameters == [("a", 8), ("b", 4)]
    assert store(1.5) == store(np.float32(1.5)) == store(np.float32(1.5).tobytes()) == 1.5
    assert store(0x3FC00000) == store(np.uint32(0x3FC00000)) == 1.5
    for bad in (np.float64(1), b"123", 1 << 32, "1", None, [1.0]):
        with pytest.raises(ValueError, match="parameter b"):
            store(bad)
    with pytest.raises(ValueError, match="has 2 parameters, not 1"):
        Kernel(STORE).launch(Memory(), 1, 1, [0])


def test_launch_dimensions():
    kernel = Kernel(module("ret;"))
    kernel.launch(Memory(), (2, 3), (4, 8, 32)).assert_clean()
    for grid, block in ((0, 1), (1, 0), ((1, 1, 1, 1), 1), (1, (32, 33)), (1, -1)):
        with pytest.raises(ValueError, match=r"dimensions|at most 1024 threads"):
            kernel.launch(Memory(), grid, block)
    bounded = Kernel(STORE.replace("\n)\n{", ")\n.maxntid 8, 4, 1\n.minnctapersm 2\n{"))
    with pytest.raises(ValueError, match="at most 32 threads"):
        bounded.launch(Memory(), 1, 33, [0, 1.0])
    with pytest.raises(ValueError, match="shared memory"):
        kernel.launch(Memory(), 1, 1, dynamic_shared=228 * 1024)


def test_memory():
    memory = Memory()
    addresses = [memory.place(np.zeros(n, np.float32)) for n in (5, 0, 7)]
    assert addresses == [(i + 1) << 36 for i in range(3)]
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    memory.place(frozen, writable=False)
    for bad in (np.zeros((4, 4))[:, 1:], [1, 2], frozen):
        with pytest.raises(ValueError, match="array"):
            memory.place(bad)


def test_what_one_launch_writes_the_next_may_read():
    text = module(
        "ld.param.u64 %d0, [a]; ld.param.u32 %r1, [w]; setp.eq.u32 %p1, %r1, 0;"
        "@%p1 ld.global.u32 %r2, [%d0];"
        "@!%p1 st.global.u32 [%d0], %r1; ret;",
        [".u64 a", ".u32 w"],
    )
    kernel, memory = Kernel(text), Memory()
    address = memory.place(np.zeros(1, np.uint32), uninitialised=True)
    assert len(kernel.launch(memory, 1, 1, [address, 0]).reports) == 1
    for write in (1, 0):
        kernel.launch(memory, 1, 1, [address, write]).assert_clean()


def test_pointers_in_buffers():
    body = "ld.param.u64 %d0, [a]; mov.u32 %r1, %ctaid.x; mad.wide.u32 %d1, %r1, 8, %d0;"
    body += "ld.global.u64 %d2, [%d1];"
    memory, outs = Memory(), [np.zeros(1, np.uint32) for _ in range(3)]
    table = np.array([memory.place(out) for out in outs], np.uint64)
    text = module(body + "st.global.u32 [%d2], %r1; ret;", [".u64 a"])
    Kernel(text).launch(memory, 3, 1, [memory.place(table, writable=False)]).assert_clean()
    assert [out[0] for out in outs] == [0, 1, 2]


def test_choice_of_the_entry():
    two = STORE + STORE.replace(".entry k(", ".entry other(").partition(".address_size 64")[2]
    assert Kernel(two, "oth").name == "other"
    assert Kernel(two, "k").name == "k"
    for entry in ("", "x"):
        with pytest.raises(ParseError, match="the module has: k other"):
            Kernel(two, entry)
    for entry in ("k", "other"):
        assert Kernel(isolate(two, entry)).name == entry
    with pytest.raises(ParseError, match="matches 2 kernels"):
        isolate(two, "")


MALFORMED = {
    "frobnicate.u32 %r1, %r2;": "unsupported opcode 'frobnicate.u32'",
    "add.u32 %r1, %r2;": "expected 3 operands",
    "add.u32 %r1, %r2, %r3, %r4;": "expected 3 operands",
    "add.u32 %r1, %d2, %r3;": "has 64 bits, not 32",
    "add.u32 %r1, %nothing, %r3;": "unknown register '%nothing'",
    "add.u32 %r1, %r99, %r3;": "unknown register '%r99'",
    "add.u32 5, %r1, %r3;": "unknown register '5'",
    "add.u32 %r1 %r2, %r3;": "expected ','",
    "add.u32 %r1, %r2, ;": "expected ','",
    "bra NOWHERE;": "unknown label 'NOWHERE'",
    "L: L: ret;": "label defined twice",
    "brx.idx %r1, T;": "unknown branch table",
    "ld.global.v2.u32 %r1, [%d1];": "vector width and operand differ",
    "ld.global.u32 %r1, %d1;": "expected an address",
    "ld.global.u32 %r1, [%d1;": "bad address",
    "ld.global.u32 %r1, [%h1];": "32 or 64 bits",
    "ld.global.u32 %r1, [%d1+x];": "bad address offset",
    "ld.local.u32 %r1, [%d1];": "unsupported opcode 'ld.local.u32'",
    ".local .align 4 .b8 depot[16];": "local memory",
    "call foo;": "unsupported opcode 'call'",
    "bar.sync 1;": "only barrier 0",
    "@%r1 bra L; L:": "has 32 bits, not 1",
    "mov.b64 {%r1, %r2}, {%r3, %r4};": "only one side",
    "mov.b32 {%r1, %r2}, %r3;": "has 32 bits, not 16",
    ".reg .b8 %x;": "unsupported register type",
    "}": "unsupported directive|unexpected",
    "add.rz.f64 %d1, %d1, %d1;": "unsupported opcode",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f0}, {%r0}, {%r1}, {%f0};": "fragment registers",
    "/* no end": "unterminated comment",
    '.pragma "x;': "unterminated string",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_text(text):
    with pytest.raises(ParseError, match=MALFORMED[text]):
        Kernel(module(f"{text}\n ret;"))


def test_messages_carry_the_line_and_the_text():
    with pytest.raises(ParseError, match=r"^PTX line 3: unsupported opcode 'add.q32': add.q32 %r1, %r2$"):
        Kernel(".entry k() {\n.reg .b32 %r<3>;\nadd.q32 %r1, %r2; ret; }")


LOOP = """.shared .align 16 .b8 s[512]; mov.u32 %r1, %tid.x; mov.u32 %r2, s; mad.lo.u32 %r3, %r1, 16, %r2;
  mov.u32 %r4, 0;
  LOOP: mad.wide.u32 %d1, %r4, 512, %d0; mad.wide.u32 %d1, %r1, 16, %d1; mov.u32 %r9, 16;
  cp.async.cg.shared.global [%r3], [%d1], 16, %r9; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;
  ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r5, %r6}, [%r3];
  mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f0,%f1,%f2,%f3}, {%r5,%r6}, {%r5}, {%f0,%f1,%f2,%f3};
  shfl.sync.bfly.b32 %r7|%p2, %r5, 1, 31, -1; setp.lt.s32 %p1, %r4, 3;
  @%p2 st.global.v2.b32 [%d1+8], {%r6, %r7};
  add.u32 %r4, %r4, 1; bar.sync 0; @%p1 bra LOOP; ret;"""


def test_edits_never_crash():
    """Exchanged, dropped and doubled characters and words give a clean exception, reports, or a result."""
    text = module("ld.param.u64 %d0, [a];" + LOOP, [".u64 a"])
    outcomes = dict.fromkeys(("parse", "run", "ok"), 0)
    rng = random.Random(0)
    words = [
        *text.split(),
        "%r63",
        "%d1",
        "-1",
        "4294967295",
        "{",
        "}",
        "[",
        "]",
        ";",
        "0x7fffffffffffffff",
        "_",
        "@",
    ]
    for _ in range(4000):
        at, end = rng.randrange(len(text)), rng.choice([1, 1, 2, 5, 20])
        edit = rng.choice(["", rng.choice(words), rng.choice("0123456789%.,;[]{}")])
        edited = text[:at] + edit + text[at + end :]
        memory = Memory()
        try:
            kernel = Kernel(edited)
            values = [memory.place(np.zeros(512, np.uint32))][: len(kernel.parameters)]
            kernel.launch(memory, 1, 32, values, step_limit=5000)
            outcomes["ok"] += 1
        except (ParseError, ValueError):
            outcomes["parse"] += 1
        except (StepLimit, ExecutionError):
            outcomes["run"] += 1
    assert min(outcomes.values()) > 0, outcomes
