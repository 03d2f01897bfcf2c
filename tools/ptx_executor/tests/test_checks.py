"""Every kind of report: present for a faulty kernel, absent for the corrected one."""

import numpy as np
import pytest

from .kernel_text import execute, kinds

START = """.shared .align 16 .b8 s[256]; .shared .align 4 .b8 t[128];
  mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, s; mad.lo.u32 %r4, %r1, 4, %r3;
  xor.b32 %r5, %r1, 1;
  mad.lo.u32 %r5, %r5, 4, %r3; xor.b32 %r6, %r1, 32; mad.lo.u32 %r6, %r6, 4, %r3;
  mad.wide.u32 %d1, %r1, 4, %d0;"""
STORE, LOAD = "st.shared.u32 [%r4], %r1;", "ld.shared.u32 %r7, [%r4];"
NEIGHBOUR, FAR = "ld.shared.u32 %r7, [%r5];", "ld.shared.u32 %r7, [%r6];"
BAR, WARP_BAR = "bar.sync 0;", "bar.warp.sync -1;"

# kind, faulty body, corrected body, launch options
CASES = {
    "global read": (
        "global read out of bounds",
        "ld.global.u32 %r7, [%d1+256];",
        "ld.global.u32 %r7, [%d1+128];",
        {},
    ),
    "global read before the start": ("global read out of bounds", "ld.global.u32 %r7, [%d1-4];", "", {}),
    "global read of nowhere": (
        "global read out of bounds",
        "mov.u64 %d2, 0; ld.global.u32 %r7, [%d2];",
        "",
        {},
    ),
    "global read over the end": (
        "global read out of bounds",
        "ld.global.v2.u32 {%r7,%r8}, [%d0+252];",
        "ld.global.v2.u32 {%r7,%r8}, [%d0+248];",
        {},
    ),
    "global write": (
        "global write out of bounds",
        "st.global.u32 [%d1+132], %r1;",
        "st.global.u32 [%d1+128], %r1;",
        {},
    ),
    "global atomic": (
        "global write out of bounds",
        "red.global.add.u32 [%d0+256], 1;",
        "red.global.add.u32 [%d0+252], 1;",
        {},
    ),
    "global misaligned": (
        "global misaligned",
        "ld.global.u32 %r7, [%d1+2];",
        "ld.global.u16 %h1, [%d1+2];",
        {},
    ),
    "global misaligned vector": (
        "global misaligned",
        "ld.global.v2.u32 {%r7,%r8}, [%d0+4];",
        "ld.global.v2.u32 {%r7,%r8}, [%d0+8];",
        {},
    ),
    "read-only": (
        "write to read-only buffer",
        "st.global.u32 [%d1], %r1;",
        "ld.global.u32 %r1, [%d1];",
        {"read_only": [0]},
    ),
    "uninitialised global": (
        "global read of uninitialised memory",
        "ld.global.u32 %r7, [%d1];",
        "st.global.u32 [%d1], %r1; ld.global.u32 %r7, [%d1];",
        {"uninitialised": [0]},
    ),
    "uninitialised global atomic": (
        "global read of uninitialised memory",
        "red.global.add.u32 [%d1], 1;",
        "st.global.u32 [%d1], %r1; red.global.add.u32 [%d1], 1;",
        {"uninitialised": [0]},
    ),
    "shared read": ("shared read out of bounds", "ld.shared.u32 %r7, [s+256];", STORE + LOAD, {}),
    "shared write between two arrays": (
        "shared write out of bounds",
        "st.shared.u32 [s+256], %r1;",
        STORE,
        {},
    ),
    "shared write before the second": (
        "shared write out of bounds",
        "mov.u32 %r7, t; st.shared.u32 [%r7-4], %r1;",
        "",
        {},
    ),
    "shared write after the last": (
        "shared write out of bounds",
        "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [t+128], %r1;",
        "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [t+124], %r1;",
        {},
    ),
    "dynamic shared": (
        "shared write out of bounds",
        "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [dynamic+64], %r1;",
        "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [dynamic+60], %r1;",
        {"dynamic_shared": 64, "header": ".extern .shared .align 16 .b8 dynamic[];"},
    ),
    "shared misaligned": (
        "shared misaligned",
        "st.shared.u32 [%r4+2], %r1;",
        "st.shared.u16 [%r4+2], %h1;",
        {},
    ),
    "uninitialised shared": ("shared read of uninitialised memory", LOAD, STORE + LOAD, {}),
    "shared memory of the block before": (
        "shared read of uninitialised memory",
        "setp.eq.u32 %p1, %r2, 0; @%p1 st.shared.u32 [%r4], %r1;" + LOAD,
        STORE + LOAD,
        {"grid": 2},
    ),
    "read after write by another warp": (
        "shared race: read after write",
        STORE + FAR,
        STORE + BAR + FAR,
        {"block": 64},
    ),
    "read after write by another warp, warp barrier": (
        "shared race: read after write",
        STORE + WARP_BAR + FAR,
        STORE + BAR + FAR,
        {"block": 64},
    ),
    "read after write by another lane": (
        "shared race: read after write",
        STORE + NEIGHBOUR,
        STORE + WARP_BAR + NEIGHBOUR,
        {},
    ),
    "a shuffle orders no memory": (
        "shared race: read after write",
        STORE + "shfl.sync.bfly.b32 %r8, %r1, 1, 31, -1;" + NEIGHBOUR,
        STORE + WARP_BAR + NEIGHBOUR,
        {},
    ),
    "write after read": (
        "shared race: write after read",
        STORE + BAR + NEIGHBOUR + STORE.replace("%r1", "%r7"),
        STORE + BAR + NEIGHBOUR + BAR + STORE.replace("%r1", "%r7"),
        {},
    ),
    "write after read by many": (
        "shared race: write after read",
        (
            "st.shared.u32 [%r3], 5; bar.sync 0; ld.shared.u32 %r7, [%r3]; "
            "setp.eq.u32 %p1, %r1, 33; @%p1 st.shared.u32 [%r3], %r1;"
        ),
        (
            "st.shared.u32 [%r3], 5; bar.sync 0; ld.shared.u32 %r7, [%r3]; "
            "setp.eq.u32 %p1, %r1, 33; bar.sync 0; @%p1 st.shared.u32 [%r3], %r1;"
        ),
        {"block": 64},
    ),
    "write after write": (
        "shared race: write after write",
        "st.shared.u32 [%r3], %r1;",
        "st.shared.u32 [%r3], 7;",
        {},
    ),
    "atomic and plain": (
        "shared race: write after write",
        STORE + "setp.eq.u32 %p1, %r1, 0; @%p1 red.shared.add.u32 [%r3+4], 1;",
        STORE + WARP_BAR + "red.shared.add.u32 [%r3+4], 1;",
        {},
    ),
    "read of an atomic's cell": (
        "shared race: read after write",
        STORE + BAR + "red.shared.add.u32 [%r3], 1;" + LOAD,
        STORE + BAR + "red.shared.add.u32 [%r3], 1; bar.sync 0;" + LOAD,
        {"block": 32},
    ),
    "global read after write": (
        "global race: read after write",
        "st.global.u32 [%d1], %r1; ld.global.u32 %r7, [%d0];",
        "st.global.u32 [%d1], %r1; bar.sync 0; ld.global.u32 %r7, [%d0];",
        {"block": 64},
    ),
    "global write after write": (
        "global race: write after write",
        "st.global.u32 [%d0], %r1;",
        "red.global.add.u32 [%d0], %r1;",
        {"block": 64},
    ),
    "two blocks write": (
        "global race: write after write",
        "st.global.u32 [%d1], %r2;",
        "st.global.u32 [%d1], %r1;",
        {"grid": 2},
    ),
    "one block reads what another writes": (
        "global race: read after write",
        "setp.eq.u32 %p1, %r2, 0; @%p1 st.global.u32 [%d1], %r1; bar.sync 0; ld.global.u32 %r7, [%d1];",
        "setp.eq.u32 %p1, %r2, 0; @%p1 st.global.u32 [%d1], %r1; bar.sync 0; @%p1 ld.global.u32 %r7, [%d1];",
        {"grid": 2},
    ),
    "one block writes what another has read": (
        "global race: write after read",
        "ld.global.u32 %r7, [%d1]; bar.sync 0; setp.eq.u32 %p1, %r2, 2; @%p1 st.global.u32 [%d1], %r1;",
        "ld.global.u32 %r7, [%d1]; bar.sync 0;",
        {"grid": 3},
    ),
    "atomics of one block, a read of another": (
        "global race: read after write",
        "red.global.add.u32 [%d0], 1; bar.sync 0; ld.global.u32 %r7, [%d0];",
        "red.global.add.u32 [%d0], 1;",
        {"grid": 2},
    ),
}


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("name", CASES)
def test_report(name, seed):
    kind, faulty, corrected, options = CASES[name]
    reports = kinds(execute(f"{START} {faulty} ret;", [np.zeros(64, np.uint32)], seed=seed, **options))
    # In another order the read may come after the write.
    assert kind in reports if seed == 0 else kind.partition(":")[0] in [k.partition(":")[0] for k in reports]
    execute(f"{START} {corrected} ret;", [np.zeros(64, np.uint32)], seed=seed, **options).assert_clean()


