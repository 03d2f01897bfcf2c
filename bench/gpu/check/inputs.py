"""Random arguments of every op from its spec, and copies that keep their layout in memory."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from bench.gpu.check import factors
from bench.gpu.check.specs import CaseSpec, Sides
from kradagrad_ext.backends import scalars
from kradagrad_ext.backends.base import COEFFICIENTS
from kradagrad_ext.backends.scalars import spans_of

DAMPING = 1e-3
DECAY = 0.95
GRADIENT_SCALE = 1e-3
L2 = 0.1
PADDING = {"padded": 8, "ragged": 3, "transposed": 3}
"""Elements between a row's end and the next one's start."""
Arguments = dict[str, Any]

SIDES = ("left", "right", "left_statistics", "right_statistics")
LISTS = (*SIDES, "out", "grad", "direction", "left_root", "right_root")

WRITES = {
    "kron_step_": (*SIDES, "out", "norms"),
    "update_factor_": ("factor", "statistics"),
    "polar_roots_": ("roots",),
    "guard_gradients_": ("scalars", "coefficients", "active", "restarts"),
    "scale_updates_": ("coefficients", "scalars"),
    "update_moments_": ("momenta", "second_moments", "directions", "graft_norms"),
    "apply_updates_": ("params", "momenta"),
}
OVERWRITES = {
    "kron_step_": ("out", "norms"),
    "guard_gradients_": ("coefficients",),
    "update_moments_": ("directions", "graft_norms"),
}
"""Outputs that the op does not read: NaN in them before a call must be gone after it."""

MASKS = {"guard_gradients_": "present", "scale_updates_": "preconditioned"}
"""Arguments that mark the active parameters or matrices, if the name is not ``active``."""


class Source:
    """A generator of random tensors on a device; equal seeds give equal tensors."""

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).mul_(scale)

    def spd(self, blocks: int, side: int, largest: float) -> Tensor:
        """Return positive definite matrices ``[N, d, d]``, eigenvalues from about `largest` / 100."""
        square = self.normal(blocks, side, side)
        product = torch.bmm(square, square.mT).div_(4 * side)
        product.diagonal(dim1=-2, dim2=-1).add_(0.01)
        return product.mul_(largest)


def make(spec: CaseSpec, source: Source) -> Arguments:
    """Make the keyword arguments of a spec's op."""
    if spec.op == "kron_step_":
        return kron_arguments(spec, source)
    if spec.op == "polar_roots_":
        return root_arguments(kron_arguments(spec, source), spec)
    if spec.factored:
        return update_arguments(kron_arguments(spec, source), spec)
    make_op = {
        "update_moments_": update_moments_arguments,
        "apply_updates_": apply_updates_arguments,
        "guard_gradients_": guard_arguments,
        "scale_updates_": scale_arguments,
    }[spec.op]
    return make_op(spec, source)


