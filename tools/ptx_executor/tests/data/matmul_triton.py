"""C = A B in bfloat16 by Triton for sm_90, for the executor's tests: wgmma on swizzled shared memory.

It needs no GPU.  `python matmul_triton.py` writes matmul_triton.ptx, without its debug sections.
"""

from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def matmul(a, b, c, m, n, k, tile: tl.constexpr, depth: tl.constexpr):
    rows = tl.program_id(0) * tile + tl.arange(0, tile)
    columns = tl.program_id(1) * tile + tl.arange(0, tile)
    inner = tl.arange(0, depth)
    total = tl.zeros((tile, tile), tl.float32)
    for start in range(0, k, depth):
        inside = start + inner < k
        left = a + rows[:, None] * k + (start + inner)[None, :]
        right = b + (start + inner)[:, None] * n + columns[None, :]
        x = tl.load(left, mask=(rows[:, None] < m) & inside[None, :], other=0.0)
        y = tl.load(right, mask=inside[:, None] & (columns[None, :] < n), other=0.0)
        total = tl.dot(x, y, total)
    out = c + rows[:, None] * n + columns[None, :]
    tl.store(out, total, mask=(rows[:, None] < m) & (columns[None, :] < n))


def main() -> None:
    types = {"a": "*bf16", "b": "*bf16", "c": "*fp32", "m": "i32", "n": "i32", "k": "i32"}
    sizes = {"tile": 64, "depth": 32}
    source = ASTSource(
        fn=matmul,
        signature=types | dict.fromkeys(sizes, "constexpr"),
        constexprs=sizes,
        attrs={(i,): [["tt.divisibility", 16]] for i in range(len(types))},
    )
    options = {"num_warps": 4, "num_stages": 3}
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    text = kernel.asm["ptx"].split("\t.file\t")[0]
    name = Path(__file__).name
    header = f"// {kernel.metadata.shared} bytes of dynamic shared memory\n"
    Path(__file__).with_suffix(".ptx").write_text(f'{header}{text}\t.file\t1 "{name}"\n')


if __name__ == "__main__":
    main()