def test_one_report_for_each_kind_and_instruction():
    launch = execute(f"{START} ld.global.u32 %r7, [%d1+256]; ret;", [np.zeros(64, np.uint32)], grid=2)
    (report,) = launch.reports
    assert report.count == 64
    assert report.example == "block (0,0,0) warp 0 lane 0, buffer0 + 256 of 256 bytes"
    assert report.instruction == "ld.global.u32 %r7, [%d1+256]"
    with pytest.raises(AssertionError, match="global read out of bounds, 64 times, PTX line"):
        launch.assert_clean()


def test_after_a_report_the_launch_goes_on():
    """A bad read gives poison, and a bad write is dropped."""
    body = "ld.global.u32 %r7, [%d1+1024]; st.global.u32 [%d1+1024], %r7; st.global.u32 [%d1], %r7;"
    out = np.zeros(64, np.uint32)
    assert len(kinds(execute(f"{START} {body} ret;", [out]))) == 2
    assert (out[:32] == 0xFFFFFFFF).all()
    frozen = np.zeros(64, np.uint32)
    execute(f"{START} st.global.u32 [%d1], %r4; ret;", [frozen], read_only=[0])
    assert not frozen.any()


def test_equal_values_are_benign_and_counted():
    launch = execute(f"{START} st.global.u32 [%d1], 7; ret;", [np.zeros(64, np.uint32)], grid=3)
    launch.assert_clean()
    assert launch.counters.benign_writes == 64


def test_without_race_checks():
    faulty = START + LOAD + STORE + FAR + "st.global.u32 [%d0], %r1; ret;"
    options = {"block": 64, "races": False}
    execute(faulty, [np.zeros(64, np.uint32)], **options).assert_clean()
    bounds = execute(f"{START} ld.global.u32 %r7, [%d1+256]; ret;", [np.zeros(64, np.uint32)], **options)
    assert kinds(bounds) == ["global read out of bounds"]


@pytest.mark.parametrize("width", [8, 16])
def test_neighbours_narrower_than_a_word_do_not_conflict(width):
    body = f"{START} mad.lo.u32 %r4, %r1, {width // 8}, %r3; cvt.u64.u32 %d2, %r4; sub.s64 %d3, %d1, 0;"
    body += (
        f"mad.wide.u32 %d3, %r1, {width // 8}, %d0; "
        f"st.shared.u{width} [%r4], %h1; ld.shared.u{width} %h2, [%r4];"
    )
    execute(body + f"st.global.u{width} [%d3], %h2; ret;", [np.zeros(64, np.uint32)]).assert_clean()
