"""ld, st, parameters, module variables, address spaces and atomics."""

import itertools
import struct

import numpy as np
import pytest

from ptx_executor import Kernel, Memory, ParseError, opcodes

from .kernel_text import DTYPES, execute, module, register

SHARED = ".shared .align 16 .b8 s[4096];\n"
WIDTHS = [(bits, vector) for bits in (8, 16, 32, 64) for vector in (1, 2, 4) if bits * vector <= 128]


def registers(bits: int, vector: int, first: int = 10) -> str:
    names = [register(f"b{bits}", first + i) for i in range(vector)]
    return names[0] if vector == 1 else "{" + ", ".join(names) + "}"


def access(operation: str, space: str, bits: int, vector: int, address: str) -> str:
    form = f"{operation}{space}{f'.v{vector}' if vector > 1 else ''}.b{bits}"
    names = registers(bits, vector)
    return f"{form} {names}, [{address}];" if operation == "ld" else f"{form} [{address}], {names};"


@pytest.mark.parametrize(("bits", "vector"), WIDTHS)
@pytest.mark.parametrize("space", [".global", ".shared", "generic global", "generic shared"])
def test_load_and_store(space, bits, vector):
    size = bits * vector // 8
    source = np.random.default_rng(0).integers(0, 256, 32 * size, np.uint8)
    target, middle = np.zeros_like(source), np.zeros_like(source)
    word = "" if "generic" in space else space
    lines = [f"mov.u32 %r9, %tid.x; mul.lo.u32 %r9, %r9, {size}; cvt.u64.u32 %d9, %r9;"]
    lines += ["add.s64 %d0, %d0, %d9; add.s64 %d1, %d1, %d9; add.s64 %d2, %d2, %d9;"]
    lines += [
        "mov.u64 %d3, s; cvta.shared.u64 %d3, %d3; add.s64 %d3, %d3, %d9;",
        "mov.u32 %r3, s; add.s32 %r3, %r3, %r9;",
    ]
    address = "%r3" if space == ".shared" else "%d3" if "shared" in space else "%d2"
    lines += [access("ld", ".global", bits, vector, "%d0"), access("st", word, bits, vector, address)]
    lines += [
        "bar.sync 0;",
        f"mov.b{max(bits, 16)} {registers(bits, 1)}, 0;",
        access("ld", word, bits, vector, address),
    ]
    lines += [access("st", ".global", bits, vector, "%d1"), "ret;"]
    execute(SHARED + "\n".join(lines), [source, target, middle]).assert_clean()
    np.testing.assert_array_equal(target, source)


@pytest.mark.parametrize("space", ["global", "const", "shared", "param", ""])
@pytest.mark.parametrize("kind", ["s8", "u8", "s16", "u16", "s32", "b32"])
def test_narrow_load_into_a_wide_register(space, kind):
    value = np.array([-5]).astype(DTYPES[kind])
    data = value.tobytes().ljust(8, b"\0")
    header = f".const .align 8 .b8 c[8] = {{{', '.join(map(str, data))}}};"
    place = {"global": "[%d0]", "const": "[c]", "shared": "[s]", "param": "[p]", "": "[%d0]"}[space]
    word = f".{space}" if space else ""
    fill = "ld.global.b64 %d5, [%d0]; st.shared.b64 [s], %d5;" if space == "shared" else ""
    body = f"{SHARED} ld.param.u64 %d0, [a]; ld.param.u64 %d1, [b]; {fill}\n"
    body += f"ld{word}.{kind} %r8, {place}; st.global.b32 [%d1], %r8;\n"
    body += f"ld{word}.{kind} %d8, {place}; st.global.b64 [%d1+8], %d8;\n"
    source, out = np.frombuffer(data, np.uint8).copy(), np.zeros(2, np.int64)
    memory = Memory()
    text = module(body + "ret;", [".u64 a", ".u64 b", ".align 8 .b8 p[8]"], header)
    Kernel(text).launch(memory, 1, 1, [memory.place(source), memory.place(out), data]).assert_clean()
    assert out[:1].view(np.int32)[0] == value.astype(np.int64).astype(np.int32)[0]
    extended = value.view(np.uint32) if kind == "b32" else value  # b32 has no sign
    assert out[1] == extended.astype(np.int64)[0]


