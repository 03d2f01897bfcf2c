"""cp.async: when data arrive, zero filling, and accesses that are allowed in the meantime."""

import numpy as np
import pytest

from ptx_executor import ParseError, opcodes

from .kernel_text import execute, kinds

START = """.shared .align 16 .b8 s[1024]; mov.u32 %r1, %tid.x; mov.u32 %r2, s; mad.lo.u32 %r3, %r1, 16, %r2;
  mad.wide.u32 %d2, %r1, 16, %d0; mad.wide.u32 %d3, %r1, 16, %d1;"""
COPY = "cp.async.cg.shared.global [%r3], [%d2], 16;"
COMMIT, WAIT = "cp.async.commit_group;", "cp.async.wait_group 0;"
READ = "ld.shared.v4.b32 {%r4,%r5,%r6,%r7}, [%r3];"
OUT = "st.global.v4.b32 [%d3], {%r4,%r5,%r6,%r7}; ret;"
READ_IN_FLIGHT = "shared read of in-flight cp.async data"
WRITE_IN_FLIGHT = "shared write of in-flight cp.async data"


def data() -> list[np.ndarray]:
    return [np.arange(1, 257, dtype=np.uint32), np.zeros(256, np.uint32)]


def run(body: str, **options):
    source, out = data()
    launch = execute(START + body, [source, out], **options)
    return launch, source, out


@pytest.mark.parametrize("wait", [COMMIT + WAIT, "cp.async.wait_all;", COMMIT + "cp.async.wait_all;"])
def test_copy_and_wait(wait):
    launch, source, out = run(COPY + wait + READ + OUT)
    launch.assert_clean()
    np.testing.assert_array_equal(out[:128], source[:128])
    assert launch.counters.global_read_bytes == 512


@pytest.mark.parametrize(("size", "kind"), [(4, "ca"), (8, "ca"), (16, "ca"), (16, "cg")])
@pytest.mark.parametrize("source_size", [0, 2, 4, 16, 99])
def test_sizes_and_zero_filling(size, kind, source_size):
    """A source size below the copied size leaves zeros; a larger one is cut to it."""
    body = f"st.shared.v4.b32 [%r3], {{%r1,%r1,%r1,%r1}}; mov.u32 %r9, {source_size}; bar.sync 0;"
    body += f"cp.async.{kind}.shared.global [%r3], [%d2], {size}, %r9;"
    launch, source, out = run(body + COMMIT + WAIT + READ + OUT)
    launch.assert_clean()
    expected = np.arange(32, dtype=np.uint32).repeat(4).reshape(32, 4).view(np.uint8)
    read = min(source_size, size)
    expected[:, :size] = 0
    expected[:, :read] = source[:128].reshape(32, 4).view(np.uint8)[:, :read]
    np.testing.assert_array_equal(out[:128].reshape(32, 4).view(np.uint8), expected)
    assert launch.counters.global_read_bytes == 32 * read


def test_no_bytes_from_nowhere():
    """With a source size of 0 the address is not read, so it may be anything aligned."""
    run(
        "mov.u32 %r9, 0; mov.u64 %d2, 64; cp.async.cg.shared.global [%r3], [%d2], 16, %r9;"
        + COMMIT
        + WAIT
        + READ
        + OUT
    )[0].assert_clean()


def test_groups_land_in_order():
    """wait_group n leaves the last n groups in flight."""
    second = "cp.async.cg.shared.global [%r3+512], [%d2+512], 16;"
    body = COPY + COMMIT + second + COMMIT + "cp.async.wait_group 1;" + READ + OUT
    launch, source, out = run(body)
    launch.assert_clean()
    np.testing.assert_array_equal(out[:128], source[:128])
    assert kinds(run(body.replace("[%r3];", "[%r3+512];"))[0]) == [READ_IN_FLIGHT]
    # An uncommitted copy belongs to no group yet.
    assert kinds(run(COPY + WAIT + READ + OUT)[0]) == [READ_IN_FLIGHT]


def test_the_data_is_poison_until_the_wait():
    launch, _, out = run(COPY + COMMIT + READ + OUT, races=False)
    assert kinds(launch) == []
    assert (out[:128] == 0xFFFFFFFF).all()


def test_in_flight_data():
    assert kinds(run(COPY + COMMIT + READ + WAIT + OUT)[0]) == [READ_IN_FLIGHT]
    write = "st.shared.v4.b32 [%r3], {%r1,%r1,%r1,%r1};"
    assert kinds(run(COPY + COMMIT + write + WAIT + READ + OUT)[0]) == [WRITE_IN_FLIGHT]
    assert kinds(run(write + COPY + COMMIT + WAIT + READ + OUT)[0]) == []


def test_others_see_the_data_after_a_barrier():
    """Waiting covers only the copies of the thread."""
    other = "xor.b32 %r9, %r1, ONE; mad.lo.u32 %r3, %r9, 16, %r2;"
    for one, barrier in ((32, "bar.sync 0;"), (1, "bar.warp.sync -1;")):
        body = COPY + COMMIT + WAIT + barrier + other.replace("ONE", str(one)) + READ + OUT
        launch, source, out = run(body, block=64)
        launch.assert_clean()
        np.testing.assert_array_equal(out.reshape(64, 4), source.reshape(64, 4)[np.arange(64) ^ one])
        reports = kinds(run(body.replace(barrier, "bar.warp.sync -1;" if one == 32 else ""), block=64)[0])
        assert "shared race: read after write" in reports
    early = COPY + COMMIT + "bar.sync 0;" + WAIT + other.replace("ONE", "32") + READ + OUT
    assert {"shared race: read after write", READ_IN_FLIGHT} <= set(kinds(run(early, block=64)[0]))


def test_source_changed_before_the_wait():
    write = "xor.b32 %r9, %r1, 32; mad.wide.u32 %d5, %r9, 16, %d0; st.global.u32 [%d5], %r1;"
    assert "global race: read after write" in kinds(
        run(COPY + COMMIT + "bar.sync 0;" + write + WAIT + "ret;", block=64)[0]
    )
    run(COPY + COMMIT + WAIT + "bar.sync 0;" + write + "ret;", block=64)[0].assert_clean()


def test_bounds_and_alignment():
    assert kinds(run("add.s64 %d2, %d2, 1024;" + COPY + COMMIT + WAIT + "ret;")[0]) == [
        "global read out of bounds"
    ]
    assert kinds(run("add.u32 %r3, %r3, 2048;" + COPY + COMMIT + WAIT + "ret;")[0]) == [
        "shared write out of bounds"
    ]
    assert kinds(run("add.s64 %d2, %d2, 8;" + COPY + COMMIT + WAIT + "ret;")[0]) == ["global misaligned"]
    assert "shared misaligned" in kinds(run("add.u32 %r3, %r3, 8;" + COPY + COMMIT + WAIT + "ret;")[0])


@pytest.mark.parametrize(
    "text",
    [
        "cp.async.cg.shared.global [%r3], [%d2], 8;",
        "cp.async.ca.shared.global [%r3], [%d2], 5;",
        "cp.async.wait_group -1;",
    ],
)
def test_malformed(text):
    with pytest.raises(ParseError):
        run(text + "ret;")


def test_every_async_opcode_is_tested():
    known = {name for name in opcodes() if name.startswith("cp.")}
    assert known == {
        f"cp.async.{what}" for what in ("shared.global", "commit_group", "wait_group", "wait_all")
    }
