"""Small PTX kernels for the tests."""

from collections.abc import Sequence

import numpy as np

from ptx_executor import Kernel, Launch, Memory

LANES = 32
DTYPES = {
    "b8": np.dtype("u1"), "u8": np.dtype("u1"), "s8": np.dtype("i1"),
    "b16": np.dtype("u2"), "u16": np.dtype("u2"), "s16": np.dtype("i2"), "bf16": np.dtype("u2"),
    "b32": np.dtype("u4"), "u32": np.dtype("u4"), "s32": np.dtype("i4"), "f32": np.dtype("f4"),
    "bf16x2": np.dtype("u4"), "tf32": np.dtype("u4"),
    "b64": np.dtype("u8"), "u64": np.dtype("u8"), "s64": np.dtype("i8"), "f64": np.dtype("f8"),
}  # fmt: skip
REGISTERS = """
  .reg .pred %p<16>;
  .reg .b16 %h<16>;
  .reg .b32 %r<64>;
  .reg .b64 %d<32>;
  .reg .f32 %f<16>;
"""


def module(body: str, parameters: Sequence[str] = (), header: str = "", registers: str = REGISTERS) -> str:
    """Return a module of one kernel `k`."""
    declared = ",\n  ".join(f".param {parameter}" for parameter in parameters)
    return (
        f".version 8.4\n.target sm_90\n.address_size 64\n{header}\n"
        f".visible .entry k(\n  {declared}\n)\n{{{registers}\n{body}\n}}\n"
    )


def execute(
    body: str,
    arrays: Sequence[np.ndarray] = (),
    *,
    numbers: Sequence[int] = (),
    grid: int = 1,
    block: int = LANES,
    header: str = "",
    read_only: Sequence[int] = (),
    uninitialised: Sequence[int] = (),
    **options: int,
) -> Launch:
    """Launch the body with the arrays' addresses in %d0, %d1, ... and the numbers in %r0, %r1, ..."""
    memory = Memory()
    addresses = [
        memory.place(array, f"buffer{i}", writable=i not in read_only, uninitialised=i in uninitialised)
        for i, array in enumerate(arrays)
    ]
    parameters = [f".u64 a{i}" for i in range(len(arrays))] + [f".u32 n{i}" for i in range(len(numbers))]
    loads = [f"  ld.param.u64 %d{i}, [a{i}];" for i in range(len(arrays))]
    loads += [f"  ld.param.u32 %r{i}, [n{i}];" for i in range(len(numbers))]
    text = module("\n".join(loads) + "\n" + body, parameters, header)
    return Kernel(text).launch(memory, grid, block, [*addresses, *numbers], **options)


def kinds(launch: Launch) -> list[str]:
    return [report.kind for report in launch.reports]


def register(kind: str, index: int) -> str:
    bits = DTYPES[kind].itemsize * 8
    return f"%{'h' if bits <= 16 else 'r' if bits == 32 else 'd'}{index}"


def lanewise(
    spelling: str, result: str, arguments: Sequence[str], values: Sequence[np.ndarray]
) -> np.ndarray:
    """Run one opcode on columns of values, with a thread for each row."""
    count = len(values[0])
    inputs = [
        np.ascontiguousarray(value, np.uint8 if kind == "pred" else DTYPES[kind])
        for kind, value in zip(arguments, values, strict=True)
    ]
    output = np.zeros(count, np.uint32 if result == "pred" else DTYPES[result])
    lines = ["mov.u32 %r50, %ctaid.x;", "mov.u32 %r51, %tid.x;", "mad.lo.u32 %r52, %r50, 32, %r51;"]
    names = []
    for i, (kind, array) in enumerate(zip(arguments, inputs, strict=True)):
        bits = array.itemsize * 8
        lines.append(f"mad.wide.u32 %d{20 + i}, %r52, {array.itemsize}, %d{i + 1};")
        if kind == "pred":
            lines += [f"ld.global.u8 %h{10 + i}, [%d{20 + i}];", f"setp.ne.u16 %p{10 + i}, %h{10 + i}, 0;"]
            names.append(f"%p{10 + i}")
        else:
            name = register(kind, 10 + i)
            lines.append(f"ld.global.b{bits} {name}, [%d{20 + i}];")
            names.append(name)
    target = "%p9" if result == "pred" else register(result, 9)
    lines.append(f"{spelling} {', '.join([target, *names])};")
    if result == "pred":
        target = "%r9"
        lines.append(f"selp.b32 {target}, 1, 0, %p9;")
    lines += [f"mad.wide.u32 %d29, %r52, {output.itemsize}, %d0;"]
    lines += [f"st.global.b{output.itemsize * 8} [%d29], {target};", "ret;"]
    grid = -(-count // LANES)
    padded = [np.concatenate([a, np.repeat(a[-1:], grid * LANES - count)]) for a in [output, *inputs]]
    execute("\n".join(lines), padded, grid=grid).assert_clean()
    return padded[0][:count]
