"""The checked and timed cases as data: the driver lists them without torch, a worker makes the arguments.

A task is a list of cases that one process runs consecutively: the cases of one kernel.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

Sides = tuple[int, int]

PRECISIONS = ("bf16x3", "tf32x3", "fp32")
SIDES = (64, 128, 256, 512, 1024)
"""Sides of the timed blocks."""
TIMED = (4096, 4096)
GPT2_BLOCKS = (128, 256)


@dataclass(frozen=True)
class CaseSpec:
    """A call of an op.

    Attributes:
        blocks: shapes of blocks, one group per shape; for elementwise ops, shapes of parameters.
        shape: shape of the matrices that contain the blocks; longer blocks have separate matrices.
        coupled: True for coupled updates.
        what: ``all``; for a step, ``first`` gradients, only the ``product``, or factors and roots in bfloat16
            (``stored``); for elementwise ops, an option.
        layout: ``plain``, or views with padding around them: rows begin at multiples of 16 bytes
            (``padded``) or anywhere (``ragged``), or the matrix is ``transposed`` and ragged.
    """

    op: str
    blocks: tuple[tuple[int, ...], ...]
    shape: Sides = (1, 1)
    refine: int = 2
    precision: str = "bf16x3"
    dtype: str = "float32"
    coupled: bool = False
    what: str = "all"
    layout: str = "plain"

    @property
    def factored(self) -> bool:
        """True if the op works on factors, False for elementwise ops."""
        return self.op in ("kron_step_", "update_factor_", "polar_roots_")

    @property
    def recipe(self) -> str:
        return f"r{self.refine}-{self.precision}{'-coupled' * self.coupled}" if self.factored else ""

    @property
    def size(self) -> str:
        """The blocks' shape, or ``ragged`` for several."""
        return "x".join(map(str, self.blocks[0])) if len(self.blocks) == 1 else "ragged"

    def small(self) -> CaseSpec:
        """Return a spec with the same kernels and constants, on little work."""
        blocks = tuple(tuple(min(side, 320) for side in block) for block in self.blocks)
        return dataclasses.replace(self, shape=(1, 1), blocks=blocks)

    @property
    def name(self) -> str:
        """Name without blanks and special characters of the shell."""
        blocks = "+".join("x".join(map(str, block)) for block in self.blocks)
        parts = [self.op, blocks, self.recipe, self.dtype]
        parts += [part for part in (self.what, self.layout) if part not in ("all", "plain")]
        return "/".join(part for part in parts if part)


def kron(*blocks: Sides, shape: Sides = (1, 1), **options: object) -> CaseSpec:
    return dataclasses.replace(CaseSpec("kron_step_", blocks, shape), **options)


def elementwise(op: str, *shapes: tuple[int, ...], **options: object) -> CaseSpec:
    return dataclasses.replace(CaseSpec(op, shapes), **options)


TINY = ((16, 16), (5, 17), (32, 30))
SMALL = ((64, 64), (40, 33), (17, 5))
MIDDLE = ((96, 96), (80, 70), (65, 33))
MEDIUM = ((128, 128), (100, 70), (65, 128))
LARGE = ((140, 140), (192, 40), (130, 200))
BETWEEN = ((128, 128), (100, 70), (192, 40))
LARGEST = ((300, 200), (256, 256), (40, 300))


def _updates(blocks: tuple[Sides, ...], precision: str) -> tuple[CaseSpec, ...]:
    """Return whole steps of ragged groups by every code path of an update."""
    return (
        kron(*blocks, precision=precision, coupled=True),
        kron(*blocks, precision=precision, refine=1, layout="ragged"),
        kron(*blocks, precision=precision, dtype="bfloat16", refine=3, coupled=True, layout="padded"),
        kron(blocks[0], shape=(2 * blocks[0][0], 2 * blocks[0][1]), precision=precision, layout="transposed"),
        kron(*blocks, precision=precision, refine=4, coupled=True, what="first"),
        kron(*blocks, precision=precision, what="stored"),
    )


def _products(blocks: tuple[Sides, ...], precision: str) -> tuple[CaseSpec, ...]:
    """Return specs of the two-sided product alone."""
    return (
        kron(*blocks, precision=precision, what="product"),
        kron(*blocks, precision=precision, what="product", layout="ragged"),
    )


def _roots(blocks: tuple[Sides, ...], precision: str) -> tuple[CaseSpec, ...]:
    """Return specs of new roots of both sides' factors."""
    return (
        CaseSpec("polar_roots_", blocks, precision=precision),
        CaseSpec("polar_roots_", blocks, precision=precision, what="stored"),
    )