def test_narrow_store_from_a_wide_register():
    out = np.zeros(4, np.uint8)
    execute(
        "mov.u32 %r1, 0x1234; st.global.u8 [%d0], %r1; st.global.u16 [%d0+2], %r1; ret;", [out], block=1
    ).assert_clean()
    assert out.tolist() == [0x34, 0, 0x34, 0x12]


def test_structs_by_value():
    """Read members at offsets, vectors of members, and an array that is indexed at run time."""
    body = """
      ld.param.u64 %d0, [k_param_0]; ld.param.v2.u32 {%r1, %r2}, [k_param_1+8];
      ld.param.f64 %d1, [k_param_1+16];
      ld.param.s16 %r3, [k_param_1+2]; mov.u32 %r9, %tid.x; mad.wide.u32 %d3, %r9, 4, 24;
      mov.b64 %d2, k_param_1;
      add.s64 %d2, %d2, %d3; ld.param.u32 %r4, [%d2];
      mad.wide.u32 %d5, %r9, 4, %d0; add.s32 %r4, %r4, %r1; add.s32 %r4, %r4, %r2; add.s32 %r4, %r4, %r3;
      cvt.rzi.s32.f64 %r5, %d1; add.s32 %r4, %r4, %r5; st.global.u32 [%d5], %r4; ret;"""
    data = struct.pack("<hhi2id4i", 1, -2, 3, 40, 500, 6000.5, 10, 20, 30, 40)
    memory, out = Memory(), np.zeros(4, np.int32)
    kernel = Kernel(module(body, [".u64 k_param_0", ".align 8 .b8 k_param_1[40]"]))
    assert kernel.parameters == [("k_param_0", 8), ("k_param_1", 40)]
    kernel.launch(memory, 1, 4, [memory.place(out), data]).assert_clean()
    np.testing.assert_array_equal(out, np.array([10, 20, 30, 40]) + 40 + 500 - 2 + 6000)


def test_parameters_out_of_bounds():
    with pytest.raises(ParseError, match="parameter read out of bounds"):
        Kernel(module("ld.param.u64 %d0, [a+4]; ret;", [".u64 a"]))
    kernel = Kernel(module("mov.u64 %d0, 8; ld.param.u64 %d1, [%d0]; ret;", [".u64 a"]))
    assert [r.kind for r in kernel.launch(Memory(), 1, 32, [0]).reports] == ["parameter read out of bounds"]


def test_module_variables():
    """A .global array keeps its values from launch to launch."""
    header = ".const .align 4 .f32 c[2] = {0f3F800000, 0f40000000};\n.global .align 4 .u32 count = 5;"
    body = (
        "mov.u64 %d1, c; ld.const.f32 %f1, [%d1+4]; "
        "st.global.f32 [%d0], %f1; atom.global.add.u32 %r1, [count], 1; "
    )
    body += "st.global.u32 [%d0+4], %r1; ret;"
    memory, out = Memory(), np.zeros(2, np.float32)
    kernel = Kernel(module("ld.param.u64 %d0, [a];" + body, [".u64 a"], header))
    address = memory.place(out)
    for expected in (5, 6):
        kernel.launch(memory, 1, 1, [address]).assert_clean()
        assert (out[0], out[1:].view(np.uint32)[0]) == (2.0, expected)


ATOMICS = {
    "add": (lambda a, b: a + b, ["u32", "s32", "u64", "s64", "f32", "f64"]),
    "min": (min, ["u32", "s32", "u64", "s64"]),
    "max": (max, ["u32", "s32", "u64", "s64"]),
    "and": (lambda a, b: a & b, ["b32", "b64"]),
    "or": (lambda a, b: a | b, ["b32", "b64"]),
    "xor": (lambda a, b: a ^ b, ["b32", "b64"]),
    "exch": (lambda a, b: b, ["b32", "b64"]),
    "cas": (None, ["b32", "b64"]),
}
ATOMIC_CASES = [
    (space, name, kind)
    for space, (name, (_, kinds)) in itertools.product(("global.", "shared.", ""), ATOMICS.items())
    for kind in kinds
]


