"""`torch.library.opcheck` of every native op: schema, mutation, fake kernels; and its error texts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cases
import pytest
import torch
from inputs import guard_gradients as guard_gradients_inputs
from inputs import scale_updates as scale_updates_inputs
from torch import Tensor

from kradagrad_ext.backends import available_backends, triton
from kradagrad_ext.backends.base import COEFFICIENTS
from kradagrad_ext.backends.scalars import ScalarRule

NATIVE = available_backends(torch.device("cpu")).get("native")
pytestmark = pytest.mark.skipif(NATIVE is not None, reason=f"native backend: {NATIVE}")


SQUARE_ROOT_RULE = (0.9, 0.5, 1e-3, 0.1, 1.0, "cholesky", 2, "bf16x3", True)


def square_root_arguments() -> tuple[object, ...]:
    """Return arguments for two shape groups: 4 blocks [5, 3] and 2 blocks [3, 2]."""
    shapes = [(4, 5, 3), (2, 3, 2)]
    left = [cases.spd(n, rows, torch.float32) for n, rows, _ in shapes]
    right = [cases.spd(n, columns, torch.float32) for n, _, columns in shapes]
    grad, direction = (
        [view for shape in shapes for view in cases.strided(torch.randn(shape))] for _ in range(2)
    )
    out, norms = [torch.zeros(shape) for shape in shapes], torch.zeros(6)
    roots = [x.clone() for x in left], [x.clone() for x in right]
    statistics = [[torch.ones(n, 4) for n, *_ in shapes] for _ in range(2)]
    scales = torch.tensor([1, 0.3, 0, 1, 1, 1])
    return (
        left,
        right,
        *statistics,
        out,
        norms,
        grad,
        direction,
        *roots,
        scales,
        *SQUARE_ROOT_RULE,
        True,
        True,
    )


def update_factor_arguments() -> tuple[object, ...]:
    x, scales = cases.spd(4, 5, torch.float32), torch.ones(4)
    unfolding = cases.strided(torch.randn(4, 5, 3))
    return (x, torch.ones(4, 4), unfolding, scales, *SQUARE_ROOT_RULE)


def some() -> list[Tensor]:
    return [torch.rand(3, 4), torch.rand(7)]


def update_moments_arguments() -> tuple[object, ...]:
    scalars = (torch.rand(2, COEFFICIENTS), torch.ones(2, dtype=torch.bool), 0.9, 0.99, 0.01, True)
    return (some(), some(), some(), torch.zeros(2), some(), some(), *scalars)


def parameter_arguments() -> tuple[object, ...]:
    updates = [torch.rand(3, 4), torch.empty(0)]
    scalars = (torch.rand(2, COEFFICIENTS), torch.ones(2, dtype=torch.bool), torch.tensor(0.1), 0.9, False)
    params, residuals = [value.bfloat16() for value in some()], [value.short() for value in some()]
    return (params, some(), residuals, updates, some(), some(), *scalars)


def guard_arguments() -> tuple[object, ...]:
    inputs = guard_gradients_inputs.rows(guard_gradients_inputs.make(torch.float32), torch.arange(7))
    return (*vars(inputs).values(), *ScalarRule(**guard_gradients_inputs.RULE).values)


def scale_arguments() -> tuple[object, ...]:
    inputs = scale_updates_inputs.rows(scale_updates_inputs.make(torch.float32), torch.arange(7))
    return (*vars(inputs).values(), 0.9, True, "graft")


SAMPLES: dict[str, Callable[[], tuple[object, ...]]] = {
    "update_factor_": update_factor_arguments,
    "kron_step_": square_root_arguments,
    "guard_gradients_": guard_arguments,
    "scale_updates_": scale_arguments,
    "update_moments_": update_moments_arguments,
    "apply_updates_": parameter_arguments,
    "decomposed_roots": lambda: (torch.rand(3, 6, 6), 2),
}


ON_GPUS = {"polar_roots_"}
"""Ops without a CPU kernel; tests/gpu checks them."""


@pytest.mark.parametrize("op", SAMPLES)
def test_opcheck(op: str) -> None:
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(getattr(torch.ops.kradagrad_ext, op).default, SAMPLES[op](), test_utils=checks)


def test_every_op_is_covered() -> None:
    registered = {
        name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if "kradagrad_ext::" in name
    }
    assert registered == set(SAMPLES) | ON_GPUS


def replaced(arguments: tuple[object, ...], position: int, value: object) -> tuple[object, ...]:
    return (*arguments[:position], value, *arguments[position + 1 :])


REFUSALS = [
    ("update_factor_", 0, torch.zeros(2, 3, 4), "update_factor_: `factor` must be"),
    ("update_factor_", 1, torch.zeros(4, 2), "update_factor_: `statistics` must be"),
    ("update_factor_", 2, [torch.zeros(4, 6, 3)], "update_factor_: `unfolding"),
    ("update_factor_", 3, torch.ones(4, dtype=torch.bool), "update_factor_: `scales` must be"),
    ("update_factor_", 4, 1.5, "update_factor_: `decay` must be in (0, 1], got 1.5"),
    ("update_factor_", 6, 0.0, "update_factor_: `damping` must be > 0"),
    ("update_factor_", 7, 0.0, "update_factor_: `prior` must be > 0"),
    ("update_factor_", 8, -1.0, "update_factor_: `damped_updates` must be >= 0"),
    ("update_factor_", 9, "qr", "update_factor_: `method` must be cholesky or products, got qr"),
    ("update_factor_", 10, 7, "update_factor_: `refine` must be 1 to 6, got 7"),
    ("kron_step_", 1, [torch.zeros(4, 3, 3)], "kron_step_: `right` must be a list of 2"),
    ("kron_step_", 1, [torch.zeros(3, 3, 3), torch.zeros(2, 2, 2)], "kron_step_: `right[0]` must be"),
    ("kron_step_", 4, [torch.zeros(4, 5, 4), torch.zeros(2, 3, 2)], "kron_step_: `out[0]` must be"),
    ("kron_step_", 4, [torch.zeros(5, 5, 3), torch.zeros(2, 3, 2)], "kron_step_: `out` must be views"),
    (
        "kron_step_",
        4,
        [torch.zeros(4, 5, 3)],
        "kron_step_: `out` must be views of 2 blocks for group 1",
    ),
    ("kron_step_", 5, torch.zeros(4), "kron_step_: `norms` must be"),
    ("kron_step_", 8, [torch.zeros(4, 4, 4), torch.zeros(2, 3, 3)], "kron_step_: `left_root[0]` must"),
    ("kron_step_", 8, [], "kron_step_: `left_root` must be a list of 2"),
    ("kron_step_", 18, "half", "kron_step_: `precision` must be"),
    ("guard_gradients_", 0, torch.zeros(7, 8), "guard_gradients_: `scalars` must be [M, 9] float32 or"),
    ("guard_gradients_", 1, torch.zeros(7, 9), "guard_gradients_: `coefficients` must be [7, 10]"),
    ("guard_gradients_", 2, torch.zeros(7), "guard_gradients_: `active` must be [7] bool"),
    ("guard_gradients_", 3, torch.zeros(7), "guard_gradients_: `restarts` must be [7] bool"),
    ("guard_gradients_", 4, torch.zeros(7), "guard_gradients_: `norms` must be [7] float64"),
    ("guard_gradients_", 5, torch.zeros(6), "guard_gradients_: `numel` must be [7] float32"),
    ("guard_gradients_", 6, torch.zeros(7), "guard_gradients_: `present` must be [7] bool"),
    ("guard_gradients_", 7, torch.zeros(1), "guard_gradients_: `weight_decay` must be [] float32"),
    ("guard_gradients_", 8, 1.0, "guard_gradients_: `spike_limit` must be > 1, got 1"),
    ("guard_gradients_", 9, 1.0, "guard_gradients_: `beta1` must be in [0, 1), got 1"),
    ("guard_gradients_", 12, -0.1, "guard_gradients_: `bias2` must be in [0, 1), got -0.1"),
    ("guard_gradients_", 13, 1.1, "guard_gradients_: `decay2` must be in [0, 1], got 1.1"),
    ("guard_gradients_", 14, -1.0, "guard_gradients_: `weight2` must be >= 0"),
    ("guard_gradients_", 15, -1.0, "guard_gradients_: `eps` must be >= 0"),
    ("guard_gradients_", 16, 6, "guard_gradients_: `decayed` must be 7, 8 or 9, got 6"),
    (
        "guard_gradients_",
        18,
        "sgd",
        "guard_gradients_: `length` must be graft, gradient, rms or whitened",
    ),
    ("scale_updates_", 0, torch.zeros(7, 9), "scale_updates_: `coefficients` must be [M, 10]"),
    ("scale_updates_", 1, torch.zeros(7, 8), "scale_updates_: `scalars` must be [7, 9] float32"),
    ("scale_updates_", 2, torch.zeros(7).double(), "scale_updates_: `graft_norms` must be [S] float32"),
    ("scale_updates_", 3, torch.zeros(7).long(), "scale_updates_: `graft_offsets` must be [8] int64"),
    ("scale_updates_", 4, torch.zeros(7).double(), "scale_updates_: `update_norms` must be [B] float32"),
    ("scale_updates_", 5, torch.zeros(1).long(), "scale_updates_: `update_order` must be ["),
    ("scale_updates_", 6, torch.zeros(8), "scale_updates_: `update_offsets` must be [8] int64"),
    ("scale_updates_", 7, torch.zeros(6), "scale_updates_: `numel` must be [7] float32"),
    ("scale_updates_", 8, torch.zeros(7), "scale_updates_: `preconditioned` must be [7] bool"),
    ("scale_updates_", 9, -0.5, "scale_updates_: `beta1` must be in [0, 1), got -0.5"),
    ("scale_updates_", 11, "norm", "scale_updates_: `length` must be graft, gradient, rms or whitened, got"),
    ("update_moments_", 3, torch.zeros(3), "update_moments_: `graft_norms` must be [2] float32"),
    ("update_moments_", 4, [torch.zeros(3, 4)], "update_moments_: `grads` must"),
    ("update_moments_", 6, torch.zeros(2, 3), "update_moments_: `coefficients` must be"),
    ("apply_updates_", 2, [torch.zeros(3, 4), torch.zeros(7)], "apply_updates_: `residuals"),
    ("apply_updates_", 3, [torch.zeros(3, 3), torch.zeros(7)], "apply_updates_: `updates"),
    ("apply_updates_", 8, torch.zeros(2), "apply_updates_: `lr` must be"),
    ("decomposed_roots", 0, torch.zeros(3, 4, 5), "decomposed_roots: `factors` must be [N, d, d]"),
    ("decomposed_roots", 0, torch.zeros(3, 4, 4).half(), "decomposed_roots: `factors` must be"),
    ("decomposed_roots", 1, 0, "decomposed_roots: `p` must be at least 1, got 0"),
]


TRITON_OPS = {op: getattr(triton, op) for op in ("update_moments_", "apply_updates_")}
"""Ops of the Triton backend with the same arguments, which it checks before it looks for Triton."""


def assert_refused(call: Callable[..., object], op: str, position: int, value: object, message: str) -> None:
    arguments = SAMPLES[op]()
    tensors = [t for a in arguments for t in (a if isinstance(a, list) else [a]) if isinstance(t, Tensor)]
    before = [t.clone() for t in tensors]
    with pytest.raises(RuntimeError, match="must") as caught:
        call(*replaced(arguments, position, value))
    assert str(caught.value).startswith(message) or message in str(caught.value)
    assert "got" in str(caught.value)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize(("op", "position", "value", "message"), REFUSALS)
def test_bad_arguments_are_named_and_nothing_is_written(
    op: str, position: int, value: object, message: str
) -> None:
    assert_refused(getattr(torch.ops.kradagrad_ext, op), op, position, value, message)
    if op in TRITON_OPS:
        assert_refused(TRITON_OPS[op], op, position, value, message)


@pytest.mark.parametrize(
    "op", [*TRITON_OPS, "kron_step_", "update_factor_", "guard_gradients_", "scale_updates_"]
)
def test_tensors_on_several_devices_are_refused(op: str) -> None:
    """Any tensor may be the one elsewhere. The dispatcher prefers CUDA to the CPU, so it leaves the check to
    the op, whose checks are the same for both. It would refuse a meta tensor, hence `redispatch`."""
    kernel, cpu = (
        getattr(torch.ops.kradagrad_ext, op).default,
        torch._C.DispatchKeySet(torch._C.DispatchKey.CPU),
    )
    message = "must be on the device of the other tensors, got a tensor on another device"
    for position, value in enumerate(SAMPLES[op]()):
        if not isinstance(value, (Tensor, list)):
            continue
        elsewhere = value.to("meta") if isinstance(value, Tensor) else [value[0].to("meta"), *value[1:]]
        for call in (functools.partial(kernel.redispatch, cpu), *filter(None, [TRITON_OPS.get(op)])):
            with pytest.raises(RuntimeError, match=message):
                call(*replaced(SAMPLES[op](), position, elsewhere))
