"""Fixes of Triton's interpreter, which multiplies bfloat16 as integers, truncates float32 to bfloat16, warns
where a GPU overflows in silence, and spends half of its time on replacing the language at every call.

Import it before any kernel. `test_triton_interpreter.py` fails if a fix is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_Handle = interpreter.TensorHandle
_cast = interpreter.InterpreterBuilder.cast_impl
_patch_lang = interpreter._patch_lang
_load = tl.load


def _numbers(handle: Any) -> np.ndarray:
    """Return a tensor's values; the interpreter keeps bfloat16 as bits."""
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data


def _create_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
    product = np.matmul(_numbers(a).astype(np.float32), _numbers(b).astype(np.float32))
    return _Handle((product + d.data).astype(d.data.dtype), d.dtype.scalar)


def _cast_impl(self: Any, source: Any, target: Any) -> Any:
    """Cast float32 to the nearest bfloat16, ties to even; leave other casts to Triton."""
    if source.dtype.scalar != tl.float32 or target.scalar != tl.bfloat16:
        return _cast(self, source, target)
    bits = np.ascontiguousarray(source.data).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return _Handle(np.where(np.isnan(source.data), np.uint16(0x7FC0), rounded), tl.bfloat16)


def _patch_lang_once(function: Any) -> Any:
    """Replace the language once a launch; the functions that the kernel calls then find it replaced."""
    languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
    return _patch_lang(function) if any(language.load is _load for language in languages) else None


def mend() -> None:
    interpreter.InterpreterBuilder.create_dot = _create_dot
    interpreter.InterpreterBuilder.cast_impl = _cast_impl
    interpreter._patch_lang = _patch_lang_once
    if not hasattr(interpreter.InterpreterBuilder, "get_int1_ty"):  # 3.3 cannot load a bool
        interpreter.InterpreterBuilder.get_int1_ty = lambda _: tl.int1
    np.seterr(over="ignore", invalid="ignore")