@pytest.mark.parametrize(("space", "name", "kind"), ATOMIC_CASES)
def test_atomics(space, name, kind):
    """Lanes update two cells in order; the first half of the lanes does not use the result."""
    dtype = DTYPES[kind]
    rng = np.random.default_rng(3)
    values = rng.integers(1, 50, 32).astype(dtype)
    cells, results = np.array([7, 11], dtype), np.zeros(32, dtype)
    bits, size = dtype.itemsize * 8, dtype.itemsize
    value, result, new = (register(f"b{bits}", 10 + i) for i in range(3))
    lines = [f"mov.u32 %r9, %tid.x; and.b32 %r8, %r9, 1; mad.wide.u32 %d3, %r8, {size}, %d0;"]
    lines += [
        f"mad.wide.u32 %d4, %r9, {size}, %d1; mad.wide.u32 %d5, %r9, {size}, %d2; mov.b{bits} {result}, 0;"
    ]
    lines += [f"mad.lo.u32 %r7, %r8, {size}, s; ld.global.b{bits} {value}, [%d4]; setp.lt.u32 %p1, %r9, 16;"]
    lines += [f"ld.global.b{bits} {new}, [%d3]; @%p2 bra L; st.shared.b{bits} [%r7], {new}; L: bar.sync 0;"]
    lines[0] = "setp.ge.u32 %p2, 0, 1;" + lines[0]
    address = "%r7" if space == "shared." else "%d3"
    if name == "cas":
        body = f"atom.{space}cas.{kind} {result}, [{address}], {new}, {value};"
    else:
        body = (
            f"@%p1 red.{space}{name}.{kind} [{address}], {value}; "
            f"@!%p1 atom.{space}{name}.{kind} {result}, [{address}], {value};"
        )
        if name == "exch":
            body = f"atom.{space}{name}.{kind} {result}, [{address}], {value};"
    lines += [
        body,
        "bar.sync 0;",
        f"ld{'.shared' if space == 'shared.' else '.global'}.b{bits} {value}, [{address}];",
    ]
    lines += [f"st.global.b{bits} [%d5], {result}; st.global.b{bits} [%d3+16], {value}; ret;"]
    cells = np.concatenate([cells, np.zeros(4, dtype)])
    execute(SHARED + "\n".join(lines), [cells, values, results], races=False).assert_clean()
    state, old = [dtype.type(7), dtype.type(11)], []
    for lane, v in enumerate(values):
        i = lane % 2
        old.append(state[i])
        state[i] = (
            (v if state[i] == (7, 11)[i] else state[i]) if name == "cas" else ATOMICS[name][0](state[i], v)
        )
    first = 16 if name not in ("cas", "exch") else 0
    np.testing.assert_array_equal(results[first:], old[first:])
    at = 16 // size
    np.testing.assert_array_equal(cells[at : at + 2], state)


def test_every_memory_opcode_is_tested():
    spaces = ["global.", "shared.", "const.", "param.", ""]
    expected = {f"ld.{s}b{bits}" for s in spaces for bits in (8, 16, 32, 64)}
    expected |= {f"ld.{s}s{bits}" for s in spaces for bits in (8, 16, 32)}
    expected |= {f"st.{s}b{bits}" for s in ("global.", "shared.", "") for bits in (8, 16, 32, 64)}
    expected |= {f"atom.{s}{name}.{kind}" for s, name, kind in ATOMIC_CASES}
    expected |= {f"red.{s}{name}.{kind}" for s, name, kind in ATOMIC_CASES if name not in ("cas", "exch")}
    expected |= {f"cvta.{to}{s}.u64" for to in ("", "to.") for s in ("global", "shared", "const")}
    known = {name for name in opcodes() if name.split(".")[0] in ("ld", "st", "atom", "red", "cvta")}
    assert known == expected


@pytest.mark.parametrize("space", ["global", "const", "shared"])
def test_generic_addresses_and_back(space):
    header = ".const .align 4 .u32 c[1] = {77};\n.global .align 4 .u32 g[1] = {77};"
    symbol = {"global": "g", "const": "c", "shared": "s"}[space]
    body = f"""{SHARED} mov.u32 %r2, 77; st.shared.u32 [s], %r2; mov.u64 %d1, {symbol};
      cvta.{space}.u64 %d2, %d1;
      ld.u32 %r3, [%d2]; cvta.to.{space}.u64 %d3, %d2; ld.{space}.u32 %r4, [%d3]; add.s32 %r3, %r3, %r4;
      st.global.u32 [%d0], %r3; ret;"""
    out = np.zeros(1, np.uint32)
    execute(body, [out], block=1, header=header).assert_clean()
    assert out[0] == 154
