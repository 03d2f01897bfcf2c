"""Full float32 for an optimizer's products, whatever precision a training script sets for its model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

MATMULS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
AUTOCAST_DEVICES = ("cpu", "cuda")


@contextmanager
def full_float32() -> Iterator[None]:
    """Make torch's float32 products round as float32 does: no TF32, no bfloat16, no autocast.

    A root by products in TF32 has a residual of 2e-2 to 9e-2 and is refused, so preconditioning would be off
    silently. These settings are global to the process and are restored on exit.
    """
    with ExitStack() as settings:
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                settings.enter_context(torch.autocast(device, enabled=False))
        if any(matmul.fp32_precision not in ("ieee", "none") for matmul in MATMULS):
            settings.enter_context(_highest_precision())
        yield


@contextmanager
def _highest_precision() -> Iterator[None]:
    """Set both of torch's interfaces, because torch refuses a product if they contradict each other."""
    legacy, before = _legacy_precision(), [matmul.fp32_precision for matmul in MATMULS]
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(legacy)
        for matmul, precision in zip(MATMULS, before, strict=True):
            matmul.fp32_precision = "none"  # defer to `torch.backends.fp32_precision`
            if matmul.fp32_precision != precision:
                matmul.fp32_precision = precision


def _legacy_precision() -> str:
    """Return the `torch.set_float32_matmul_precision` setting, also where torch's getter raises."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        matmul = torch.backends.cuda.matmul
    try:
        tf32 = matmul.allow_tf32
    except RuntimeError:  # the new interface has the opposite setting
        tf32 = matmul.fp32_precision != "tf32"
    return "high" if tf32 else "highest"
