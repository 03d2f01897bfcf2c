"""Whether an op's results are right: against float64, the same bits twice and from a CUDA graph.

Outputs and free memory are filled with NaN first, so that what is not written, or read too early, shows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cases import OVERWRITES, REWRITTEN, Case, rows
from .inputs import whole
from .timing import captured
from .words import Report

WORST_BLOCK = 4
"""How much larger than the bound of all blocks together one block's error may be."""
LARGE_POISON, SMALL_POISON, SMALL_POISONS = 256 << 20, 512 << 10, 64
"""Bytes of the caching allocator's memory that are filled before a call: one large block, many small ones."""


def check(case: Case, backend: str, report: Report) -> list[str]:
    """Run a case; errors are told as rows before anything is judged. What is wrong with it, in words."""
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


def _mask(case: Case) -> None:
    """Every third block or parameter takes no part, others are scaled; what is overwritten is NaN before."""
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


def _run(case: Case, backend: str, dtype: torch.dtype = torch.float32, fill: int | None = None) -> Case:
    own = case.copy(dtype if dtype == torch.float64 else None)
    function = own.function(backend, dtype)
    if fill is not None:
        poison(case.device, fill)
    function(**own.arguments)
    if case.device.type == "cuda":
        torch.cuda.synchronize(case.device)
    return own


def poison(device: torch.device, value: int) -> None:
    """Fill memory that the caching allocator will give out next; bytes of 0xFF are NaN."""
    if device.type != "cuda":
        return
    sizes = [LARGE_POISON] + [SMALL_POISON] * SMALL_POISONS
    held = [torch.full((size,), value, dtype=torch.uint8, device=device) for size in sizes]
    torch.cuda.synchronize(device)
    del held


def errors(got: Case, want: Case, name: str) -> tuple[float, float]:
    """The largest relative error of a tensor's active rows taken together, and of one row alone."""
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
    """Of the rows that a mask has; counted by the host, which may not ask a GPU that computes nothing."""
    return mask.cpu().nonzero().flatten().to(mask.device)


def _stayed(case: Case, result: Case) -> list[str]:
    """What changed that must not: inactive rows, but for norms, and the padding around views."""
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
    """Whether all of both storages that the view does not show is alike."""
    pair = []
    for tensor in (after, before):
        storage = whole(tensor).clone()
        storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).zero_()
        pair.append(storage)
    return _equal(*pair)


def same_bits(one: Case, other: Case) -> bool:
    pairs = zip(one.written().values(), other.written().values(), strict=True)
    return all(_equal(a, b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN too."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def _replayed(case: Case, backend: str) -> Case:
    """The case's copy after one replay of a graph that holds the call."""
    own = case.copy()
    function = own.function(backend)
    graph = captured(lambda: function(**own.arguments))
    fresh = case.copy()
    for name, tensors in own.written().items():
        for tensor, before in zip(tensors, fresh.written()[name], strict=True):
            tensor.copy_(before)
    poison(case.device, 0x22)
    graph.replay()
    torch.cuda.synchronize(case.device)
    return own
