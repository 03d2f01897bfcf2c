"""Faults in the Triton kernels of the square-root form are noticed, each by the layer named with it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from inputs import square_root
from inputs.square_root import check_overflow_in_rounding, given, group
from marks import slow, slow_after

from .checks import COUPLED, RULE, check, several
from .compiled import Compiled
from .mutants import Fault, edited, layer_that_notices

PRODUCT, GRAM, ROOT, STATE = "scaled_product.py", "gram.py", "inverse_root.py", "side_state.py"
SHARED, WHOLE = "multiply.py", "square_root_resident.py"

FAULTS = [
    Fault(
        "the depth's tail is read", SHARED,
        "(i, k, rows, depth)", "(i, k, rows, depth + 64)", "coupled", "bounds",
    ),
    Fault(
        "a row too many is written", SHARED,
        "out_cols, i, j, ORDER), value, mask=inside(i, j, rows, cols)",
        "out_cols, i, j, ORDER), value, mask=inside(i, j, rows + 1, cols)", "coupled", "race",
    ),
    Fault(
        "no mirror", SHARED,
        "tl.store(mirrored, tl.trans(value), mask=inside(j, i, rows, rows))", "pass", "coupled",
        "uninitialised",
    ),
    Fault(
        "a tile in place of its mirror image", SHARED,
        "tl.store(mirrored, tl.trans(value)", "tl.store(mirrored, value", "coupled", "values",
    ),
    Fault(
        "all shares in one place", SHARED,
        "tl.load(entry + COUNT) + tile, value", "tl.load(entry + COUNT), value", "coupled", "race",
    ),
    Fault(
        "a share too many", SHARED,
        "mask=start + lanes < count", "mask=start + lanes <= count", "coupled", "uninitialised",
    ),
    Fault(
        "squares in float32", SHARED,
        "wide = value.to(tl.float64)", "wide = value.to(tl.float32)", "tiny", "values",
    ),
    Fault(
        "an operand without its scale", SHARED,
        "x = x * a_scale", "x = x", "coupled", "values",
    ),
    Fault(
        "the previous entry", "entry.py",
        "FIRST_PROGRAM) <= program", "FIRST_PROGRAM) < program", "coupled", "bounds",
    ),
    Fault(
        "inactive blocks take part", "entry.py",
        "FIRST_BLOCK) + block) != 0", "FIRST_BLOCK) + block) >= 0", "coupled", "values",
    ),
    Fault(
        "strides exchanged", "entry.py",
        "i[:, None] + j[None, :] * col_stride", "i[:, None] * col_stride + j[None, :]", "coupled", "values",
    ),
    Fault(
        "no second term of A", "precision.py",
        "sum = tl.dot(_rest(a, ah).to(tl.bfloat16), bh, sum)", "sum = sum", "coupled", "values",
    ),
    Fault(
        "no second term of B", "precision.py",
        "sum = tl.dot(ah, _rest(b, bh).to(tl.bfloat16), sum)", "sum = sum", "coupled", "values",
    ),
    Fault(
        "B of a new factor is read beyond its columns", PRODUCT,
        "mask=inside(i, j, rows, cols)", "mask=inside(i, j, rows, cols + 64)", "coupled", "uninitialised",
    ),
    Fault(
        "B in another unit", PRODUCT,
        "return tl.load(state(entry, block, scratch, WHITENING))", "return 1.0",
        "coupled", "values",
    ),
    Fault(
        "F R not restored", PRODUCT,
        "return root_scale(entry, block, scratch, decay, REFINE)", "return 1.0",
        "coupled", "values",
    ),
    Fault(
        "division by an rms of zero", PRODUCT,
        "tl.where(scale > 0, value / tl.where(scale > 0, scale, 1.0), 0.0)", "value / scale",
        "coupled", "values",
    ),
    Fault(
        "no factor is new", PRODUCT,
        "if start > 0:", "if start < 0:", "coupled", "values",
    ),
    Fault(
        "finite before it is rounded", PRODUCT,
        "c = c.to(A_TYPE).to(tl.float32)", "c = c", "rounding", "values",
    ),
    Fault(
        "a new factor without damping", GRAM,
        "inside(i, j, d, d), term, 0.0)", "inside(i, j, d, d), 0.0, 0.0)",
        "coupled", "values",
    ),
    Fault(
        "damping beyond the diagonal's end", GRAM,
        "& inside(i, j, d, d), term", ", term", "damped", "values",
    ),
    Fault(
        "tiles below the diagonal count once", GRAM,
        "tl.where(row > col, 2, 1)", "1", "coupled", "values",
    ),
    Fault(
        "a column of F too many", GRAM,
        "mask=inside(i, k, d, d)", "mask=inside(i, k, d, d + 64)", "coupled", "bounds",
    ),
    Fault(
        "a row of F too many", GRAM,
        "mask=inside(k, j, d, d)", "mask=inside(k, j, d + 64, d)", "coupled", "bounds",
    ),
    Fault(
        "F^T F before its scale", GRAM,
        "sum = dot(x * scale, y * scale, sum, PRECISION)",
        "sum += scale * scale * dot(x * 1.0, y * 1.0, tl.zeros_like(sum), PRECISION)", "tiny", "values",
    ),
    Fault(
        "only the last step is restored", ROOT,
        "at_decay *= shrunk", "at_decay = shrunk", "coupled", "values",
    ),
    Fault(
        "f beyond 1", ROOT,
        "tl.minimum(floor * shrunk, 1.0)", "floor * shrunk * 1.01", "coupled", "values",
    ),
    Fault(
        "Y0 without its I, one step", ROOT,
        "(a - b * least) * one - b * over_t * held", "a * one - b * over_t * held", "one step", "values",
    ),
    Fault(
        "Y1 without the square's cross term", ROOT,
        "(a - 2 * b * least) * over_t * held", "(a - b * least) * over_t * held", "coupled", "values",
    ),
    Fault(
        "Y1 without its I", ROOT,
        "- b * c + least * (a - b * least) * one", "- b * c", "coupled", "values",
    ),
    Fault(
        "Z2 without Y0's I", ROOT,
        "return (a - b * least) * held - b * c\n", "return a * held - b * c\n", "coupled", "values",
    ),
    Fault(
        "T2 without Y0's I", ROOT,
        "power = (a - b * least) * held - b * c if", "power = a * held - b * c if", "coupled", "values",
    ),
    Fault(
        "the coefficients of the previous step", ROOT,
        "NUMBER - 1)", "NUMBER - 2)", "coupled", "values",
    ),
    Fault(
        "a gradient's last row left out", STATE,
        "mask=inside(i, j, rows, cols)", "mask=inside(i, j, rows - 1, cols)", "coupled", "values",
    ),
    Fault(
        "nothing says which blocks take part", STATE,
        "    tl.store(state(entry, block, scratch, TAKEN), taken)\n", "", "coupled", "uninitialised",
    ),
    Fault(
        "rms without the earlier gradients", STATE,
        "old_weight * old_rms * old_rms + ", "", "coupled", "values",
    ),
    Fault(
        "a weight that does not decay", STATE,
        "old_weight = decay * weight_before.to(tl.float64)", "old_weight = weight_before.to(tl.float64)",
        "coupled", "values",
    ),
    Fault(
        "coupling without the gradient's length", STATE,
        "tl.sqrt_rn(weight) / tl.sqrt(stretch)", "tl.sqrt_rn(weight)", "coupled", "values",
    ),
    Fault(
        "the gradient's scale left out of its rms", STATE,
        "        squared *= scale.to(tl.float64) * scale\n", "", "coupled", "values",
    ),
    Fault(
        "the gradient's scale left out of B", STATE,
        "whitening = scale * tl.sqrt_rn", "whitening = tl.sqrt_rn", "coupled", "values",
    ),
    Fault(
        "a gradient that the root makes zero takes part", STATE,
        "squared *= tl.where(stretch > 0, 1, 0)", "pass", "coupled", "values",
    ),
    Fault(
        "gradients that are not finite are not counted", STATE,
        "        elif squared != 0:\n            tl.store(statistics + FALLBACKS, fallbacks + 1)\n", "",
        "coupled", "values",
    ),
    Fault(
        "no barrier before statistics change", STATE,
        "fallbacks = tl.load(statistics + FALLBACKS)\n        tl.debug_barrier()",
        "fallbacks = tl.load(statistics + FALLBACKS)\n        pass", "coupled", "race",
    ),
    Fault(
        "no barrier at the end", STATE,
        "tl.load(statistics + FALLBACKS)\n            tl.debug_barrier()",
        "tl.load(statistics + FALLBACKS)\n            pass", "coupled", "race",
    ),
    Fault(
        "a factor that is not finite is written", STATE,
        "        if finite:\n            _write_factor", "        if True:\n            _write_factor",
        "coupled", "values",
    ),
    Fault(
        "a factor's row too many is written", STATE,
        "f.to(TYPE), mask=inside(i, j, d, d)", "f.to(TYPE), mask=inside(i, j, d + 1, d)", "coupled", "bounds",
    ),
    Fault(
        "the whitened square without its stretch", STATE,
        "whitened *= tl.load(state(entry, block, scratch, STRETCH))", "pass", "coupled", "values",
    ),
    Fault(
        "factors that are not finite are not counted", STATE,
        "            else:\n                tl.store(statistics + FALLBACKS, fallbacks + 1)", "",
        "coupled", "values",
    ),
    Fault(
        "both halves of a step in one place", "plan/square_root.py",
        "self._iterate(\"product\", 0, y, t, free[1])", "self._iterate(\"product\", 0, y, t, free[0])",
        "four steps", "race",
    ),
    Fault(
        "a stage too late", "plan/square_root.py",
        "yield [self._iterate(\"polynomial\", number, z, y, t)]",
        "yield [self._iterate(\"polynomial\", number, z, z, t)]", "four steps", "values",
    ),
    Fault(
        "slices share memory that outlasts them", "plan/square_root_step.py",
        "    mark = plan.mark()\n", "    mark = 0\n", "slices", "race",
    ),
    Fault(
        "rows beyond the last, resident", WHOLE,
        "mask=inside(i, j, rows, cols), other=0.0)", "mask=inside(i, j, rows + 1, cols), other=0.0)",
        "resident", "bounds",
    ),
    Fault(
        "a row of F too many, resident", WHOLE,
        "new, mask=inside(i, i, d, d)", "new, mask=inside(i, i, d + 1, d)", "resident", "bounds",
    ),
    Fault(
        "an output's row too many", WHOLE,
        "v, mask=inside(i, j, rows, cols)", "v, mask=inside(i, j, rows + 1, cols)", "resident", "bounds",
    ),
    Fault(
        "damping beyond the diagonal's end, resident", WHOLE,
        "& inside(i, i, d, d), start_damping", ", start_damping", "damped, resident", "values",
    ),
    Fault(
        "F^T F without its scale, resident", WHOLE,
        "c = f * damping_scale", "c = f * 1.0", "resident", "values",
    ),
    Fault(
        "no factor is new, resident", WHOLE,
        "start = tl.where(old_weight == 0, start, 0.0)", "start = 0.0 * start", "resident", "values",
    ),
    Fault(
        "a gradient that the root makes zero takes part, resident", WHOLE,
        "squared *= tl.where(stretch > 0, 1, 0)", "pass", "resident", "values",
    ),
    Fault(
        "B in another unit, resident", WHOLE,
        "b *= whitening", "pass", "resident", "values",
    ),
    Fault(
        "the whitened square without its stretch, resident", WHOLE,
        "(weight * d.to(tl.float32)) * stretch", "(weight * d.to(tl.float32))", "resident", "values",
    ),
    Fault(
        "finite before it is rounded, resident", WHOLE,
        "finite = is_finite(squared_norm(new))",
        "finite = is_finite(squared_norm(tl.where(tl.abs(new) < 1e38, new, 1.0)))", "rounding, resident",
        "values",
    ),
    Fault(
        "a factor that is not finite is written, resident", WHOLE,
        "            if finite:\n                i = tl", "            if True:\n                i = tl",
        "resident", "values",
    ),
    Fault(
        "gradients or factors that are not finite are not counted, resident", WHOLE,
        "tl.store(statistics + FALLBACKS, fallbacks + 1)", "pass", "resident", "values",
    ),
    Fault(
        "F R not restored, resident", WHOLE,
        "new * restored(t, decay, REFINE)", "new", "resident", "values",
    ),
    Fault(
        "T before Y, resident", WHOLE,
        "c = _product(z, y, PRECISION)", "c = _product(z, z, PRECISION)", "resident", "values",
    ),
    Fault(
        "no barrier before a count, resident", WHOLE,
        "tl.debug_barrier()  # every", "pass  # every", "resident", "race",
    ),
    Fault(
        "the old rms divides, resident", WHOLE,
        "                rms = new_rms\n", "", "resident", "values",
    ),
    Fault(
        "division by an rms of zero, resident", WHOLE,
        "tl.where(rms > 0, v / tl.where(rms > 0, rms, 1.0), 0.0)", "v / rms", "resident", "values",
    ),
]  # fmt: skip


def _call(shape: tuple[int, int], other: tuple[int, int], **options: Any) -> square_root.Given:
    """Return a call with blocks without a gradient, before their first, with a root of zeros, or with NaN.

    Args:
        shape: the shape of these blocks.  other: the shape of a few plain blocks after them.
    """
    call = given([group(8, shape, "column"), group(2, other, "experts")])
    blocks = call.groups[0]
    gradients = [block for view in blocks.grads for block in _blocks_of(view)]
    gradients[0].zero_()
    gradients[1][0, 1] = math.nan
    blocks.left.factor[3, 0, 0] = math.nan
    for side in (blocks.left, blocks.right):
        side.statistics[5] = 0
    gradients[5].zero_()
    blocks.right.root[7] = 0
    return replace(call, rule=replace(COUPLED, **options))


def _blocks_of(view: torch.Tensor) -> list[torch.Tensor]:
    return [view] if view.dim() == 2 else [block for part in view for block in _blocks_of(part)]


def _damped(side: int) -> square_root.Given:
    """Return a call with new factors whose M is mostly damping, in the step that depends most on its norm."""
    call = given([group(4, (side, 20))], replace(RULE, refine=1, damping=1.0, damped_updates=10.0))
    for side_state in (call.groups[0].left, call.groups[0].right):
        side_state.statistics.zero_()
    return call


def _tiny() -> square_root.Given:
    """Return a call with gradients of 1e-30, whose float32 squares are 0; a factor's squares overflow."""
    call = given([group(4, (70, 20))], RULE)
    blocks = call.groups[0]
    for side in (blocks.left, blocks.right):
        side.factor.mul_(1e30)
        side.statistics[:, 0] *= 1e-30
    for view in (*blocks.grads, *blocks.directions):
        view.mul_(1e-30)
    return call


