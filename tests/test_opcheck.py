"""`torch.library.opcheck` of every native op: schema, mutation, fake kernels; and its error texts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import inputs
import pytest
import torch
from inputs.op import Refusal
from torch import Tensor

from kradagrad_ext.backends import available_backends, triton

NATIVE = available_backends(torch.device("cpu")).get("native")
pytestmark = pytest.mark.skipif(NATIVE is not None, reason=f"native backend: {NATIVE}")


SAMPLES = {name: op.sample for name, op in inputs.ops().items() if op.sample}


ON_GPUS = inputs.ops().keys() - SAMPLES.keys()
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


REFUSALS = [(name, refusal) for name, op in inputs.ops().items() for refusal in op.refusals]


TRITON_OPS = {name: getattr(triton, name) for name, op in inputs.elementwise().items() if op.on_triton}
"""Ops of the Triton backend with the same arguments, which it checks before it looks for Triton."""


def tensor_positions(op: str) -> list[int]:
    """Return the positions of an op's tensors and lists of tensors."""
    return [i for i, value in enumerate(SAMPLES[op]()) if isinstance(value, (Tensor, list))]


SEVERAL_TENSORS = [op for op in SAMPLES if len(tensor_positions(op)) > 1]


def assert_refused(call: Callable[..., object], op: str, refusal: Refusal) -> None:
    arguments = SAMPLES[op]()
    tensors = [t for a in arguments for t in (a if isinstance(a, list) else [a]) if isinstance(t, Tensor)]
    before = [t.clone() for t in tensors]
    with pytest.raises(RuntimeError, match="must") as caught:
        call(*replaced(arguments, refusal.position, refusal.value))
    assert str(caught.value).startswith(f"{op}: {refusal.message}")
    assert "got" in str(caught.value)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize(("op", "refusal"), REFUSALS)
def test_bad_arguments_are_named_and_nothing_is_written(op: str, refusal: Refusal) -> None:
    assert_refused(getattr(torch.ops.kradagrad_ext, op), op, refusal)
    if op in TRITON_OPS:
        assert_refused(TRITON_OPS[op], op, refusal)


@pytest.mark.parametrize("op", SEVERAL_TENSORS)
def test_tensors_on_several_devices_are_refused(op: str) -> None:
    """Any tensor may be the one elsewhere. The dispatcher prefers CUDA to the CPU, so it leaves the check to
    the op, whose checks are the same for both. It would refuse a meta tensor, hence `redispatch`."""
    kernel, cpu = (
        getattr(torch.ops.kradagrad_ext, op).default,
        torch._C.DispatchKeySet(torch._C.DispatchKey.CPU),
    )
    message = "must be on the device of the other tensors, got a tensor on another device"
    for position in tensor_positions(op):
        value = SAMPLES[op]()[position]
        elsewhere = value.to("meta") if isinstance(value, Tensor) else [value[0].to("meta"), *value[1:]]
        for call in (functools.partial(kernel.redispatch, cpu), *filter(None, [TRITON_OPS.get(op)])):
            with pytest.raises(RuntimeError, match=message):
                call(*replaced(SAMPLES[op](), position, elsewhere))
