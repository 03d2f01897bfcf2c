"""Exchange between lanes: shfl, vote, redux, elect, activemask."""

import functools
import operator

import numpy as np
import pytest

from ptx_executor import opcodes

from .kernel_text import execute, kinds

LANE = "mov.u32 %r1, %laneid; mad.wide.u32 %d1, %r1, 4, %d0; ld.global.b32 %r2, [%d1];"
STORE = "st.global.b32 [%d1], %r3;"
NOT_CONVERGED = "warp instruction: member lanes not converged"


def run(body: str, values: np.ndarray, **options: int) -> np.ndarray:
    out = values.astype(np.uint32)
    execute(f"{LANE} {body} {STORE} ret;", [out], **options).assert_clean()
    return out


VALUES = np.random.default_rng(0).integers(0, 1 << 32, 32, np.uint32)


@pytest.mark.parametrize("width", [32, 16, 8])
@pytest.mark.parametrize("offset", [0, 1, 3, 8, 17])
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffle(mode, offset, width):
    """Shuffle as CUDA documents __shfl_*_sync with a width; c is the operand that its headers compute."""
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    body = f"shfl.sync.{mode}.b32 %r3|%p1, %r2, {offset}, {clamp}, -1; @!%p1 add.u32 %r3, %r3, 1000;"
    out = run(body, VALUES)
    for lane in range(32):
        start = lane // width * width
        source = {
            "up": lane - offset,
            "down": lane + offset,
            "bfly": lane ^ offset,
            "idx": start + offset % width,
        }[mode]
        inside = source >= start if mode == "up" else source < start + width
        expected = VALUES[source] if inside else VALUES[lane] + np.uint32(1000)
        assert out[lane] == expected, lane


def test_shuffle_of_some_lanes():
    body = "setp.lt.u32 %p1, %r1, 16; mov.b32 %r3, 0; @%p1 shfl.sync.down.b32 %r3, %r2, 1, 31, 0xffff;"
    out = np.append(VALUES[:16], np.zeros(16, np.uint32))
    launch = execute(f"{LANE} {body} {STORE} ret;", [out])
    assert kinds(launch) == ["shfl.sync: source lane inactive"]  # lane 15 reads lane 16
    np.testing.assert_array_equal(out[:15], VALUES[1:16])


@pytest.mark.parametrize("values", [np.zeros(32), np.ones(32), np.arange(32) % 3 == 0])
def test_vote(values):
    values = values.astype(np.uint32)
    ones = int((values << np.arange(32, dtype=np.uint32)).sum())
    set_p = "setp.ne.u32 %p1, %r2, 0; "
    expected = {"any": values.any(), "all": values.all(), "uni": values.all() or not values.any()}
    for mode, result in expected.items():
        assert (
            run(f"{set_p} vote.sync.{mode}.pred %p2, %p1, -1; selp.u32 %r3, 1, 0, %p2;", values) == result
        ).all()
    negated = run(f"{set_p} vote.sync.all.pred %p2, !%p1, -1; selp.u32 %r3, 1, 0, %p2;", values)
    assert (negated == (not values.any())).all()
    assert (run(f"{set_p} vote.sync.ballot.b32 %r3, %p1, -1;", values) == ones).all()


REDUCTIONS = {
    "add.u32": operator.add,
    "add.s32": operator.add,
    "min.u32": min,
    "max.u32": max,
    "min.s32": min,
    "max.s32": max,
    "and.b32": operator.and_,
    "or.b32": operator.or_,
    "xor.b32": operator.xor,
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_redux(name):
    values = VALUES.view(np.int32) if "s32" in name else VALUES
    expected = functools.reduce(REDUCTIONS[name], values.tolist()) % (1 << 32)
    assert (run(f"redux.sync.{name} %r3, %r2, -1;", VALUES) == expected).all()


def test_elect_and_activemask():
    body = (
        "mov.b32 %r3, 0; setp.ge.u32 %p1, %r1, 5; @%p1 bra L; bra M; "
        "L: elect.sync %r4|%p2, 0xffffffe0; @%p2 add.u32 %r3, %r4, 100; M:"
    )
    expected = np.zeros(32)
    expected[5] = 105
    np.testing.assert_array_equal(run(body, VALUES), expected)
    out = run("mov.b32 %r3, 0; setp.lt.u32 %p1, %r1, 4; @%p1 activemask.b32 %r3;", VALUES)
    np.testing.assert_array_equal(out, np.where(np.arange(32) < 4, 15, 0))


def test_members_arrive_one_after_another():
    """The lanes of a shuffle may reach it by different paths, and in any order of the text."""
    body = """setp.lt.u32 %p1, %r1, 16; @%p1 bra LATE; add.u32 %r2, %r2, 5;
      MEET: shfl.sync.bfly.b32 %r3, %r2, 16, 31, -1; bra END; LATE: add.u32 %r2, %r2, 7; bra MEET; END:"""
    sent = VALUES + np.where(np.arange(32) < 16, 7, 5).astype(np.uint32)
    np.testing.assert_array_equal(run(body, VALUES), np.roll(sent, 16))


@pytest.mark.parametrize(
    "opcode",
    [
        "shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1;",
        "vote.sync.any.pred %p2, %p1, -1;",
        "redux.sync.add.u32 %r3, %r2, -1;",
        "bar.warp.sync -1;",
    ],
)
def test_members_that_cannot_come(opcode):
    """Half of the warp waits at one place and half at another, so that the halves never meet."""
    body = f"{LANE} setp.lt.u32 %p1, %r1, 16; @%p1 bra A; {opcode} bra B; A: {opcode} B: ret;"
    assert kinds(execute(body, [VALUES.copy()])) == [NOT_CONVERGED]
    # The instruction does not wait for lanes that have exited.
    execute(f"{LANE} setp.lt.u32 %p1, %r1, 16; @!%p1 exit; {opcode} ret;", [VALUES.copy()]).assert_clean()


def test_a_lane_outside_its_own_mask():
    body = "setp.lt.u32 %p1, %r1, 16; mov.b32 %r3, 0; @%p1 shfl.sync.bfly.b32 %r3, %r2, 1, 31, 0xfffe; ret;"
    assert kinds(execute(LANE + body, [VALUES.copy()])) == [NOT_CONVERGED]


def test_every_warp_opcode_is_tested():
    expected = {f"shfl.sync.{mode}.b32" for mode in ("up", "down", "bfly", "idx")}
    expected |= {f"vote.sync.{mode}.pred" for mode in ("any", "all", "uni")} | {"vote.sync.ballot.b32"}
    expected |= {f"redux.sync.{name}" for name in REDUCTIONS} | {"elect.sync", "activemask.b32"}
    heads = ("shfl", "vote", "redux", "elect", "activemask")
    assert {name for name in opcodes() if name.startswith(heads)} == expected
