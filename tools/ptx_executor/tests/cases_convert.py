"""Expected results of the conversions and comparisons."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from .cases_float import nearest_bfloat
from .cases_integer import Case
from .oracle import from_bfloat, round_fraction, wrap

INTEGERS = [f"{letter}{bits}" for bits in (8, 16, 32, 64) for letter in "us"]
ROUNDINGS: dict[str, Callable[[float], int]] = {
    "rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil,
}  # fmt: skip


def limits(kind: str) -> tuple[int, int]:
    bits = int(kind[1:])
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)


def _clamp(value: float, kind: str) -> int:
    low, high = limits(kind)
    return low if value < low else high if value > high else int(value)


def _to_integer(value: float, kind: str, source: str, rounding: Callable) -> int:
    if math.isnan(value):
        return wrap(1 << int(kind[1:]) - 1, kind) if "64" in kind + source else 0
    return _clamp(rounding(value) if math.isfinite(value) else value, kind)


def _to_integral(value: float, rounding: Callable) -> float:
    return math.copysign(float(rounding(value)), value) if math.isfinite(value) else value


def _integers() -> dict[str, Case]:
    cases = {}
    for to, source in itertools.product(INTEGERS, INTEGERS):
        cases[f"cvt.{to}.{source}"] = Case(to, (source,), lambda a: a)
        cases[f"cvt.sat.{to}.{source}"] = Case(to, (source,), lambda a, t=to: _clamp(a, t))
    return cases


def _reals() -> dict[str, Case]:
    cases = {}
    for real in ("f32", "f64"):
        for how, function in ROUNDINGS.items():
            for kind in INTEGERS[2:]:
                cases[f"cvt.{how}.{kind}.{real}"] = Case(
                    kind, (real,), lambda a, k=kind, r=real, f=function: _to_integer(a, k, r, f)
                )
            cases[f"cvt.{how}.{real}.{real}"] = Case(real, (real,), lambda a, f=function: _to_integral(a, f))
        for kind in INTEGERS[2:]:
            cases[f"cvt.rn.{real}.{kind}"] = Case(
                real, (kind,), lambda a, r=real: round_fraction(Fraction(a), r)
            )
        cases[f"cvt.{real}.{real}"] = Case(real, (real,), lambda a: a)
        cases[f"cvt.sat.{real}.{real}"] = Case(
            real, (real,), lambda a: 0.0 if math.isnan(a) or a <= 0 else min(a, 1.0)
        )
    return cases


def _to_single(value: float) -> float:
    return round_fraction(Fraction(value), "f32") if math.isfinite(value) and value else value


def _truncated_bfloat(value: float) -> float:
    if not math.isfinite(value):
        return value
    return math.copysign(round_fraction(Fraction(value), "bf16", "rz"), value)


def _nearest_tf32(value: float) -> int:
    """Round to 11 significant bits, ties away from zero; return the bits of a float."""
    bits = int(np.float32(value).view(np.uint32))
    if not math.isfinite(value):
        return bits
    low = bits & 0x1FFF
    return bits - low + (0x2000 if low >= 0x1000 else 0)


def _special() -> dict[str, Case]:
    return {
        "cvt.f64.f32": Case("f64", ("f32",), lambda a: a),
        "cvt.rn.f32.f64": Case("f32", ("f64",), _to_single),
        "cvt.f32.bf16": Case("f32", ("bf16",), lambda a: float(from_bfloat(np.array(a)))),
        "cvt.f64.bf16": Case("f64", ("bf16",), lambda a: float(from_bfloat(np.array(a)))),
        "cvt.rn.bf16.f32": Case("bf16", ("f32",), nearest_bfloat),
        "cvt.rz.bf16.f32": Case("bf16", ("f32",), _truncated_bfloat),
        "cvt.rna.tf32.f32": Case("tf32", ("f32",), _nearest_tf32),
    }


def _ordered(function: Callable) -> Callable:
    return lambda a, b: not (math.isnan(a) or math.isnan(b)) and function(a, b)


def _unordered(function: Callable) -> Callable:
    return lambda a, b: math.isnan(a) or math.isnan(b) or function(a, b)


RELATIONS: dict[str, Callable] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def relations(kind: str) -> dict[str, Callable]:
    """Return the comparisons of a type."""
    if kind[0] == "b":
        return {name: RELATIONS[name] for name in ("eq", "ne")}
    if kind[0] == "s":
        return RELATIONS
    if kind[0] == "u":
        return RELATIONS | {name: RELATIONS[same] for name, same in UNSIGNED.items()}
    result = {name: _ordered(function) for name, function in RELATIONS.items()}
    result |= {f"{name}u": _unordered(function) for name, function in RELATIONS.items()}
    return result | {"num": _ordered(lambda a, b: True), "nan": _unordered(lambda a, b: False)}


def _comparisons() -> dict[str, Case]:
    combine = {"and.": lambda r, c: r and c, "or.": lambda r, c: r or c, "xor.": lambda r, c: r != c}
    cases = {}
    kinds = [f"{letter}{bits}" for letter in "bus" for bits in (16, 32, 64)] + ["f32", "f64"]
    for kind in kinds:
        for name, function in relations(kind).items():
            two = (kind, kind)
            cases[f"setp.{name}.{kind}"] = Case("pred", two, function)
            for word, operation in combine.items():
                cases[f"setp.{name}.{word}{kind}"] = Case(
                    "pred", (*two, "pred"), lambda a, b, c, f=function, j=operation: j(bool(f(a, b)), bool(c))
                )
    return cases


def _sets(comparisons: dict[str, Case]) -> dict[str, Case]:
    """Return the cases of `set`: a true comparison gives all ones, or 1.0."""
    cases = {}
    for spelling, case in comparisons.items():
        head, _, kind = spelling.rpartition(".")
        if "32" not in kind:
            continue
        for result, yes in (("u32", 2**32 - 1), ("s32", -1), ("f32", 1.0)):
            cases[f"set{head[4:]}.{result}.{kind}"] = Case(
                result, case.arguments, lambda *a, f=case.function, y=yes: y if f(*a) else 0
            )
    return cases


CASES = {**_integers(), **_reals(), **_special(), **_comparisons()}
CASES |= _sets(_comparisons())
