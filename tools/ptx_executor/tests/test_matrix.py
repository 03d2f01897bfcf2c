"""mma, ldmatrix, stmatrix, movmatrix: the lane and register of every element, from the PTX ISA's figures."""

import itertools

import numpy as np
import pytest

from ptx_executor import opcodes

from .kernel_text import execute, kinds
from .oracle import from_bfloat, to_bfloat, truncate_to_tf32

# PTX ISA, "Matrix Fragments for mma.m16n8k*": groupID = laneid >> 2, threadID_in_group = laneid % 4.  Each
# function gives (row, column) of element i of the fragment in a lane; two bf16 elements share a register, low
# first.


def group(lane: int) -> int:
    return lane >> 2


def thread(lane: int) -> int:
    return lane % 4


def a_m16n8k16_bf16(lane: int, i: int) -> tuple[int, int]:
    row = group(lane) if 0 <= i < 2 or 4 <= i < 6 else group(lane) + 8
    column = thread(lane) * 2 + (i & 1) if i < 4 else thread(lane) * 2 + (i & 1) + 8
    return row, column


def b_m16n8k16_bf16(lane: int, i: int) -> tuple[int, int]:
    row = thread(lane) * 2 + (i & 1) if i < 2 else thread(lane) * 2 + (i & 1) + 8
    return row, group(lane)


def a_m16n8k8_bf16(lane: int, i: int) -> tuple[int, int]:
    return (group(lane) if i < 2 else group(lane) + 8), thread(lane) * 2 + (i & 1)


def b_m16n8k8_bf16(lane: int, i: int) -> tuple[int, int]:
    return thread(lane) * 2 + i, group(lane)


def a_m16n8k8_tf32(lane: int, i: int) -> tuple[int, int]:
    row = group(lane) if i in (0, 2) else group(lane) + 8
    return row, thread(lane) if i in (0, 1) else thread(lane) + 4


def b_m16n8k8_tf32(lane: int, i: int) -> tuple[int, int]:
    return (thread(lane) if i == 0 else thread(lane) + 4), group(lane)


def a_m16n8k4_tf32(lane: int, i: int) -> tuple[int, int]:
    return (group(lane) if i == 0 else group(lane) + 8), thread(lane)


def b_m16n8k4_tf32(lane: int, i: int) -> tuple[int, int]:
    return thread(lane), group(lane)


def c_m16n8(lane: int, i: int) -> tuple[int, int]:
    return (group(lane) if i < 2 else group(lane) + 8), thread(lane) * 2 + (i & 1)


SHAPES = {
    "m16n8k16.row.col.f32.bf16.bf16.f32": (16, a_m16n8k16_bf16, 8, b_m16n8k16_bf16, 4),
    "m16n8k8.row.col.f32.bf16.bf16.f32": (8, a_m16n8k8_bf16, 4, b_m16n8k8_bf16, 2),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (8, a_m16n8k8_tf32, 4, b_m16n8k8_tf32, 2),
    "m16n8k4.row.col.f32.tf32.tf32.f32": (4, a_m16n8k4_tf32, 2, b_m16n8k4_tf32, 1),
}


def to_lanes(matrix: np.ndarray, place, count: int) -> np.ndarray:
    """Return the registers of each lane, with two 16-bit elements packed into a register."""
    fragment = np.array([[matrix[place(lane, i)] for i in range(count)] for lane in range(32)])
    return np.ascontiguousarray(fragment).view(np.uint32)


def from_lanes(registers: np.ndarray) -> np.ndarray:
    matrix = np.zeros((16, 8), np.float32)
    for lane in range(32):
        for i in range(4):
            matrix[c_m16n8(lane, i)] = registers[lane, i]
    return matrix


def names(letter: str, first: int, count: int) -> str:
    return "{" + ", ".join(f"%{letter}{first + i}" for i in range(count)) + "}"


