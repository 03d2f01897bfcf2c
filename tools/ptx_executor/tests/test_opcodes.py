"""Every opcode that uses neither memory nor other lanes, against exact arithmetic."""

import itertools

import numpy as np
import pytest

from ptx_executor import canonical, opcodes

from .cases_convert import CASES as CONVERT
from .cases_float import CASES as FLOAT
from .cases_float import PACKED
from .cases_integer import CASES as INTEGER
from .cases_integer import Case
from .kernel_text import DTYPES, execute, lanewise
from .oracle import from_bfloat, same, to_bfloat, wrap

CASES = INTEGER | FLOAT | CONVERT
# Tested in other files: the first word of the spelling.
OTHER_FILES = {
    "ld",
    "st",
    "atom",
    "red",
    "cp",
    "mma",
    "ldmatrix",
    "stmatrix",
    "movmatrix",
    "wgmma",
    "shfl",
    "vote",
    "redux",
    "elect",
    "activemask",
    "bar",
    "bra",
    "brx",
    "ret",
    "exit",
    "trap",
    "fence",
    "membar",
    "cvta",
}
HERE = {"and.pred", "or.pred", "xor.pred", "not.pred", "mov.pred", "cvt.rn.bf16x2.f32", *PACKED}
CARRY = {
    f"{name}.{letter}{bits}"
    for name in ("add.cc", "addc", "addc.cc", "sub.cc", "subc", "subc.cc")
    for letter in "us"
    for bits in (32, 64)
}


def test_every_opcode_is_tested():
    known = {name for name in opcodes() if name.split(".")[0] not in OTHER_FILES}
    assert known == set(CASES) | HERE | CARRY


