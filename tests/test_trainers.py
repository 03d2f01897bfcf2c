"""Lightning, Fabric and Accelerate: loss scales, clipping, and steps that are skipped."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kradagrad_ext import KrADagrad

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from lightning.fabric import Fabric
    from lightning.fabric.plugins import MixedPrecision as FabricPrecision
    from lightning.pytorch.plugins import MixedPrecision

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers which may be a bottleneck"),
    pytest.mark.filterwarnings("ignore:Precision .* is not supported by the model summary"),
]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.manual_seed(0)


class Regression(lightning.LightningModule):
    """A linear regression; `huge` is the batch whose loss overflows float16."""

    def __init__(self, huge: int | None = None) -> None:
        super().__init__()
        self.layer, self.huge = nn.Linear(12, 8), huge
        self.register_buffer("target", torch.randn(8, 12))
        self.norms: list[float] = []

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        (x,) = batch
        loss: Tensor = (self.layer(x) - x @ self.target.mT).float().square().mean()
        return loss * torch.inf if index == self.huge else loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))

    def configure_optimizers(self) -> KrADagrad:
        return KrADagrad(self.parameters(), lr=0.03)


def batches(count: int = 12) -> Any:
    data = torch.utils.data.TensorDataset(torch.randn(16 * count, 12))
    return torch.utils.data.DataLoader(data, batch_size=16)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_lightning_clips_what_it_has_unscaled(precision: Any, tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8) if precision == "16-mixed" else None
    trainer = lightning.Trainer(
        plugins=[MixedPrecision(precision, "cpu", scaler)],
        accelerator="cpu",
        max_epochs=2,
        gradient_clip_val=0.25,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    model = Regression(huge=3 if scaler is not None else None)
    before = (model.layer.weight - model.target).square().mean().item()
    trainer.fit(model, batches())
    assert (model.layer.weight - model.target).square().mean().item() < before
    (optimizer,) = trainer.optimizers
    assert optimizer.param_groups[0]["step"] == (24 if scaler is None else 22)
    if scaler is not None:
        assert scaler.get_scale() == 2.0**6


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_fabric_clips(precision: Any) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8) if precision == "16-mixed" else None
    fabric = Fabric(accelerator="cpu", plugins=[FabricPrecision(precision, "cpu", scaler)])
    layer = nn.Linear(12, 8)
    model, optimizer = fabric.setup(layer, KrADagrad(layer.parameters(), lr=0.03))
    target = torch.randn(8, 12)
    losses = []
    for _ in range(30):
        x = torch.randn(16, 12)
        loss = (model(x) - x @ target.mT).square().mean()
        optimizer.zero_grad()
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=0.5)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("amp_scaling", [False, True])
def test_accelerate_sees_that_a_step_was_skipped(amp_scaling: bool) -> None:
    """Schedulers wait then. With `amp_scaling` the step itself skips, which Accelerate cannot see."""
    Accelerator(cpu=True)  # AcceleratedOptimizer reads its state
    layer, scaler = nn.Linear(12, 8), torch.amp.GradScaler("cpu", init_scale=2.0**8)
    wrapped = KrADagrad(layer.parameters(), lr=0.03, amp_scaling=amp_scaling)
    optimizer = AcceleratedOptimizer(wrapped, device_placement=False, scaler=scaler)
    seen = []
    for number in range(4):
        x = torch.randn(16, 12)
        loss = scaler.scale(layer(x).square().mean())
        (loss * torch.inf if number == 2 else loss).backward()
        optimizer.step()
        seen.append(bool(optimizer.step_was_skipped))
        optimizer.zero_grad()
    assert seen == [False, False, not amp_scaling, False]
    assert layer.weight.isfinite().all()