def run_mma(shape: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return A B + C as the executor computes it; `a` and `b` are the bits of the elements."""
    _, place_a, count_a, place_b, count_b = SHAPES[shape]
    inputs = [to_lanes(a, place_a, count_a), to_lanes(b, place_b, count_b), to_lanes(c, c_m16n8, 4)]
    out = np.zeros((32, 4), np.float32)
    lines, registers, first = ["mov.u32 %r63, %laneid;"], [], 0
    for i, fragment in enumerate(inputs):
        count = fragment.shape[1]
        lines.append(f"mad.wide.u32 %d{10 + i}, %r63, {4 * count}, %d{i};")
        lines += [f"ld.global.b32 %r{first + k}, [%d{10 + i}+{4 * k}];" for k in range(count)]
        registers.append(names("r", first, count))
        first += count
    lines.append(f"mma.sync.aligned.{shape} {names('f', 0, 4)}, {', '.join(registers)};")
    lines += ["mad.wide.u32 %d13, %r63, 16, %d3;", f"st.global.v4.f32 [%d13], {names('f', 0, 4)}; ret;"]
    launch = execute("\n".join(lines), [*inputs, out])
    launch.assert_clean()
    assert launch.counters.mma == 1
    return from_lanes(out)


def bits_of(shape: str, values: np.ndarray) -> np.ndarray:
    return to_bfloat(values) if "bf16" in shape else values.astype(np.float32).view(np.uint32)


@pytest.mark.parametrize("shape", SHAPES)
def test_mma_places_every_element(shape):
    """The product of one element of a and one of b appears at their row and column, or nowhere."""
    k = SHAPES[shape][0]
    rng = np.random.default_rng(0)
    for _ in range(40):
        row, column, ka, kb = rng.integers(16), rng.integers(8), rng.integers(k), rng.integers(k)
        kb = ka if rng.random() < 0.8 else kb
        a, b, c = np.zeros((16, k)), np.zeros((k, 8)), np.zeros((16, 8), np.float32)
        a[row, ka], b[kb, column] = 3, 5
        c[rng.integers(16), rng.integers(8)] = 1
        np.testing.assert_array_equal(run_mma(shape, bits_of(shape, a), bits_of(shape, b), c), a @ b + c)


@pytest.mark.parametrize("shape", SHAPES)
def test_mma_of_random_matrices(shape):
    k = SHAPES[shape][0]
    rng = np.random.default_rng(1)
    a, b, c = (rng.standard_normal(s).astype(np.float32) for s in ((16, k), (k, 8), (16, 8)))
    bits_a, bits_b = bits_of(shape, a), bits_of(shape, b)
    exact = from_bfloat if "bf16" in shape else lambda bits: truncate_to_tf32(bits.view(np.float32))
    product = exact(bits_a).astype(float) @ exact(bits_b).astype(float) + c
    np.testing.assert_allclose(run_mma(shape, bits_a, bits_b, c), product, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count, transposed):
    """Lane l addresses row l % 8 of matrix l / 8 and gets elements 2 (l % 4) and one more of row l / 4."""
    values = np.random.default_rng(2).integers(0, 1 << 16, (4, 8, 8), np.uint16)
    out = np.zeros((32, count), np.uint32)
    trans = ".trans" if transposed else ""
    # Rows are 48 bytes apart, so that a wrong address shows.
    body = f""".shared .align 16 .b8 s[1536]; mov.u32 %r1, %laneid; mov.u32 %r2, s;
      mad.lo.u32 %r3, %r1, 48, %r2;
      mad.wide.u32 %d2, %r1, 16, %d0; ld.global.v4.b32 {names("r", 4, 4)}, [%d2];
      st.shared.v4.b32 [%r3], {names("r", 4, 4)}; bar.sync 0;
      ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {names("r", 10, count)}, [%r3];
      mad.wide.u32 %d3, %r1, {4 * count}, %d1;"""
    stores = "".join(f"st.global.b32 [%d3+{4 * i}], %r{10 + i};" for i in range(count))
    launch = execute(body + stores + "ret;", [values, out])
    launch.assert_clean()
    matrices = values.transpose(0, 2, 1) if transposed else values
    for lane in range(32):
        for i in range(count):
            row = matrices[i]
            low, high = row[lane // 4].tolist()[lane % 4 * 2 :][:2]
            assert out[lane, i] == low | high << 16
    line = next(line for line in launch.counters.by_line if "ldmatrix" in line["opcode"])
    assert line["ideal"] == count
    # 48-byte rows: rows 0 and 8 would share banks, the eight of a matrix do not.
    assert line["wavefronts"] == count


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix(count, transposed):
    """Lane l addresses row l % 8 of matrix l / 8 and gives elements 2 (l % 4) and one more of row l / 4."""
    values = np.random.default_rng(3).integers(0, 1 << 32, (32, 4), np.uint32)
    out = np.full((32, 8), 0xFFFF, np.uint16)
    trans = ".trans" if transposed else ""
    body = f""".shared .align 16 .b8 s[1536]; mov.u32 %r1, %laneid; mov.u32 %r2, s;
      mad.lo.u32 %r3, %r1, 48, %r2; mad.wide.u32 %d2, %r1, 16, %d0; mad.wide.u32 %d3, %r1, 16, %d1;
      ld.global.v4.b32 {names("r", 10, 4)}, [%d2];
      stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r3], {names("r", 10, count)}; bar.sync 0;
      setp.ge.u32 %p1, %r1, {8 * count}; @%p1 ret;
      ld.shared.v4.b32 {names("r", 4, 4)}, [%r3]; st.global.v4.b32 [%d3], {names("r", 4, 4)}; ret;"""
    launch = execute(body, [values, out])
    launch.assert_clean()
    for lane in range(32):
        for i in range(count):
            matrix = out[8 * i : 8 * i + 8].T if transposed else out[8 * i : 8 * i + 8]
            low, high = matrix[lane // 4].tolist()[lane % 4 * 2 :][:2]
            assert values[lane, i] == low | high << 16
    assert (out[8 * count :] == 0xFFFF).all()
    line = next(line for line in launch.counters.by_line if "stmatrix" in line["opcode"])
    assert line["wavefronts"] == line["ideal"] == count


def test_stmatrix_races_with_a_read_of_another_warp():
    body = """.shared .align 16 .b8 s[128]; mov.u32 %r1, %laneid; mov.u32 %r2, s; and.b32 %r3, %r1, 7;
      mad.lo.u32 %r3, %r3, 16, %r2; mov.u32 %r5, %tid.x; setp.lt.u32 %p1, %r5, 32;
      @%p1 bra STORE; ld.shared.b32 %r6, [%r2]; ret;
      STORE: stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r3], {%r1}; ret;"""
    assert "shared race: read after write" in kinds(execute(body, block=64))


@pytest.mark.parametrize(("values", "reports"), [("%r2", []), ("%r5", ["shared race: write after write"])])
def test_warps_may_store_the_same_matrix(values, reports):
    """Two stores of the same bytes are benign, as for any other store."""
    body = f""".shared .align 16 .b8 s[128]; mov.u32 %r1, %laneid; mov.u32 %r2, s; and.b32 %r3, %r1, 7;
      mad.lo.u32 %r3, %r3, 16, %r2; mov.u32 %r5, %tid.x;
      stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r3], {{{values}}}; ret;"""
    assert kinds(execute(body, block=64)) == reports


def test_movmatrix():
    """Lane l gives elements 2 (l % 4) and one more of row l / 4, and gets those of the transpose."""
    values = np.random.default_rng(4).integers(0, 1 << 16, (8, 8), np.uint16)
    out = np.zeros((8, 8), np.uint16)
    body = """mov.u32 %r1, %laneid; mad.wide.u32 %d2, %r1, 4, %d0; mad.wide.u32 %d3, %r1, 4, %d1;
      ld.global.b32 %r2, [%d2]; movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r2;
      st.global.b32 [%d3], %r2; ret;"""
    execute(body, [values, out]).assert_clean()
    assert (out == values.T).all()


def test_fragment_instructions_need_a_whole_warp():
    body = "mov.b32 %f0, 0; mov.b32 %r0, 0; mov.u32 %r1, %laneid; setp.lt.u32 %p1, %r1, 16;"
    sums = "{%f0,%f1,%f2,%f3}"
    mma = f"mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {sums}, {{%r0,%r0}}, {{%r0}}, {sums};"
    partial = "warp instruction executed by part of a warp"
    assert kinds(execute(f"{body} @%p1 {mma} ret;")) == [partial]
    assert kinds(execute(f"{body} @!%p1 exit; {mma} ret;")) == [partial]
    assert kinds(execute(f"{body} {mma} ret;", block=16)) == [partial]
    execute(f"{body} {mma} ret;", block=64).assert_clean()


def test_every_matrix_opcode_is_tested():
    expected = {f"mma.{shape}" for shape in SHAPES}
    for count, trans in itertools.product((1, 2, 4), ("", ".trans")):
        expected |= {f"{way}matrix.m8n8.x{count}{trans}.b16" for way in ("ld", "st")}
    expected.add("movmatrix.m8n8.trans.b16")
    families = ("mma", "ldmatrix", "stmatrix", "movmatrix")
    assert {name for name in opcodes() if name.startswith(families)} == expected
