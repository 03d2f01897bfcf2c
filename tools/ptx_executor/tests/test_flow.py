"""Branches, loops, divergence, exits, block barriers, step limits."""

import numpy as np
import pytest

from ptx_executor import ExecutionError, Kernel, Memory, StepLimit, opcodes

from .kernel_text import execute, kinds, module

INDEX = (
    "mov.u32 %r10, %ctaid.x; mov.u32 %r11, %ntid.x; mov.u32 %r12, %tid.x; "
    "mad.lo.u32 %r1, %r10, %r11, %r12; mad.wide.u32 %d1, %r1, 4, %d0;"
)
DIVERGENT = "bar.sync in divergent code"


def test_nested_loops_with_break_and_continue():
    """Every lane has a different number of rounds, skips some and may leave early."""
    body = f"""{INDEX} ld.global.u32 %r2, [%d1]; mov.u32 %r3, 0; mov.u32 %r4, 0;
      LOOP: setp.ge.u32 %p1, %r4, %r2; @%p1 bra DONE;
      rem.u32 %r5, %r4, 3; setp.eq.u32 %p2, %r5, 1; @%p2 bra NEXT;
      setp.gt.u32 %p3, %r3, 200; @%p3 bra DONE;
      xor.b32 %r6, %r1, %r4; and.b32 %r6, %r6, 1; setp.ne.u32 %p4, %r6, 0; @%p4 bra ODD;
      mad.lo.u32 %r3, %r4, 2, %r3; bra NEXT;
      ODD: add.u32 %r3, %r3, %r4;
      NEXT: add.u32 %r4, %r4, 1; bra LOOP;
      DONE: st.global.u32 [%d1], %r3; ret;"""
    rounds = np.random.default_rng(0).integers(0, 40, 128).astype(np.uint32)

    def reference(i: int, n: int) -> int:
        total = 0
        for j in range(n):
            if j % 3 == 1:
                continue
            if total > 200:
                break
            total += j if (i ^ j) & 1 else 2 * j
        return total

    out = rounds.copy()
    launch = execute(body, [out], grid=2, block=64)
    launch.assert_clean()
    assert out.tolist() == [reference(i, int(n)) for i, n in enumerate(rounds)]
    assert launch.counters.divergent_groups > 0


def test_a_branch_to_the_end_of_the_text_and_back():
    """The barrier waits for lanes that take the longer path."""
    body = f"""{INDEX} setp.lt.u32 %p1, %r1, 7; mov.u32 %r2, 1; @%p1 bra FAR; BACK: bar.sync 0;
      st.global.u32 [%d1], %r2; ret; FAR: mov.u32 %r2, 2; bra BACK;"""
    out = np.zeros(32, np.uint32)
    execute(body, [out]).assert_clean()
    assert out.tolist() == [2] * 7 + [1] * 25


def test_branch_table():
    body = f"""{INDEX} and.b32 %r2, %r1, 3; setp.lt.u32 %p1, %r1, 30; T: .branchtargets A, B, C, A;
      @%p1 brx.idx %r2, T; mov.u32 %r3, 9; bra END; A: mov.u32 %r3, 1; bra END; B: mov.u32 %r3, 2; bra END;
      C: mov.u32 %r3, 3; END: st.global.u32 [%d1], %r3; ret;"""
    out = np.zeros(32, np.uint32)
    execute(body, [out]).assert_clean()
    assert out.tolist() == [[1, 2, 3, 1][i % 4] for i in range(30)] + [9, 9]
    with pytest.raises(ExecutionError, match="index 3 is outside"):
        execute(body.replace("A, B, C, A", "A, B, C"), [out])


def test_predicated_exit():
    body = f"{INDEX} setp.lt.u32 %p1, %r1, 8; mov.u32 %r2, 5; @%p1 exit; st.global.u32 [%d1], %r2; ret;"
    out = np.zeros(40, np.uint32)
    execute(body, [out], block=40).assert_clean()
    assert out.tolist() == [0] * 8 + [5] * 32


