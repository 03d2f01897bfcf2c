"""Commands of bench/ that the docs name, at a small size: they run, and the claims of their figures hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from marks import slow_after

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from bench.experiments import quadratic
from bench.ops import roots_accuracy
from bench.steps import host_time
from bench.tuning import results, tune_defaults


@pytest.mark.parametrize("lr", slow_after(1, quadratic.RATES))
def test_float32_is_enough_for_the_papers_quadratic(lr: float) -> None:
    """KrADagrad in float32 ends with the loss of Shampoo in float64."""
    problem = quadratic.Quadratic.of_size(48)
    ends = {}
    for optimizer in (quadratic.OPTIMIZERS[0], quadratic.OPTIMIZERS[2]):
        *_, ends[optimizer.label] = quadratic.losses(problem, optimizer, lr)
    wanted = ends["Shampoo, float64"]
    assert abs(ends["KrADagrad, float32"] / wanted - 1) < 0.1


def test_quadratic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quadratic, "STEPS", 6)
    quadratic.main(["--sizes", "12", "--rates", "1e-3", "2e-3", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| n | optimizer | lr 0.001 | lr 0.002 | other lr |"
    assert len(lines) == 2 + len(quadratic.OPTIMIZERS)
    assert (tmp_path / "quadratic.png").stat().st_size > 10_000
    rows = (tmp_path / "quadratic.csv").read_text().splitlines()
    runs = sum(len(optimizer.rates or (1, 2)) for optimizer in quadratic.OPTIMIZERS)
    assert len(rows) == 1 + 6 * runs


def test_tune_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every combination runs once; a second call runs none."""
    path = tmp_path / "tuning.csv"
    command = ["tune_defaults", "--csv", str(path), "--steps", "2", "--vary", "lr", "1e-2"]
    command += ["--vary", "graft", "adam", "rms"]
    monkeypatch.setattr(sys, "argv", command)
    tune_defaults.main()
    first = path.read_text()
    assert len(first.splitlines()) == 3
    tune_defaults.main()
    assert path.read_text() == first
    table = capsys.readouterr().out.splitlines()
    assert sum('"graft": "rms"' in line for line in table) == 2


def test_host_time(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has every optimizer, and both kinds of KrADagrad's steps."""
    host_time.main(["--parameters", "10", "--steps", "10", "--block-size", "16"])
    header, _, *rows = capsys.readouterr().out.splitlines()
    columns = "p20 | p50 | p80 | least | norms | copies | collectives | the host"
    assert header == f"| 10 parameters, ms a step | {columns} |"
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    sharded = ("1 rank", "of 2 ranks, replicas", "of 2 ranks, shards")
    ours = ("KrADagrad, local engine", *(f"KrADagrad, sharded engine, {ranks}" for ranks in sharded))
    assert names == [
        "AdamW(foreach=True)",
        *(f"{n}{kind}" for n in ours for kind in ("", ", steps with roots")),
    ]


def test_roots_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors have the size of the dtype's rounding at a condition number that occurs in training."""
    monkeypatch.setattr(roots_accuracy, "SIDE", 24)
    for method in roots_accuracy.METHODS:
        for arithmetic in roots_accuracy.ARITHMETICS:
            samples, refused = roots_accuracy.errors(1e3, 2, method, arithmetic)
            assert not refused
            bound = {torch.float64: 1e-7, torch.float32: 1e-5, torch.bfloat16: 1e-2}[arithmetic.store]
            assert max(samples) < bound


def test_the_table_of_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every optimizer trains on every task and seed; a second call runs none."""
    monkeypatch.setattr(results, "BEST_RATES", {"curves": {"adamw": 1e-3, "kradagrad": 1e-2}})
    monkeypatch.setattr(results, "NAMES", {"adamw": "AdamW", "kradagrad": "KrADagrad"})
    path = tmp_path / "results.csv"
    command = ["--csv", str(path), "--steps", "2", "--seeds", "0", "1"]
    results.main(command)
    first = path.read_text()
    assert len(first.splitlines()) == 5
    results.main(command)
    assert path.read_text() == first
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert lines[0] == "| | curves, 400 steps |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| AdamW", "| KrADagrad"]
