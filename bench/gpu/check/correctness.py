"""Checks of an op's results: against float64, and the same bits on a second run and from a CUDA graph.

Outputs and free memory are filled with NaN first, so that elements not written or read too early show.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.gpu.check.cases import REWRITTEN, DeviceCase, rows
from bench.gpu.check.inputs import OVERWRITES, whole
from bench.gpu.check.timing import captured
from bench.gpu.check.words import Report

WORST_BLOCK = 4
"""Factor of the bound on one block's error over the bound on all blocks together."""
LARGE_POISON, SMALL_POISON, SMALL_POISONS = 256 << 20, 512 << 10, 64
"""Bytes of the caching allocator's memory that are filled before a call: one large block, 64 small ones."""


def check(case: DeviceCase, backend: str, report: Report) -> list[str]:
    """Run a case and return its defects in words. Errors are reported as rows before they are judged."""
    _mask(case)
    exact, plain = _run(case, "reference", torch.float64), _run(case, "reference", torch.float32)
    first, second = _run(case, backend, fill=0xFF), _run(case, backend, fill=0x11)
    wrong = []
    for name, tensors in first.written().items():
        if not tensors:
            continue
        error, worst = errors(first, exact, name)
        report.row(f"error of {name}", error, bound=case.bound)
        report.row(f"error of {name}, worst block", worst, bound=WORST_BLOCK * case.bound)
        report.row(f"error of {name}, torch float32", errors(plain, exact, name)[0])
        if not (error <= case.bound and worst <= WORST_BLOCK * case.bound):
            wrong.append(f"{name}: error {error:.1e}, worst block {worst:.1e}, bound {case.bound:.0e}")
    wrong += _stayed(case, first)
    if not same_bits(first, second):
        wrong.append("other bits on a second run")
    if case.device.type == "cuda" and not same_bits(first, _replayed(case, backend)):
        wrong.append("other bits from a CUDA graph")
    return wrong


def _mask(case: DeviceCase) -> None:
    """Make every third block or parameter inactive, scale another third, fill write-only outputs with NaN."""
    if case.spec.factored:
        case.arguments["scales"][1::3] = 0
        case.arguments["scales"][2::3] = 0.3
    else:
        case.mask[1::3] = False
    for name in OVERWRITES.get(case.spec.op, ()):
        if name == "out" and not case.arguments["out"]:
            continue
        for tensor in case.written()[name]:
            tensor.fill_(torch.nan)


def _run(
    case: DeviceCase, backend: str, dtype: torch.dtype = torch.float32, fill: int | None = None
) -> DeviceCase:
    copy = case.copy(dtype if dtype == torch.float64 else None)
    function = copy.function(backend, dtype)
    if fill is not None:
        poison(case.device, fill)
    function(**copy.arguments)
    if case.device.type == "cuda":
        torch.cuda.synchronize(case.device)
    return copy


def poison(device: torch.device, value: int) -> None:
    """Fill the memory that the caching allocator returns next; bytes of 0xFF are NaN."""
    if device.type != "cuda":
        return
    sizes = [LARGE_POISON] + [SMALL_POISON] * SMALL_POISONS
    blocks = [torch.full((size,), value, dtype=torch.uint8, device=device) for size in sizes]
    torch.cuda.synchronize(device)
    del blocks


def errors(got: DeviceCase, want: DeviceCase, name: str) -> tuple[float, float]:
    """Return the largest relative error of a tensor's active rows together, and of one row alone."""
    together, alone = 0.0, 0.0
    masks = got.masks(name)
    for ours, exact, mask in zip(got.written()[name], want.written()[name], masks, strict=True):
        chosen = numbers(mask)
        if not ours.numel() or not len(chosen):
            continue
        a, b = (rows(each, mask, got.spec.factored)[chosen].double() for each in (ours, exact))
        if not bool(torch.isfinite(a).all()):
            return float("inf"), float("inf")
        together = max(together, float((a - b).norm() / b.norm().clamp_min(1e-300)))
        sizes = b.norm(dim=1).clamp_min(1e-300)
        alone = max(alone, float(((a - b).norm(dim=1) / sizes).max()))
    return together, alone


def numbers(mask: Tensor) -> Tensor:
    """Return the indices of a mask's rows. The host computes them: a fake GPU computes nothing."""
    return mask.cpu().nonzero().flatten().to(mask.device)


def _stayed(case: DeviceCase, result: DeviceCase) -> list[str]:
    """Return forbidden changes: of inactive rows (their norms must be 0) and of the padding around views."""
    wrong = []
    for name, tensors in result.written().items():
        trios = zip(tensors, case.written()[name], result.masks(name), strict=True)
        for after, before, mask in trios:
            left_out = [rows(each, mask, case.spec.factored)[numbers(~mask)] for each in (after, before)]
            if name in ("norms", "graft_norms"):
                if bool((left_out[0] != 0).any()):
                    wrong.append(f"{name} of inactive ones must be 0")
            elif name in REWRITTEN:
                continue
            elif not _equal(*left_out):
                wrong.append(f"inactive {name} changed")
            if not _same_padding(after, before):
                wrong.append(f"{name}: something beside the views was written")
    return list(dict.fromkeys(wrong))


def _same_padding(after: Tensor, before: Tensor) -> bool:
    """Return True if both storages are equal outside the view."""
    pair = []
    for tensor in (after, before):
        storage = whole(tensor).clone()
        storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).zero_()
        pair.append(storage)
    return _equal(*pair)


def same_bits(one: DeviceCase, other: DeviceCase) -> bool:
    pairs = zip(one.written().values(), other.written().values(), strict=True)
    return all(_equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    """Compare bit for bit, including NaN."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def _replayed(case: DeviceCase, backend: str) -> DeviceCase:
    """Return a copy of the case after one replay of a graph of its call."""
    copy = case.copy()
    function = copy.function(backend)
    graph = captured(lambda: function(**copy.arguments))
    fresh = case.copy()
    for name, tensors in copy.written().items():
        for tensor, before in zip(tensors, fresh.written()[name], strict=True):
            tensor.copy_(before)
    poison(case.device, 0x22)
    graph.replay()
    torch.cuda.synchronize(case.device)
    return copy