def test_special_registers():
    names = ["tid", "ntid", "ctaid", "nctaid"]
    body = """mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z; mov.u32 %r4, %ntid.x;
      mov.u32 %r5, %ntid.y;
      mad.lo.u32 %r6, %r3, %r5, %r2; mad.lo.u32 %r6, %r6, %r4, %r1; mov.u32 %r7, %ctaid.z;
      mov.u32 %r8, %nctaid.y;
      mov.u32 %r9, %ctaid.y; mad.lo.u32 %r7, %r7, %r8, %r9; mov.u32 %r8, %nctaid.x; mov.u32 %r9, %ctaid.x;
      mad.lo.u32 %r7, %r7, %r8, %r9; mad.lo.u32 %r6, %r7, 30, %r6; mad.wide.u32 %d1, %r6, 64, %d0;"""
    values = [f"%{name}.{axis}" for name in names for axis in "xyz"] + [
        "%laneid",
        "%warpid",
        "%lanemask_lt",
        "%clock",
    ]
    body += "".join(f"mov.u32 %r20, {v}; st.global.u32 [%d1+{4 * i}], %r20;" for i, v in enumerate(values))
    out = np.zeros((2 * 3 * 2, 30, 16), np.uint32)
    grid, block = (2, 3, 2), (5, 3, 2)
    execute(body + "ret;", [out], grid=grid, block=block, seed=5).assert_clean()
    for b in range(12):
        for t in range(30):
            thread = (t % 5, t // 5 % 3, t // 15)
            place = (b % 2, b // 2 % 3, b // 6)
            assert out[b, t].tolist() == [*thread, *block, *place, *grid, t, 0, (1 << t) - 1, 0]


def test_barrier_reductions():
    body = f"""{INDEX} ld.global.u32 %r2, [%d1]; setp.ne.u32 %p1, %r2, 0; bar.red.popc.u32 %r3, 0, %p1;
      bar.red.and.pred %p2, 0, %p1; bar.red.or.pred %p3, 0, 96, !%p1; selp.u32 %r4, 1000, 0, %p2;
      selp.u32 %r5, 2000, 0, %p3; add.u32 %r3, %r3, %r4; add.u32 %r3, %r3, %r5; st.global.u32 [%d1], %r3;
      ret;"""
    for values in (np.arange(96) % 5 == 0, np.zeros(96), np.ones(96)):
        out = values.astype(np.uint32)
        execute(body, [out], block=96).assert_clean()
        expected = values.sum() + 1000 * values.all() + 2000 * (not values.all())
        assert (out == expected).all()


def test_barriers_in_divergent_code():
    half = f"{INDEX} setp.lt.u32 %p1, %r12, 16;"
    assert kinds(execute(f"{half} @%p1 bar.sync 0; ret;", [np.zeros(32)])) == [DIVERGENT]
    two_places = f"{half} @%p1 bra A; bar.sync 0; bra B; A: bar.sync 0; B: ret;"
    assert set(kinds(execute(two_places, [np.zeros(32)]))) == {DIVERGENT}
    assert kinds(execute(f"{half} @%p1 exit; bar.sync 0; ret;", [np.zeros(32)])) == [DIVERGENT]
    assert kinds(execute(f"{half} @!%p1 bra END; bar.sync 0; END: ret;", [np.zeros(32)])) == [DIVERGENT]
    execute(f"{half} bar.sync 0; @%p1 exit; ret;", [np.zeros(32)]).assert_clean()
    execute(f"{half} bar.sync 0; ret;", [np.zeros(40)], block=40).assert_clean()


def test_barriers_that_other_warps_never_reach():
    body = f"{INDEX} setp.lt.u32 %p1, %r12, 32; @%p1 exit; bar.sync 0; ret;"
    assert kinds(execute(body, [np.zeros(64)], block=64)) == ["bar.sync after other warps have exited"]
    with pytest.raises(ExecutionError, match="deadlock: a barrier of 32 threads in a block of 64"):
        execute("bar.sync 0, 32; ret;", block=64)
    execute("bar.sync 0, 64; barrier.sync.aligned 0; ret;", block=64).assert_clean()


def test_step_limit():
    with pytest.raises(StepLimit, match="more than 1000"):
        execute("L: bra L;", step_limit=1000)
    with pytest.raises(StepLimit):
        execute("L: bar.sync 0; bra L;", step_limit=1000)
    # One lane spins until another, later lane stores: the executor never ends the spin to run the other.
    spin = f"""{INDEX} setp.eq.u32 %p1, %r1, 0; @%p1 bra SET; SPIN: ld.volatile.global.u32 %r2, [%d0];
      setp.eq.u32 %p2, %r2, 0; @%p2 bra SPIN; ret; SET: mov.u32 %r3, 1; st.global.u32 [%d0], %r3; ret;"""
    with pytest.raises(StepLimit):
        execute(spin, [np.zeros(32, np.uint32)], step_limit=10000)


def test_leaving_the_text():
    with pytest.raises(ExecutionError, match="ran off the end"):
        execute("mov.u32 %r1, 0;")


def test_trap():
    out = np.zeros(32, np.uint32)
    body = (
        f"{INDEX} st.global.u32 [%d1], %r11; setp.gt.u32 %p1, %r1, 3; "
        f"@%p1 trap; st.global.u32 [%d1], %r1; ret;"
    )
    launch = execute(body, [out])
    assert kinds(launch) == ["trap executed"]
    assert (out == 32).all()


def test_scopes_hide_registers():
    body = """mov.u32 %r1, 1; { .reg .b32 %r1; mov.u32 %r1, 2; { .reg .b32 t; mov.u32 t, %r1;
      add.u32 %r2, t, 3; } }
      add.u32 %r2, %r2, %r1; st.global.u32 [%d0], %r2; ret;"""
    out = np.zeros(1, np.uint32)
    execute(body, [out], block=1).assert_clean()
    assert out[0] == 6


def test_order_by_seed():
    """The seed decides the order of blocks and warps, and the same seed gives the same order."""
    body = "mov.u32 %r1, 1; atom.global.add.u32 %r2, [%d0], %r1; mov.u32 %r3, %ctaid.x; mov.u32 %r4, %warpid;"
    body += "mad.lo.u32 %r3, %r3, 4, %r4; mad.wide.u32 %d1, %r3, 4, %d0; st.global.u32 [%d1+4], %r2; ret;"
    kernel = Kernel(module("ld.param.u64 %d0, [a];" + body, [".u64 a"]))

    def order(seed: int) -> list[int]:
        memory, out = Memory(), np.zeros(17, np.uint32)
        kernel.launch(memory, 4, 128, [memory.place(out)], seed=seed, races=False)
        return (out[1:] // 32).tolist()

    assert order(0) == list(range(16))
    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(16))


def test_every_flow_opcode_is_tested():
    expected = {"bra", "brx.idx", "ret", "exit", "trap", "bar.sync", "bar.warp.sync", "fence", "membar"}
    expected |= {"bar.red.popc.u32", "bar.red.and.pred", "bar.red.or.pred"}
    heads = ("bra", "brx", "ret", "exit", "trap", "bar", "fence", "membar")
    assert {name for name in opcodes() if name.split(".")[0] in heads} == expected
    execute(
        "fence.acq_rel.gpu; fence.sc.sys; fence.proxy.async.shared::cta; membar.gl; ret.uni;"
    ).assert_clean()
