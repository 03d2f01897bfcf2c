"""Expected results of the floating-point opcodes, in exact fractions rounded once."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from .cases_integer import Case
from .oracle import FORMATS, exact, from_bfloat, round_fraction

DTYPES = {"f32": np.float32, "f64": np.float64}
# The executor computes these in double and rounds once; libm is not exact to the last bit of a double.
ONE_ULP = {"f32": 2.0**-23, "f64": 2.0**-52}


def _native(kind: str, function: Callable) -> Callable[..., float]:
    """Return the operation on the host, for infinities, NaN and zeros, which need no rounding."""

    def apply(*values: float) -> float:
        with np.errstate(all="ignore"):
            return float(function(*(DTYPES.get(kind, np.float32)(value) for value in values)))

    return apply


def _least(a: float, b: float) -> float:
    if math.isnan(a):
        return b
    if math.isnan(b):
        return a
    return (
        min(a, b)
        if a != b
        else math.copysign(a, -1 if -1 in (math.copysign(1, a), math.copysign(1, b)) else 1)
    )


def _greatest(a: float, b: float) -> float:
    return -_least(-a, -b)


def _zero(kind: str, mode: str, terms: Callable) -> Callable[..., float]:
    """Return a sum that is infinite, NaN or zero.  When rounding down, terms that cancel give -0."""

    def apply(*values: float) -> float:
        with np.errstate(all="ignore"):
            first, second = terms(*map(DTYPES.get(kind, np.float64), values))
            result = float(first + second)
        cancel = result == 0 and np.signbit(first) != np.signbit(second)
        return -0.0 if cancel and mode == "rm" else result

    return apply


def _rounded(kind: str, mode: str = "rn") -> dict[str, Callable]:
    """Return add, sub, mul and fma, rounded once."""
    product = _native(kind, lambda a, b: a * b)
    return {
        "add": exact(lambda a, b: a + b, _zero(kind, mode, lambda a, b: (a, b)), kind, mode),
        "sub": exact(lambda a, b: a - b, _zero(kind, mode, lambda a, b: (a, -b)), kind, mode),
        "mul": exact(lambda a, b: a * b, product, kind, mode),
        "fma": exact(
            lambda a, b, c: a * b + c, _zero(kind, mode, lambda a, b, c: (np.float64(a) * b, c)), kind, mode
        ),
    }


def _unary(kind: str, name: str) -> Callable[[float], float]:
    one = DTYPES[kind](1)
    functions = {
        "rcp": lambda a: one / a,
        "sqrt": np.sqrt,
        "rsqrt": lambda a: 1 / np.sqrt(np.float64(a)),
        "abs": np.abs,
        "neg": lambda a: -a,
    }
    return _native(kind, functions[name])


def _arithmetic() -> dict[str, Case]:
    cases = {}
    for kind in ("f32", "f64"):
        two = (kind, kind)
        rounded = _rounded(kind)
        for name in ("add", "sub", "mul"):
            cases[f"{name}.{kind}"] = Case(kind, two, rounded[name])
        for name in ("fma", "mad"):
            cases[f"{name}.{kind}"] = Case(kind, (kind,) * 3, rounded["fma"])
        divide = exact(lambda a, b: a / b, _native(kind, lambda a, b: a / b), kind)
        cases |= {
            f"div.{kind}": Case(kind, two, divide),
            f"min.{kind}": Case(kind, two, _least),
            f"max.{kind}": Case(kind, two, _greatest),
            f"copysign.{kind}": Case(kind, two, lambda a, b: math.copysign(b, a)),
        }
        for name in ("rcp", "sqrt", "rsqrt", "abs", "neg"):
            tolerance = 2 * ONE_ULP[kind] if name == "rsqrt" else 0.0
            cases[f"{name}.{kind}"] = Case(kind, (kind,), _unary(kind, name), tolerance)
    for mode in ("rz", "rm", "rp"):
        for name, function in _rounded("f32", mode).items():
            cases[f"{name}.{mode}.f32"] = Case("f32", ("f32",) * (3 if name == "fma" else 2), function)
    return cases


def _nan_if_any(function: Callable) -> Callable:
    return lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else function(a, b)


def _saturated(function: Callable) -> Callable:
    """Return the function with its result clamped to [0, 1]; a NaN becomes +0."""

    def apply(*values: float) -> float:
        result = function(*values)
        return 0.0 if math.isnan(result) or result <= 0 else min(result, 1.0)

    return apply


def _single() -> dict[str, Case]:
    two, rounded = ("f32", "f32"), _rounded("f32")
    cases = {
        "min.NaN.f32": Case("f32", two, _nan_if_any(_least)),
        "max.NaN.f32": Case("f32", two, _nan_if_any(_greatest)),
    }
    for name in ("add", "mul", "fma"):
        cases[f"{name}.sat.f32"] = Case(
            "f32", ("f32",) * (3 if name == "fma" else 2), _saturated(rounded[name])
        )
    functions = {"ex2": np.exp2, "lg2": np.log2, "sin": np.sin, "cos": np.cos, "tanh": np.tanh}
    for name, function in functions.items():
        host = _native("f64", function)
        cases[f"{name}.f32"] = Case("f32", ("f32",), host, 2 * ONE_ULP["f32"])
    return cases


def _bfloat(function: Callable) -> Callable:
    """Return the operation on the values of bfloat16 bit patterns."""

    def apply(*bits: int) -> float:
        return function(*(float(from_bfloat(np.array(b))) for b in bits))

    return apply


def _bfloat_cases() -> dict[str, Case]:
    two, rounded = ("bf16",) * 2, _rounded("bf16")
    functions = {name: rounded[name] for name in ("add", "sub", "mul", "fma")}
    functions |= {"min": _least, "max": _greatest, "abs": abs, "neg": lambda a: -a}
    count = {"fma": 3, "abs": 1, "neg": 1}
    return {
        f"{name}.bf16": Case("bf16", ("bf16",) * count.get(name, len(two)), _bfloat(function))
        for name, function in functions.items()
    }


def _tests() -> dict[str, Case]:
    def normal(value: float, kind: str) -> bool:
        return math.isfinite(value) and abs(value) >= 2.0 ** FORMATS[kind][1]

    cases = {}
    for kind in ("f32", "f64"):
        functions = {
            "finite": math.isfinite,
            "infinite": math.isinf,
            "number": lambda a: not math.isnan(a),
            "notanumber": math.isnan,
            "normal": lambda a, k=kind: normal(a, k),
            "subnormal": lambda a, k=kind: math.isfinite(a) and a != 0 and not normal(a, k),
        }
        for name, function in functions.items():
            cases[f"testp.{name}.{kind}"] = Case("pred", (kind,), function)
    return cases


def nearest_bfloat(value: float) -> float:
    return round_fraction(Fraction(value), "bf16") if math.isfinite(value) and value else value


CASES = {**_arithmetic(), **_single(), **_bfloat_cases(), **_tests()}
# Two bf16 in a register: the test checks each half against the case of one bf16.
PACKED = [name.replace(".bf16", ".bf16x2") for name in _bfloat_cases()]
