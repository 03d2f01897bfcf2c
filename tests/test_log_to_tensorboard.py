"""examples/log_to_tensorboard.py, and what TensorBoard reads from its event files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import kradagrad_ext
from kradagrad_ext.diagnostics import MEASURES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import log_to_tensorboard


def written(folder: Path) -> dict[str, dict[int, float]]:
    """Return the values of every name, by step."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]
    }


def test_the_event_file_holds_every_reading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert log_to_tensorboard.main(["--steps=25", "--every=10", f"--out={tmp_path / 'run'}"]) == 0
    scalars = written(tmp_path / "run")
    counts = {name for name, fold in MEASURES.items() if fold.counts}
    assert set(scalars) == (
        {"train/loss"}
        | {f"kradagrad/matrices/{name}" for name in MEASURES}
        | {f"kradagrad/vectors/{name}" for name in counts}
    )
    assert all(list(values) == [10, 20, 25] for values in scalars.values())
    assert scalars["kradagrad/matrices/steps"] == {10: 10, 20: 20, 25: 25}
    assert scalars["train/loss"][25] < scalars["train/loss"][10]
    assert all(value > 1 for value in scalars["kradagrad/matrices/condition"].values())
    out, progress = capsys.readouterr()
    assert [line.split(":")[0] for line in progress.splitlines()] == ["step 10", "step 20", "step 25"]
    assert f"tensorboard --logdir {tmp_path / 'run'}" in out


def test_a_reading_on_its_way_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that is behind, the next reading is skipped; the last one is awaited at the end of the run."""
    monkeypatch.setattr(kradagrad_ext.AsyncDiagnostics, "ready", lambda self: False)
    log_to_tensorboard.main(["--steps=6", "--every=2", f"--out={tmp_path}"])
    assert list(written(tmp_path)["train/loss"]) == [2]


def test_runs_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_tensorboard.main(["--steps=1", f"--out={tmp_path}"])
    with pytest.raises(SystemExit):
        log_to_tensorboard.main(["--steps=1", f"--out={tmp_path}"])
    assert "holds another run's events" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        log_to_tensorboard.main(["--every=0"])
    assert "--every: must be at least 1, got 0" in capsys.readouterr().err
