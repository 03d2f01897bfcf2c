"""wgmma: descriptors, swizzles and the accumulator layout, from the PTX ISA."""

import numpy as np
import pytest

from ptx_executor import ExecutionError, ParseError, opcodes

from .kernel_text import execute, kinds
from .oracle import from_bfloat, to_bfloat

SWIZZLES = {128: 1, 64: 2, 32: 3}  # bytes of a row: the descriptor's code


def swizzled(matrix: np.ndarray, row_bytes: int) -> np.ndarray:
    """Return the swizzled image of rows of `row_bytes` bytes, stored consecutively.

    Within a pattern of 8, 4 or 2 lines of 128 bytes, the 16-byte chunks are permuted: chunk number XOR line
    number (address bits 7 and up).
    """
    data = np.ascontiguousarray(matrix).view(np.uint8).reshape(-1)
    out = np.zeros_like(data)
    for chunk in range(data.size // 16):
        address = chunk * 16
        target = address ^ ((address // 128 % (row_bytes // 16)) * 16)
        out[target : target + 16] = data[address : address + 16]
    return out


def accumulator(lane: int, warp: int, i: int) -> tuple[int, int]:
    """Return the row and column of d[i] of m64nN.

    From the figure "WGMMA .m64nNk16 register fragment layout for accumulator matrix D".
    """
    return 16 * warp + lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + lane % 4 * 2 + i % 2


def kernel(
    n: int, code: int, *, transposed: tuple[int, int], bytes_a: int, strides: tuple[int, int], body: str
) -> str:
    """Return a kernel that copies both operands to shared memory, runs `body` and stores the accumulators.

    `body` has the operands' descriptors in %d10 and %d11.
    """
    registers = ", ".join(f"%a{i}" for i in range(n // 2))
    wgmma = (
        f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{registers}}}, %d10, %d11, %p5, 1, 1, "
        f"{transposed[0]}, {transposed[1]};"
    )
    clear = " ".join(f"mov.f32 %a{i}, 0f3F800000;" for i in range(n // 2))
    store = " ".join(f"st.global.f32 [%d6+{4 * i}], %a{i};" for i in range(n // 2))
    high = code << 30
    return f""".reg .f32 %a<{n // 2}>; .shared .align 1024 .b8 s[40960];
      mov.u32 %r9, %tid.x; mov.u32 %r8, s; mov.u32 %r20, %r9; shl.b32 %r21, %r9, 4;
      setp.eq.u32 %p5, %r0, 1; {clear}
      COPY: setp.ge.u32 %p1, %r21, 40960; @%p1 bra DONE; cvt.u64.u32 %d5, %r21; add.s64 %d5, %d0, %d5;
      ld.global.v4.b32 {{%r30,%r31,%r32,%r33}}, [%d5]; add.s32 %r22, %r8, %r21;
      st.shared.v4.b32 [%r22], {{%r30,%r31,%r32,%r33}}; add.s32 %r21, %r21, 2048; bra COPY;
      DONE: bar.sync 0; fence.proxy.async;
      shr.u32 %r23, %r8, 4; or.b32 %r23, %r23, {strides[0] // 16 << 16};
      mov.u32 %r24, {strides[1] // 16 | high};
      mov.b64 %d10, {{%r23, %r24}}; add.s32 %r23, %r23, {bytes_a // 16}; mov.b64 %d11, {{%r23, %r24}};
      {body.replace("WGMMA", wgmma)}
      mad.wide.u32 %d6, %r9, {2 * n}, %d1; {store} ret;"""


FENCE = "wgmma.fence.sync.aligned;"
COMMIT, WAIT = "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"
ONCE = f"WGMMA {COMMIT} {WAIT}"


def run(n, row_bytes, a, b, *, body=ONCE, accumulate=0, transposed=(0, 0), strides=None, fence=FENCE):
    """Run wgmma on bf16 bits a, 64 x 16, and b, n x 16, padded to rows of `row_bytes` unless transposed."""
    images = [swizzled(x, row_bytes) for x in (a, b)]
    bytes_a = -(-images[0].size // 1024) * 1024
    memory = np.zeros(40960, np.uint8)
    memory[: images[0].size] = images[0]
    memory[bytes_a : bytes_a + images[1].size] = images[1]
    out = np.zeros((128, n // 2), np.float32)
    strides = strides or (16, 8 * row_bytes)
    text = kernel(
        n,
        SWIZZLES[row_bytes],
        transposed=transposed,
        bytes_a=bytes_a,
        strides=strides,
        body=f"{fence} {body}",
    )
    launch = execute(text, [memory, out], numbers=[accumulate], block=128)
    d = np.zeros((64, n), np.float32)
    for thread in range(128):
        for i in range(n // 2):
            d[accumulator(thread % 32, thread // 32, i)] = out[thread, i]
    return launch, d


def operand(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return to_bfloat(rng.standard_normal((rows, columns)))


@pytest.mark.parametrize("row_bytes", SWIZZLES)
@pytest.mark.parametrize("n", [8, 64, 256])
def test_operands_with_k_contiguous(n, row_bytes):
    rng = np.random.default_rng(n)
    a, b = operand(rng, 64, row_bytes // 2), operand(rng, n, row_bytes // 2)
    launch, d = run(n, row_bytes, a, b)
    launch.assert_clean()
    expected = from_bfloat(a[:, :16]).astype(float) @ from_bfloat(b[:, :16]).astype(float).T
    np.testing.assert_allclose(d, expected, rtol=1e-6, atol=1e-6)
    assert launch.counters.mma == 4


def test_operands_with_k_strided():
    """Rows of memory are k, eight to a pattern; a 128-byte row has 64 values of m or n."""
    rng = np.random.default_rng(7)
    a, b = operand(rng, 16, 64), operand(rng, 16, 64)
    # One column block of 64, so the leading offset is not used; the stride goes from k to k + 8.
    launch, d = run(64, 128, a, b, transposed=(1, 1), strides=(2048, 1024))
    launch.assert_clean()
    np.testing.assert_allclose(
        d, from_bfloat(a).astype(float).T @ from_bfloat(b).astype(float), rtol=1e-6, atol=1e-6
    )


def fragment(lane: int, warp: int, r: int) -> tuple[int, int]:
    """Return the row and first column of the two elements in register r.

    From the figure "WGMMA .m64nNk16 register fragment layout for matrix A".
    """
    return 16 * warp + lane // 4 + 8 * (r % 2), lane % 4 * 2 + 8 * (r // 2)


def run_with_fragments(n, a, b, *, transposed=0, strides=(16, 1024), between=""):
    """Run wgmma with a in registers and b in shared memory; `between` is code after the issue."""
    image = swizzled(b, 128)
    fragments = np.zeros((128, 4, 2), np.uint16)
    for thread in range(128):
        for r in range(4):
            row, column = fragment(thread % 32, thread // 32, r)
            fragments[thread, r] = a[row, column : column + 2]
    memory = np.zeros(40960, np.uint8)
    memory[: image.size] = image
    memory[32768 : 32768 + fragments.nbytes] = fragments.view(np.uint8).reshape(-1)
    registers = ", ".join(f"%a{i}" for i in range(n // 2))
    wgmma = (
        f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{registers}}}, "
        f"{{%r40,%r41,%r42,%r43}}, %d10, %p5, 1, 1, {transposed};"
    )
    load = (
        "mad.wide.u32 %d7, %r9, 16, %d0; add.s64 %d7, %d7, 32768; "
        "ld.global.v4.b32 {%r40,%r41,%r42,%r43}, [%d7];"
    )
    body = f"{load} {FENCE} {wgmma} {COMMIT} {between} {WAIT}"
    text = kernel(n, SWIZZLES[128], transposed=(0, 0), bytes_a=0, strides=strides, body=body)
    out = np.zeros((128, n // 2), np.float32)
    launch = execute(text, [memory, out], numbers=[0], block=128)
    d = np.zeros((64, n), np.float32)
    for thread in range(128):
        for i in range(n // 2):
            d[accumulator(thread % 32, thread // 32, i)] = out[thread, i]
    return launch, d


@pytest.mark.parametrize("n", [8, 64, 256])
def test_a_in_registers(n):
    rng = np.random.default_rng(n)
    a, b = operand(rng, 64, 16), operand(rng, n, 64)
    launch, d = run_with_fragments(n, a, b)
    launch.assert_clean()
    expected = from_bfloat(a).astype(float) @ from_bfloat(b[:, :16]).astype(float).T
    np.testing.assert_allclose(d, expected, rtol=1e-6, atol=1e-6)


def test_a_in_registers_and_b_with_k_strided():
    rng = np.random.default_rng(13)
    a, b = operand(rng, 64, 16), operand(rng, 16, 64)
    launch, d = run_with_fragments(64, a, b, transposed=1, strides=(2048, 1024))
    launch.assert_clean()
    expected = from_bfloat(a).astype(float) @ from_bfloat(b).astype(float)
    np.testing.assert_allclose(d, expected, rtol=1e-6, atol=1e-6)


def fragment_tf32(lane: int, warp: int, r: int) -> tuple[int, int]:
    """Return the row and column of the element in register r.

    From the figure "WGMMA .m64nNk8 register fragment layout for matrix A".
    """
    return 16 * warp + lane // 4 + 8 * (r % 2), lane % 4 + 4 * (r // 2)


@pytest.mark.parametrize("in_registers", [False, True])
@pytest.mark.parametrize("row_bytes", SWIZZLES)
@pytest.mark.parametrize("n", [8, 64])
def test_tf32(n, row_bytes, in_registers):
    """The depth is 8; the lower 13 bits of values are ignored; both operands have k contiguous."""
    rng = np.random.default_rng(n)
    a, b = (rng.standard_normal((rows, row_bytes // 4)).astype(np.float32) for rows in (64, n))
    fragments = np.zeros((128, 4), np.float32)
    for thread in range(128):
        for r in range(4):
            fragments[thread, r] = a[fragment_tf32(thread % 32, thread // 32, r)]
    memory = np.zeros(40960, np.uint8)
    for start, image in ((0, swizzled(a, row_bytes)), (16384, swizzled(b, row_bytes))):
        memory[start : start + image.size] = image
    memory[32768 : 32768 + fragments.nbytes] = fragments.view(np.uint8).reshape(-1)
    registers = ", ".join(f"%a{i}" for i in range(n // 2))
    first = "{%r40,%r41,%r42,%r43}" if in_registers else "%d10"
    wgmma = f"wgmma.mma_async.sync.aligned.m64n{n}k8.f32.tf32.tf32 {{{registers}}}, {first}, %d11, %p5, 1, 1;"
    load = (
        "mad.wide.u32 %d7, %r9, 16, %d0; add.s64 %d7, %d7, 32768; "
        "ld.global.v4.b32 {%r40,%r41,%r42,%r43}, [%d7];"
    )
    body = load + FENCE + ONCE.replace("WGMMA", wgmma)
    strides = (16, 8 * row_bytes)
    text = kernel(n, SWIZZLES[row_bytes], transposed=(0, 0), bytes_a=16384, strides=strides, body=body)
    out = np.zeros((128, n // 2), np.float32)
    launch = execute(text, [memory, out], numbers=[0], block=128)
    launch.assert_clean()
    d = np.zeros((64, n), np.float32)
    for thread in range(128):
        for i in range(n // 2):
            d[accumulator(thread % 32, thread // 32, i)] = out[thread, i]
    a, b = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32)[:, :8].astype(float) for x in (a, b))
    np.testing.assert_allclose(d, a @ b.T, rtol=1e-6, atol=1e-6)


def test_registers_overwritten_before_the_wait():
    rng = np.random.default_rng(14)
    launch, _ = run_with_fragments(8, operand(rng, 64, 16), operand(rng, 8, 64), between="mov.u32 %r40, 0;")
    assert kinds(launch) == ["register write to operand of a wgmma in flight"]


UNFENCED = ["wgmma on registers without a wgmma.fence since their last access"]


@pytest.mark.parametrize(
    "access", ["mov.f32 %a3, 0f00000000;", "mov.b32 %r50, %a3;", "@%p6 mov.b32 %r50, %a3;"]
)
def test_accumulator_accessed_after_the_fence(access):
    rng = np.random.default_rng(15)
    a, b = operand(rng, 64, 64), operand(rng, 8, 64)
    never = "setp.eq.u32 %p6, %r0, 77;"
    reports = kinds(run(8, 128, a, b, body=f"{never} {access} {ONCE}")[0])
    assert reports == ([] if access.startswith("@") else UNFENCED)
    assert not kinds(run(8, 128, a, b, body=f"{never} {access} {FENCE} {ONCE}")[0])


def test_fence_between_wgmmas():
    """A wgmma of the same shape needs no fence; one after an access does, even after the wait."""
    rng = np.random.default_rng(16)
    a, b = operand(rng, 64, 64), operand(rng, 8, 64)
    assert not kinds(run(8, 128, a, b, body=f"{ONCE} {ONCE}")[0])
    scale = "add.f32 %a2, %a2, %a2;"
    assert kinds(run(8, 128, a, b, body=f"{ONCE} {scale} {ONCE}")[0]) == UNFENCED
    assert not kinds(run(8, 128, a, b, body=f"{ONCE} {scale} {FENCE} {ONCE}")[0])
    other = "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%a0,%a1,%a2,%a3}, %d10, %d11, %p5, 1, 1;"
    assert kinds(run(8, 128, a, b, body=f"{other} {ONCE}")[0]) == UNFENCED
    assert not kinds(run(8, 128, a, b, body=f"{other} {FENCE} {ONCE}")[0])


def test_no_fence_at_all():
    rng = np.random.default_rng(17)
    a, b = operand(rng, 64, 64), operand(rng, 8, 64)
    launch, _ = run(8, 128, a, b, fence="")
    assert kinds(launch) == UNFENCED


def test_accumulation_in_one_group():
    rng = np.random.default_rng(8)
    a, b = operand(rng, 64, 64), operand(rng, 16, 64)
    one = run(16, 128, a, b, accumulate=1)[1]
    two = run(16, 128, a, b, accumulate=1, body="WGMMA " + ONCE)[1]
    product = from_bfloat(a[:, :16]).astype(float) @ from_bfloat(b[:, :16]).astype(float).T
    np.testing.assert_allclose(one, product + 1, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(two, 2 * product + 1, rtol=1e-6, atol=1e-6)


def test_accumulators_are_poison_until_the_wait():
    rng = np.random.default_rng(9)
    a, b = operand(rng, 64, 64), operand(rng, 8, 64)
    assert np.isnan(run(8, 128, a, b, body=f"WGMMA {COMMIT}")[1]).all()
    assert np.isnan(run(8, 128, a, b, body=ONCE.replace("aligned 0", "aligned 1"))[1]).all()


def test_operand_overwritten_before_the_wait():
    rng = np.random.default_rng(10)
    a, b = operand(rng, 64, 64), operand(rng, 8, 64)
    issue, wait = f"WGMMA {COMMIT}", WAIT
    write = "setp.eq.u32 %p2, %r9, 0; @%p2 st.shared.v4.b32 [%r8], {%r30,%r31,%r32,%r33};"
    early = run(8, 128, a, b, body=f"{issue} bar.sync 0; {write} bar.sync 0; {wait}")[0]
    assert kinds(early) == ["shared write to operands of a wgmma in flight"]
    other = write.replace("%r9, 0", "%r9, 32")  # a warp that has not waited for warp 0
    assert kinds(run(8, 128, a, b, body=f"{issue} {wait} {other}")[0]) == ["shared race: write after read"]
    run(8, 128, a, b, body=f"{issue} {wait} {write}")[0].assert_clean()
    run(8, 128, a, b, body=f"{issue} {wait} bar.sync 0; {other}")[0].assert_clean()


def test_operand_written_without_a_barrier():
    rng = np.random.default_rng(12)
    a, b = operand(rng, 64, 64), operand(rng, 8, 64)
    write = "setp.eq.u32 %p2, %r9, 0; @%p2 st.shared.v4.b32 [%r8], {%r30,%r31,%r32,%r33};"
    assert kinds(run(8, 128, a, b, body=write + ONCE)[0]) == ["shared race: read after write"]
    run(8, 128, a, b, body=f"{write} bar.sync 0; {ONCE}")[0].assert_clean()


def test_what_is_not_supported():
    rng = np.random.default_rng(11)
    a, b = operand(rng, 64, 64), operand(rng, 8, 64)
    with pytest.raises(ExecutionError, match="without swizzle"):
        run(8, 128, a, b, body="mov.u64 %d10, 0;" + ONCE)
    with pytest.raises(ParseError, match="bad wgmma shape"):
        execute(
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0,%f1}, %d1, %d2, %p1, 1, 1, 0, 0; ret;"
        )


def test_every_wgmma_opcode_is_tested():
    known = {name for name in opcodes() if name.startswith("wgmma")}
    shapes = {f"wgmma.mma_async.m64nN{kind}" for kind in ("k16.f32.bf16.bf16", "k8.f32.tf32.tf32")}
    assert known == {*shapes, "wgmma.fence", "wgmma.commit_group", "wgmma.wait_group"}