def edge_values(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Return edge cases, small numbers and numbers of every magnitude."""
    if kind == "shift":
        return np.array([0, 1, 5, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255], np.uint32)
    if kind == "pred":
        return np.array([0, 1], np.uint8)
    dtype = DTYPES[kind]
    random = rng.integers(0, 256, (12, dtype.itemsize), np.uint8).view(dtype)[:, 0]
    if dtype.kind == "f":
        tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
        edges = [
            0.0,
            -0.0,
            1,
            -1,
            0.5,
            1.5,
            -2.5,
            3,
            np.pi,
            1e-3,
            100.25,
            tiny,
            -tiny,
            huge,
            np.inf,
            -np.inf,
            np.nan,
        ]
        edges += [2.0**31, -(2.0**31), 2.0**63, 65535.5, 1 + np.finfo(dtype).eps, 1 / 3]
        return np.concatenate([np.array(edges, dtype), random])
    if kind == "bf16":
        return np.concatenate([to_bfloat(np.array([0, 1, -1, 1.5, 3, 1e-3, 7e30, 0.1, -2.5])), random])
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    edges = [0, 1, 2, 3, 7, 100, low, low + 1, high, high - 1, high // 2]
    return np.concatenate([np.array(edges, dtype), random])


def arguments(case: Case, count: int = 256) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    columns = [edge_values(kind, rng) for kind in case.arguments]
    rows = list(itertools.product(*(range(len(column)) for column in columns)))
    if len(rows) > count:
        rows = [rows[i] for i in rng.choice(len(rows), count, replace=False)]
    return [column[[row[i] for row in rows]] for i, column in enumerate(columns)]


def expected(case: Case, columns: list[np.ndarray]) -> np.ndarray:
    values = [case.function(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    if case.result == "pred":
        return np.array(values, bool).astype(np.uint32)
    dtype = DTYPES[case.result]
    if case.result == "bf16":
        bits = (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FFF), bits)
    if dtype.kind == "f":
        return np.array(values, dtype)
    kind = "u32" if case.result == "tf32" else case.result
    return np.array([wrap(int(value), kind) for value in values], dtype)


@pytest.mark.parametrize("spelling", sorted(CASES))
def test_opcode(spelling: str):
    case = CASES[spelling]
    columns = arguments(case)
    names = ["u32" if kind == "shift" else kind for kind in case.arguments]
    got = lanewise(spelling, case.result, names, columns)
    want = expected(case, columns)
    ok = same(got, want)
    if case.result == "bf16":
        ok |= np.isnan(from_bfloat(got)) & np.isnan(from_bfloat(want))
    if case.tolerance:
        with np.errstate(invalid="ignore"):
            ok |= np.abs(got - want) <= case.tolerance * np.abs(want)
    wrong = np.flatnonzero(~ok)[:3]
    assert ok.all(), [(*(column[i] for column in columns), got[i], want[i]) for i in wrong]


@pytest.mark.parametrize("spelling", PACKED)
def test_packed_bfloat(spelling: str):
    single = spelling.replace("bf16x2", "bf16")
    case = FLOAT[single]
    columns = arguments(case)
    halves = [lanewise(single, "bf16", case.arguments, columns).astype(np.uint32)]
    halves.append(halves[0][::-1])
    packed = [column.astype(np.uint32) | column[::-1].astype(np.uint32) << 16 for column in columns]
    got = lanewise(spelling, "bf16x2", ["bf16x2"] * len(columns), packed)
    np.testing.assert_array_equal(got, halves[0] | halves[1] << 16)


def test_pair_of_floats_to_bfloat():
    a, b = arguments(FLOAT["add.f32"])
    got = lanewise("cvt.rn.bf16x2.f32", "b32", ["f32", "f32"], [a, b])
    high, low = (lanewise("cvt.rn.bf16.f32", "bf16", ["f32"], [x]).astype(np.uint32) for x in (a, b))
    np.testing.assert_array_equal(got, high << 16 | low)


@pytest.mark.parametrize(
    ("spelling", "function"),
    [
        ("and.pred", np.logical_and),
        ("or.pred", np.logical_or),
        ("xor.pred", np.logical_xor),
        ("not.pred", lambda a, _: ~a),
        ("mov.pred", lambda a, _: a),
    ],
)
def test_predicates(spelling, function):
    a, b = np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
    columns = [a, b][: 1 if spelling[:3] in ("not", "mov") else 2]
    got = lanewise(spelling, "pred", ["pred"] * len(columns), columns)
    np.testing.assert_array_equal(got.astype(bool), function(a, b))


@pytest.mark.parametrize("spelling", sorted(name for name in CARRY if name.startswith(("add.", "sub."))))
def test_carry_chain(spelling: str):
    """Add or subtract numbers of three words with carries; a fourth word receives the last carry."""
    name, kind = spelling[:3], spelling[-3:]
    bits = int(kind[1:])
    rng = np.random.default_rng(2)
    words = rng.integers(0, 1 << 64, (6, 32), np.uint64)
    words[:, :8], words[3:, :4] = np.uint64(2**64 - 1), np.uint64(0)
    words = words.astype(f"u{bits // 8}")
    out = np.zeros((4, 32), words.dtype)
    letter, size = ("r" if bits == 32 else "d"), bits // 8
    lines = [f"mov.u32 %r9, %tid.x; mad.wide.u32 %d2, %r9, {size}, %d0; mad.wide.u32 %d3, %r9, {size}, %d1;"]
    lines += [f"ld.global.b{bits} %{letter}{10 + i}, [%d3+{i * 32 * size}];" for i in range(6)]
    steps = [f"{name}.cc", f"{name}c.cc", f"{name}c.cc"]
    lines += [
        f"{step}.{kind} %{letter}{16 + i}, %{letter}{10 + i}, %{letter}{13 + i};"
        for i, step in enumerate(steps)
    ]
    lines.append(f"{name}c.{kind} %{letter}19, 0, 0;")
    lines += [f"st.global.b{bits} [%d2+{i * 32 * size}], %{letter}{16 + i};" for i in range(4)]
    execute("\n".join(lines) + "ret;", [out, words]).assert_clean()
    for lane in range(32):
        a, b = (sum(int(words[3 * k + i, lane]) << bits * i for i in range(3)) for k in (0, 1))
        exact = (a + b if name == "add" else a - b) % (1 << 4 * bits)
        assert sum(int(out[i, lane]) << bits * i for i in range(4)) == exact


@pytest.mark.parametrize(
    ("spelling", "same_as"),
    [
        ("add.rn.ftz.f32", "add.f32"),
        ("div.full.f32", "div.f32"),
        ("rsqrt.approx.ftz.f32", "rsqrt.f32"),
        ("mov.f32", "mov.b32"),
        ("ld.volatile.global.f32", "ld.global.b32"),
        ("barrier.sync.aligned", "bar.sync"),
        ("ld.global.nc.L1::no_allocate.L2::128B.v4.f32", "ld.global.b32"),
        ("cvt.rzi.ftz.s32.f32", "cvt.rzi.s32.f32"),
        ("st.relaxed.gpu.global.cs.v2.u64", "st.global.b64"),
        ("cp.async.cg.shared.global.L2::128B", "cp.async.shared.global"),
    ],
)
def test_canonical_spelling(spelling, same_as):
    assert canonical(spelling) == same_as
    assert same_as in opcodes()