def matrix_of(spec: CaseSpec, block: Sides) -> Sides:
    """Return height and width of the matrix of a group's blocks; two blocks if the spec has no shape."""
    (height, width), (m, n) = spec.shape, block
    if (height, width) == (1, 1):
        return 2 * m, n
    return max(height // m, 1) * m, max(width // n, 1) * n


def laid_out(matrix: Tensor, layout: str) -> Tensor:
    """Return the same values as a view with NaN around it."""
    if layout == "plain" or matrix.ndim != 2:
        return matrix
    if layout == "transposed":
        return laid_out(matrix.mT, "ragged").mT
    rows, cols = matrix.shape
    storage = matrix.new_full((rows + 1, cols + PADDING[layout]), math.nan)
    return storage[:rows, :cols].copy_(matrix)


def block_views(matrix: Tensor, rows: int, cols: int) -> Tensor:
    """Return views of a matrix's blocks ``[*, *, rows, cols]``; its sides must be multiples."""
    return matrix.unflatten(0, (-1, rows)).unflatten(2, (-1, cols)).transpose(1, 2)


def kron_arguments(spec: CaseSpec, source: Source) -> Arguments:
    """Make arguments of ``kron_step_``: one group per block shape, each from a separate matrix."""
    lists: Arguments = {name: [] for name in LISTS}
    dtypes = {"grad": getattr(torch, spec.dtype), "direction": torch.float32}
    for m, n in spec.blocks:
        height, width = matrix_of(spec, (m, n))
        count = height * width // (m * n)
        for name, dtype in dtypes.items():
            matrix = source.normal(height, width, scale=GRADIENT_SCALE).to(dtype)
            lists[name].append(block_views(laid_out(matrix, spec.layout), m, n))
        out = torch.zeros(height, width, device=source.device)
        lists["out"].append(block_views(laid_out(out, spec.layout), m, n))
        for side, d, k in (("left", m, n), ("right", n, m)):
            noise = source.normal(count, d, d)
            factor, statistics = factors.side(count, d, k, GRADIENT_SCALE, noise, spec)
            lists[side].append(factor)
            lists[f"{side}_statistics"].append(statistics)
            stored = torch.bfloat16 if spec.what == "stored" else torch.float32
            lists[f"{side}_root"].append(source.spd(count, d, 1.0).to(stored))
    count = sum(len(factor) for factor in lists["left"])
    return dict(
        **lists,
        rule=factors.rule_of(spec, DECAY, DAMPING),
        norms=torch.zeros(count, device=source.device),
        scales=torch.ones(count, device=source.device),
        update=spec.what != "product",
    )


def update_arguments(kron: Arguments, spec: CaseSpec) -> Arguments:
    """Make arguments of ``update_factor_``: the left side of the first group."""
    return dict(
        factor=kron["left"][0],
        statistics=kron["left_statistics"][0],
        unfolding=kron["grad"][:1],
        scales=kron["scales"][: len(kron["left"][0])],
        rule=factors.rule_of(spec, DECAY, DAMPING),
    )


def root_arguments(kron: Arguments, spec: CaseSpec) -> Arguments:
    """Make arguments of ``polar_roots_``: both sides of every group."""
    names, sizes = ("left", "right"), [len(factor) for factor in kron["left"]]
    columns = [[k for _, k in spec.blocks], [k for k, _ in spec.blocks]]
    return dict(
        factors=[factor for name in names for factor in kron[name]],
        statistics=[tensor for name in names for tensor in kron[f"{name}_statistics"]],
        roots=[torch.zeros_like(root) for name in names for root in kron[f"{name}_root"]],
        root_stats=[torch.zeros_like(tensor) for name in names for tensor in kron[f"{name}_statistics"]],
        columns=[k for side in columns for k in side],
        scales=torch.ones(2 * sum(sizes), device=kron["scales"].device),
        rule=factors.root_rule_of(spec),
    )


def _elements(
    spec: CaseSpec, source: Source, names: tuple[str, ...], dtype: torch.dtype
) -> list[list[Tensor]]:
    """Make lists of tensors of the parameters' shapes, with the spec's layout."""
    lists = [[source.normal(*shape, scale=GRADIENT_SCALE).to(dtype) for shape in spec.blocks] for _ in names]
    return [[laid_out(tensor, spec.layout) for tensor in tensors] for tensors in lists]


def _moments(spec: CaseSpec, source: Source) -> list[Tensor]:
    if spec.what == "bare":
        return []
    squares = [1e-6 + source.normal(*shape, scale=GRADIENT_SCALE).square_() for shape in spec.blocks]
    return [laid_out(tensor, "plain" if spec.layout == "transposed" else spec.layout) for tensor in squares]


def _per_parameter(spec: CaseSpec, source: Source) -> Arguments:
    count, l2 = len(spec.blocks), L2 if spec.what == "l2" else 0.0
    return dict(
        coefficients=torch.tensor(
            [1.4, 9.0, 1e-11, 0.8, 1.0, 10.0, 12.0, l2, l2, 0.01], device=source.device
        ).repeat(count, 1),
        active=torch.ones(count, dtype=torch.bool, device=source.device),
    )


def offsets_of(params: list[Tensor]) -> Tensor:
    """Return the offsets of the parameters' spans."""
    counts = [spans_of(p.numel()) for p in params]
    return torch.tensor([0, *itertools.accumulate(counts)], device=params[0].device)


def update_moments_arguments(spec: CaseSpec, source: Source) -> Arguments:
    """Make arguments of ``update_moments_`` with the adam graft; ``bare``: without both moments."""
    nesterov, dtype = spec.what == "nesterov", getattr(torch, spec.dtype)
    grads, params = _elements(spec, source, ("grads", "params"), dtype)
    momenta, directions = _elements(spec, source, ("momenta", "directions"), torch.float32)
    return dict(
        momenta=[] if spec.what == "bare" else momenta,
        second_moments=_moments(spec, source),
        directions=directions if nesterov else [],
        graft_norms=torch.zeros(sum(spans_of(p.numel()) for p in params), device=source.device),
        grads=grads,
        params=params,
        beta1=0.9,
        beta2=0.99,
        weight2=0.01,
        nesterov=nesterov,
        **_per_parameter(spec, source),
    )


def apply_updates_arguments(spec: CaseSpec, source: Source) -> Arguments:
    """Make arguments of ``apply_updates_`` with decoupled weight decay.

    With ``momentum`` or ``l2``, the last parameter has no update and c3 of the first is NaN.
    """
    (params,) = _elements(spec, source, ("params",), getattr(torch, spec.dtype))
    momenta, updates, directions = _elements(
        spec, source, ("momenta", "updates", "directions"), torch.float32
    )
    momentum, common = spec.what in ("momentum", "l2"), _per_parameter(spec, source)
    if momentum:
        updates[-1] = updates[-1].new_empty(0)
        common["coefficients"][0, 3] = math.nan
    return dict(
        params=params,
        momenta=momenta if momentum else [],
        residuals=[],
        updates=updates,
        directions=directions,
        second_moments=_moments(spec, source),
        lr=torch.tensor(1e-3, device=source.device),
        momentum=0.9,
        nesterov=spec.what == "momentum",
        **common,
    )


def _scalars(spec: CaseSpec, source: Source) -> Arguments:
    """Make scalar state as after some steps, with one row per element of the spec's one parameter."""
    count = math.prod(spec.blocks[0])
    table = 1 + source.normal(count, len(scalars.COLUMNS)).abs()
    table[:, scalars.UNIT], table[:, scalars.IN_A_ROW] = 1, 0
    where = {"device": source.device}
    return dict(
        scalars=table,
        coefficients=torch.rand(count, COEFFICIENTS, generator=source.generator, **where) + 0.1,
        numel=torch.full((count,), 4096.0, **where),
        rule=scalars.ScalarRule(
            spike_limit=30.0,
            beta1=0.9,
            averaged=True,
            nesterov=spec.what == "nesterov",
            bias2=0.99,
            decay2=0.99,
            weight2=0.01,
            eps=0.1,
            decayed=9,
            by_chance=True,
            length="rms" if spec.what == "rms" else "graft",
        ),
    )


def guard_arguments(spec: CaseSpec, source: Source) -> Arguments:
    """Make arguments of ``guard_gradients_``, with spikes among the gradients."""
    state = _scalars(spec, source)
    count = len(state["scalars"])
    norms = source.normal(count, scale=1000.0).abs().double()
    flags = {
        name: torch.full((count,), wrong, device=source.device)  # the op must overwrite it
        for name, wrong in (("active", False), ("restarts", True))
    }
    flags["present"] = torch.ones(count, dtype=torch.bool, device=source.device)
    return dict(norms=norms, weight_decay=torch.tensor(0.1, device=source.device), **flags, **state)


def scale_arguments(spec: CaseSpec, source: Source) -> Arguments:
    """Make arguments of ``scale_updates_``."""
    state = _scalars(spec, source)
    count = len(state["scalars"])
    parts = 3 * torch.arange(count + 1, device=source.device)
    graft, update = (source.normal(3 * count).square() + 0.1 for _ in range(2))
    return dict(
        graft_norms=graft,
        graft_offsets=parts,
        update_norms=update,
        update_order=torch.arange(3 * count, device=source.device).flip(0),
        update_offsets=parts,
        preconditioned=torch.ones(count, dtype=torch.bool, device=source.device),
        **state,
    )


def copied(value: object, dtype: torch.dtype | None = None) -> Any:  # noqa: ANN401
    """Copy an argument with its layout and its whole storage; floating tensors in `dtype` if not None."""
    if isinstance(value, list):
        return [copied(item, dtype) for item in value]
    if not isinstance(value, Tensor):
        return value
    wanted = dtype if dtype and value.is_floating_point() else value.dtype
    return whole(value).to(wanted, copy=True).as_strided(value.shape, value.stride(), value.storage_offset())


def whole(tensor: Tensor) -> Tensor:
    """Return the whole storage of a tensor as one vector."""
    return tensor.new_empty(0).set_(tensor.untyped_storage())
