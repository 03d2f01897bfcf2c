"""Exact arithmetic in integers and fractions, independent of the hardware, to check the executor with."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

# significant bits, least exponent of a normal number, largest exponent
FORMATS = {"f32": (24, -126, 127), "f64": (53, -1022, 1023), "bf16": (8, -126, 127)}


def wrap(value: int, kind: str) -> int:
    """Return the value modulo 2^bits, in the range of the type."""
    bits = int(kind[1:])
    value %= 1 << bits
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def round_fraction(value: Fraction, kind: str, mode: str = "rn") -> float:
    """Return the nearest number of the format; rz, rm and rp round to zero, down and up."""
    bits, least, most = FORMATS[kind]
    if value == 0:
        return 0.0
    sign = -1 if value < 0 else 1
    magnitude = abs(value)
    exponent = max(math.floor(math.log2(magnitude.numerator) - math.log2(magnitude.denominator)), least)
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while exponent > least and magnitude < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** (exponent - bits + 1)
    quotient, rest = divmod(magnitude, step)
    up = {"rn": 2 * rest > step or (2 * rest == step and quotient % 2), "rz": False}
    up |= {"rp": rest > 0 and sign > 0, "rm": rest > 0 and sign < 0}
    result = (quotient + bool(up[mode])) * step
    if result >= Fraction(2) ** (most + 1):
        stays = mode == "rz" or (mode == "rp" and sign < 0) or (mode == "rm" and sign > 0)
        return sign * (float((2 - Fraction(2) ** (1 - bits)) * Fraction(2) ** most) if stays else math.inf)
    return sign * float(result)


def exact(
    function: Callable[..., Fraction], fallback: Callable[..., float], kind: str, mode: str = "rn"
) -> Callable[..., float]:
    """Return a correctly rounded operation; `fallback` computes infinities, NaN and signed zeros."""

    def apply(*values: float) -> float:
        if not all(map(math.isfinite, values)):
            return fallback(*values)
        try:
            value = function(*map(Fraction, values))
        except ZeroDivisionError:
            return fallback(*values)
        return round_fraction(value, kind, mode) if value else fallback(*values)

    return apply


def same(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return True where both have equal bits, or both are NaN."""
    if got.dtype.kind != "f":
        return got == expected
    bits = np.dtype(f"u{got.dtype.itemsize}")
    return (got.view(bits) == expected.view(bits)) | (np.isnan(got) & np.isnan(expected))


def from_bfloat(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits, np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat(values: np.ndarray) -> np.ndarray:
    """Round finite values to the nearest bfloat16, ties to even; return their bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def truncate_to_tf32(values: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) & 0xFFFFE000).view(np.float32)