ELEMENTS = ((300, 70), (5000,), (1,), (33, 129))
UPDATE_MOMENTS = tuple(
    elementwise("update_moments_", *ELEMENTS, dtype=dtype, what=what, layout=layout)
    for dtype in ("float32", "bfloat16")
    for what, layout in (("all", "plain"), ("nesterov", "ragged"), ("l2", "transposed"), ("bare", "plain"))
)
APPLY_UPDATES = tuple(
    elementwise("apply_updates_", *ELEMENTS, dtype=dtype, what=what, layout=layout)
    for dtype in ("float32", "bfloat16")
    for what, layout in (("all", "plain"), ("momentum", "ragged"), ("l2", "transposed"), ("bare", "plain"))
)
GUARD = tuple(elementwise("guard_gradients_", (300,), what=what) for what in ("all", "nesterov"))
SCALE = tuple(elementwise("scale_updates_", (300,), what=what) for what in ("all", "rms"))
UPDATES = (
    CaseSpec("update_factor_", ((128, 128),), (256, 256), refine=3),
    CaseSpec("update_factor_", ((40, 320),), refine=1, layout="ragged"),
    CaseSpec("update_factor_", ((40, 300),), dtype="bfloat16", layout="padded"),
    CaseSpec("update_factor_", ((288, 256),), (288, 512), what="first"),
)
BETWEEN_PRODUCTS = (
    kron(*LARGEST, coupled=True),
    kron(*LARGE, *LARGEST, what="first"),
    kron(*LARGEST, what="stored", layout="ragged"),
)

GROUPED = {(64, "tf32x3"): LARGE, (128, "bf16x3"): LARGEST, (128, "fp32"): LARGE}
"""Blocks of grouped products, by the side of their tiles and the precision; in bf16x3, wide kernels serve
sides up to 256."""

NATIVE: dict[str, tuple[CaseSpec, ...]] = {
    **{
        f"resident_{half}_{side}_{precision}": cases(blocks, precision)
        for half, cases in (("update", _updates), ("precondition", _products), ("root", _roots))
        for side, blocks in ((128, MEDIUM), (96, MIDDLE), (64, SMALL))
        for precision in (PRECISIONS[:1] if side == 96 else PRECISIONS)
    },
    "wide_update": _updates(LARGE, "bf16x3"),
    "wide_precondition": _products(LARGE, "bf16x3"),
    "wide_root": _roots((*LARGE, *LARGEST), "bf16x3"),
    **{
        f"square_root_product_{tile}_{precision}": (
            *_updates(blocks, precision),
            *_products(blocks, precision),
        )
        for (tile, precision), blocks in GROUPED.items()
    },
    "gradient_norms": BETWEEN_PRODUCTS,
    "start_sides": UPDATES,
    "finish_sides": (kron(*LARGE, *LARGEST, refine=3),),
    "finish_norms": (kron(*LARGEST, what="product", layout="padded"),),
    "guard_gradients": GUARD,
    "update_moments": UPDATE_MOMENTS,
    "scale_updates": SCALE,
    "apply_updates": APPLY_UPDATES,
}
"""Cases for every CUDA kernel, by the kernel's name."""


def _triton_steps(blocks: tuple[Sides, ...], precision: str) -> tuple[CaseSpec, ...]:
    """Return all cases in the default precision, two in the others: each compiles a dozen kernels."""
    cases = (*_updates(blocks, precision), *_products(blocks, precision))
    return cases if precision == PRECISIONS[0] else cases[:2]


TRITON: dict[str, tuple[CaseSpec, ...]] = {
    **{f"grouped_large_{precision}": _triton_steps(LARGEST, precision) for precision in PRECISIONS},
    **{f"grouped_small_{precision}": _triton_steps(BETWEEN, precision) for precision in PRECISIONS},
    **{f"square_root_resident_{precision}": _triton_steps(TINY, precision) for precision in PRECISIONS},
    "side_state": (*BETWEEN_PRODUCTS, *UPDATES),
    "update_moments": UPDATE_MOMENTS,
    "apply_updates": APPLY_UPDATES,
}
"""Cases by row of Triton's tuning table: a class of blocks and a precision, or an op."""


def _timed(side: int, **options: object) -> CaseSpec:
    return kron((side, side), shape=TIMED, **{"coupled": True, **options})


def _elements(op: str, dtype: str) -> CaseSpec:
    return elementwise(op, TIMED, TIMED, TIMED[:1], dtype=dtype)


ELEMENTWISE_OPS = ("update_moments_", "apply_updates_")
TIMES: tuple[CaseSpec, ...] = (
    *(_timed(side) for side in (128, 256, 64, 512, 1024)),
    *(_elements(op, "float32") for op in ELEMENTWISE_OPS),
    *(CaseSpec("polar_roots_", ((side, side),), TIMED) for side in (128, 256, 64, 96)),
    *(_timed(side, coupled=False) for side in (128, 256)),
    *(_timed(side, refine=3) for side in (128, 256)),
    *(_timed(side, what="stored") for side in (128, 256)),
    *(_timed(side, what="product") for side in (128, 256)),
    *(_timed(side, precision=precision) for precision in PRECISIONS[1:] for side in (128, 256)),
    *(_timed(side, dtype="bfloat16") for side in (128, 256)),
    *(_elements(op, "bfloat16") for op in ELEMENTWISE_OPS),
    *(CaseSpec("update_factor_", ((side, side),), TIMED) for side in (128, 256)),
)
"""Timed cases, the default recipe first."""

OURS = ("native", "triton")


def columns(op: str) -> tuple[str, ...]:
    """Return the backends and baselines that are timed on an op's cases, the project's first."""
    baselines = {
        "kron_step_": ("torch.bmm fp32", "torch.bmm tf32"),
        "apply_updates_": ("AdamW fused",),
    }
    return (*OURS, "roofline", *baselines.get(op, ()), "reference")


SPECS = {
    spec.name: spec
    for spec in (*TIMES, *(s for cases in (*NATIVE.values(), *TRITON.values()) for s in cases))
}
