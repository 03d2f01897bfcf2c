"""Expected results of the integer opcodes, in Python integers.  The test wraps results to their type."""

from collections.abc import Callable
from typing import NamedTuple


class Case(NamedTuple):
    result: str
    arguments: tuple[str, ...]
    function: Callable
    tolerance: float = 0.0  # relative; 0: exact


def _truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _divide(a: int, b: int) -> int:
    return _truncated(a, b) if b else -1


def _remainder(a: int, b: int) -> int:
    return a - _truncated(a, b) * b if b else a


def _arithmetic() -> dict[str, Case]:
    cases = {}
    for bits in (16, 32, 64):
        for kind in (f"u{bits}", f"s{bits}"):
            two, three, wide = (kind,) * 2, (kind,) * 3, f"{kind[0]}{2 * bits}"
            cases |= {
                f"add.{kind}": Case(kind, two, lambda a, b: a + b),
                f"sub.{kind}": Case(kind, two, lambda a, b: a - b),
                f"mul.lo.{kind}": Case(kind, two, lambda a, b: a * b),
                f"mul.hi.{kind}": Case(kind, two, lambda a, b, n=bits: a * b >> n),
                f"mad.lo.{kind}": Case(kind, three, lambda a, b, c: a * b + c),
                f"mad.hi.{kind}": Case(kind, three, lambda a, b, c, n=bits: (a * b >> n) + c),
                f"div.{kind}": Case(kind, two, _divide),
                f"rem.{kind}": Case(kind, two, _remainder),
                f"min.{kind}": Case(kind, two, min),
                f"max.{kind}": Case(kind, two, max),
            }
            if bits < 64:
                cases[f"mul.wide.{kind}"] = Case(wide, two, lambda a, b: a * b)
                cases[f"mad.wide.{kind}"] = Case(wide, (*two, wide), lambda a, b, c: a * b + c)
            if kind[0] == "s":
                cases[f"abs.{kind}"] = Case(kind, (kind,), abs)
                cases[f"neg.{kind}"] = Case(kind, (kind,), lambda a: -a)
    return cases


def _logic() -> dict[str, Case]:
    cases = {}
    for bits in (16, 32, 64):
        kind = f"b{bits}"
        cases |= {
            f"and.{kind}": Case(kind, (kind, kind), lambda a, b: a & b),
            f"or.{kind}": Case(kind, (kind, kind), lambda a, b: a | b),
            f"xor.{kind}": Case(kind, (kind, kind), lambda a, b: a ^ b),
            f"not.{kind}": Case(kind, (kind,), lambda a: ~a),
            f"cnot.{kind}": Case(kind, (kind,), lambda a: a == 0),
            f"shl.{kind}": Case(kind, (kind, "shift"), lambda a, b: a << b),
            f"mov.{kind}": Case(kind, (kind,), lambda a: a),
            f"selp.{kind}": Case(kind, (kind, kind, "pred"), lambda a, b, p: a if p else b),
        }
        for letter in "bus":
            cases[f"shr.{letter}{bits}"] = Case(
                f"{letter}{bits}", (f"{letter}{bits}", "shift"), lambda a, b: a >> b
            )
    return cases


def _extract(a: int, position: int, length: int, kind: str) -> int:
    """Extract a bit field; bits past the top repeat the sign or are zero, as in Python's integers."""
    position, length = position & 255, length & 255
    if not length:
        return 0
    field = a >> position & (1 << length) - 1
    signed = kind[0] == "s" and field >> length - 1 & 1
    return field - (1 << length) if signed else field


def _insert(a: int, b: int, position: int, length: int) -> int:
    position, length = position & 255, length & 255
    mask = ((1 << length) - 1) << position
    return (a << position & mask) | (b & ~mask)


def _leading(a: int, bits: int) -> int:
    """Return the position of the highest bit that differs from the sign."""
    value = ~a if a < 0 else a
    return value.bit_length() - 1 if value else (1 << 32) - 1


def _fields() -> dict[str, Case]:
    cases = {}
    for bits in (32, 64):
        kind = f"b{bits}"
        for letter in "us":
            typed = f"{letter}{bits}"
            cases[f"bfe.{typed}"] = Case(
                typed, (typed, "shift", "shift"), lambda a, p, n, t=typed: _extract(a, p, n, t)
            )
            cases[f"bfind.{typed}"] = Case("u32", (typed,), lambda a, n=bits: _leading(a, n))
        cases |= {
            f"bfi.{kind}": Case(kind, (kind, kind, "shift", "shift"), _insert),
            f"popc.{kind}": Case("u32", (kind,), lambda a: a.bit_count()),
            f"clz.{kind}": Case("u32", (kind,), lambda a, n=bits: n - a.bit_length()),
            f"brev.{kind}": Case(kind, (kind,), lambda a, n=bits: int(f"{a:0{n}b}"[::-1], 2)),
        }
    return cases


def _lookup(a: int, b: int, c: int, table: int) -> int:
    return sum((table >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1) << i for i in range(32))


def _permute(a: int, b: int, selector: int) -> int:
    data = (b << 32 | a).to_bytes(8, "little")
    result = []
    for k in range(4):
        nibble = selector >> 4 * k & 15
        byte = data[nibble & 7]
        result.append((255 if byte & 128 else 0) if nibble & 8 else byte)
    return int.from_bytes(result, "little")


def _funnel() -> dict[str, Case]:
    four, three = ("b32",) * 4, ("b32",) * 3
    cases = {"lop3.b32": Case("b32", four, _lookup), "prmt.b32": Case("b32", three, _permute)}
    for mode, amount in (("wrap", lambda n: n & 31), ("clamp", lambda n: min(n, 32))):
        cases[f"shf.l.{mode}.b32"] = Case(
            "b32", ("b32", "b32", "shift"), lambda a, b, n, f=amount: (b << 32 | a) << f(n) >> 32
        )
        cases[f"shf.r.{mode}.b32"] = Case(
            "b32", ("b32", "b32", "shift"), lambda a, b, n, f=amount: (b << 32 | a) >> f(n)
        )
    return cases


def _slct() -> dict[str, Case]:
    cases = {}
    kinds = [f"{letter}{bits}" for letter in "bus" for bits in (16, 32, 64)] + ["f32", "f64"]
    for kind in kinds:
        for selector in ("s32", "f32"):
            cases[f"slct.{kind}.{selector}"] = Case(
                kind, (kind, kind, selector), lambda a, b, c: a if c >= 0 else b
            )
    return cases


CASES = {**_arithmetic(), **_logic(), **_fields(), **_funnel(), **_slct()}