PROBES: dict[str, Any] = {
    "coupled": lambda backend: check(_call((70, 66), (130, 40), refine=3), backend),
    "one step": lambda backend: check(given([group(4, (70, 20))], replace(RULE, refine=1)), backend),
    "four steps": lambda backend: check(given([group(4, (70, 20))], replace(RULE, refine=4)), backend),
    "damped": lambda backend: check(_damped(70), backend),
    "damped, resident": lambda backend: check(_damped(9), backend),
    "tiny": lambda backend: check(_tiny(), backend),
    "rounding": lambda backend: check_overflow_in_rounding(backend, 70, RULE),
    "slices": lambda backend: check(given(several(), COUPLED), backend),
    "resident": lambda backend: check(_call((9, 15), (16, 7), refine=3), backend),
    "rounding, resident": lambda backend: check_overflow_in_rounding(backend, 9, RULE),
}


def run(probe: str, package: dict[str, str]) -> None:
    """Raise AssertionError if a check notices a fault."""
    torch.manual_seed(0)
    options = {"scratch_bytes": 200_000} if probe == "slices" else {}
    PROBES[probe](Compiled("sm_80", **package, **options))


def found(fault: Fault | None, probe: str) -> str | None:
    return layer_that_notices(fault, lambda **package: run(probe, package))


@pytest.mark.parametrize("probe", slow_after(0, list(PROBES)))
def test_unedited_kernels_pass(probe: str) -> None:
    """Otherwise every fault would count as noticed."""
    assert found(None, probe) is None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_applies(fault: Fault) -> None:
    """A fault whose source has changed fails here."""
    edited(fault)


@slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_noticed(fault: Fault) -> None:
    assert found(fault, fault.probe) == fault.layer
