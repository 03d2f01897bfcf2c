"""Lightning, through its example: precision, accumulation, schedule, logs, checkpoints, ranks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow, slow_after
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DistributedSampler

from kradagrad_ext import KrADagrad, param_groups

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import lightning_module

SMALL = ["--epochs=3", "--batch=512"]

pytestmark = [
    # Warnings about Lightning's calls into torch and about the machine, and its recommendations.
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers which may be a bottleneck"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Precision .* is not supported by the model summary"),
    pytest.mark.filterwarnings(
        "ignore:The number of training batches .* is smaller than the logging interval"
    ),
]


@pytest.fixture(autouse=True)
def restored_seed() -> Iterator[None]:
    """Seed torch's global generator again, since `seed_everything` changes it for the whole process."""
    yield
    torch.manual_seed(0)


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / lightning_module.LAST, weights_only=True)


def same(ours: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Return True if two checkpoints have the same weights and optimizer state, bit for bit."""
    weights = all(
        torch.equal(ours["state_dict"][key], value) for key, value in expected["state_dict"].items()
    )
    (state,), (other,) = ours["optimizer_states"], expected["optimizer_states"]
    return weights and all(
        torch.equal(state["state"][index][key], value)
        for index, values in other["state"].items()
        for key, value in values.items()
    )


@pytest.mark.parametrize("precision", slow_after(1, lightning_module.PRECISIONS))
def test_a_resumed_run_equals_the_unbroken_one(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are equal bit for bit, after Ctrl-C in the third epoch."""
    run = [*SMALL, f"--precision={precision}"]
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    assert lightning_module.main([*run, f"--out={unbroken}"]) == 0
    original = lightning_module.Classifier.training_step

    def interrupted(self: Any, batch: Any, number: int) -> Tensor:
        if self.current_epoch == 2 and number == 3:
            raise KeyboardInterrupt
        return original(self, batch, number)

    with monkeypatch.context() as stopped:
        stopped.setattr(lightning_module.Classifier, "training_step", interrupted)
        with pytest.raises(SystemExit):
            lightning_module.main([*run, f"--out={resumed}"])
    assert saved(resumed)["epoch"] == 1
    assert lightning_module.main([*run, f"--out={resumed}", "--resume"]) == 0
    assert same(saved(resumed), saved(unbroken))


def test_losses_fall_and_the_logs_show_the_optimizer(tmp_path: Path) -> None:
    lightning_module.main(["--epochs=4", "--batch=256", "--precision=bf16-mixed", f"--out={tmp_path}"])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert scalars["val_loss"] == sorted(scalars["val_loss"], reverse=True)
    assert scalars["val_loss"][-1] < 1.2
    rates = scalars["lr-KrADagrad/matrices"]
    assert rates[0] < max(rates) > rates[-1]
    conditions = scalars["kradagrad/matrices/condition"]
    assert len(conditions) == len({event.step for event in events.Scalars("lr-KrADagrad/matrices")})
    assert all(value > 1 for value in conditions)
    steps = [event.step for event in events.Scalars("kradagrad/matrices/steps")]
    assert scalars["kradagrad/matrices/steps"] == steps


def test_accumulation_is_one_larger_batch(tmp_path: Path) -> None:
    """Accumulation cuts the same batch; only float32's rounding differs, which steps magnify."""
    options = ["--epochs=1", "--batch=512", "--precision=32-true"]
    for parts in (1, 2):
        lightning_module.main([*options, f"--accumulate={parts}", f"--out={tmp_path / str(parts)}"])
    whole, cut = (saved(tmp_path / parts)["state_dict"] for parts in ("1", "2"))
    for name, tensor in whole.items():
        assert (cut[name] - tensor).norm() <= 2e-2 * tensor.norm(), name


class TwoRanksInTurn(DistributedSampler[Any]):
    """A sampler whose batches of 256 are those of rank 0 and rank 1 in turn."""

    def __iter__(self) -> Iterator[int]:
        order = torch.tensor(list(super().__iter__()))
        steps = order[: len(order) // 512 * 512].view(-1, 256, 2)
        return iter(steps.transpose(1, 2).flatten().tolist())


@slow
def test_two_ranks_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks train like one that accumulates their batches, and one can load the state that they save."""
    options = ["--epochs=2", "--precision=32-true"]
    two, one = tmp_path / "two", tmp_path / "one"
    command = [sys.executable, lightning_module.__file__, *options]
    command += ["--batch=256", "--accumulate=1", "--ranks=2", f"--out={two}"]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    monkeypatch.setattr(lightning_module, "DistributedSampler", TwoRanksInTurn)
    lightning_module.main([*options, "--batch=512", "--accumulate=2", f"--out={one}"])
    ours, alone = saved(two), saved(one)
    for name, tensor in alone["state_dict"].items():
        assert (ours["state_dict"][name] - tensor).norm() <= 1e-2 * tensor.norm(), name
    model = lightning_module.Classifier(1e-2)
    optimizer = KrADagrad(param_groups(model, show=None))
    optimizer.load_state_dict(ours["optimizer_states"][0])
    momenta = zip(optimizer.state.values(), alone["optimizer_states"][0]["state"].values(), strict=True)
    for state, expected in momenta:
        assert (state["exp_avg"] - expected["exp_avg"]).norm() <= 1e-2 * expected["exp_avg"].norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume"], "holds no checkpoint"),
        (["--accumulate=3"], "--accumulate: must divide --batch 512, got 3"),
        (["--ranks=0"], "--ranks: must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_reported(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        lightning_module.main([*SMALL, f"--out={tmp_path / 'out'}", *options])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / lightning_module.LAST).parent.mkdir()
    (tmp_path / lightning_module.LAST).touch()
    with pytest.raises(SystemExit):
        lightning_module.main([f"--out={tmp_path}"])
    assert "holds another run's checkpoint; use --resume" in capsys.readouterr().err
