"""The main job, examples/train_gpt.py, on a tiny model and a text made here."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gpt_runs import STEPS, arguments, flip, foreign, make_text, put, rewrite, rows, truncate
from marks import slow

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import compare_runs
import train_gpt
from gpt import checkpoint
from gpt.optimizers import NAMES
from gpt.ranks import Ranks
from gpt.trainer import COLUMNS, Trainer, learning_rate_factor

PNG = b"\x89PNG\r\n"


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread, since tiny operations gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return make_text(tmp_path / "text")


def train(text: Path, out: Path, *options: str) -> int:
    return train_gpt.main(arguments(text, out, *options))


def learned(out: Path) -> list[tuple[str, ...]]:
    """Return the log without its times."""
    return [tuple(row[name] for name in COLUMNS if not name.endswith("seconds")) for row in rows(out)]


def assert_same_run(one: Path, other: Path) -> None:
    """Compare logs and weights bit for bit."""
    assert learned(one) == learned(other)
    left, right = checkpoint.load(one)["model"], checkpoint.load(other)["model"]
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action) -> None:
    """Call `action` in the middle of the run, just before the given step."""
    original = Trainer.train_step

    def train_step(trainer: Trainer):
        if trainer.step + 1 == step:
            action()
        return original(trainer)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def test_a_run_leaves_log_plot_result_and_json(text, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(text, out, "--optimizer", "adamw", "--seed", "3", "--lr", "1e-2") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    log = rows(out)
    assert tuple(log[0]) == COLUMNS
    assert [int(row["step"]) for row in log] == list(range(1, STEPS + 1))
    assert [int(row["step"]) for row in log if row["val_loss"]] == [5, 10, STEPS]
    assert [result[key] for key in ("optimizer", "lr", "steps", "seed")] == ["adamw", 1e-2, STEPS, 3]
    assert result["val_loss"] == float(log[-1]["val_loss"]) < 5.6
    assert 0 < result["optimizer_seconds"] < result["seconds"]
    assert json.loads((out / "result.json").read_text()) == result
    assert (out / "loss.png").read_bytes().startswith(PNG)


IN_BFLOAT16 = ["--dtype=bfloat16", "--rounding=compensated"]


@pytest.mark.parametrize(("optimizer", "more"), [*((name, []) for name in NAMES), ("kradagrad", IN_BFLOAT16)])
def test_a_resumed_run_equals_an_unbroken_one(optimizer, more, text, tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(text, whole, "--optimizer", optimizer, *more) == 0
    with monkeypatch.context() as patch:
        at_step(patch, 9, lambda: signal.raise_signal(signal.SIGTERM))
        assert train(text, broken, "--optimizer", optimizer, *more) == 128 + signal.SIGTERM
    assert len(rows(broken)) == 9
    assert "--resume" in capsys.readouterr().err
    assert train_gpt.main(["--out", str(broken), "--resume"]) == 0
    assert_same_run(broken, whole)


def test_resume_if_any_starts_continues_and_keeps_a_finished_run(text, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(text, whole, "--optimizer", "adamw", "--resume-if-any") == 0
    with monkeypatch.context() as patch:
        at_step(patch, 9, lambda: signal.raise_signal(signal.SIGINT))
        assert train(text, broken, "--optimizer", "adamw", "--resume-if-any") == 128 + signal.SIGINT
    assert len(rows(broken)) == 9
    assert train(text, broken, "--optimizer", "adamw", "--resume-if-any") == 0
    assert_same_run(broken, whole)
    log = (broken / "log.csv").read_text()
    assert train(text, broken, "--optimizer", "adamw", "--resume-if-any") == 0
    assert (broken / "log.csv").read_text() == log


def test_steps_after_the_checkpoint_of_a_crash_are_repeated(text, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(text, whole, "--optimizer", "adamw") == 0

    def crash() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        at_step(patch, 9, crash)
        with pytest.raises(MemoryError):
            train(text, broken, "--optimizer", "adamw")
    assert (len(rows(broken)), len(checkpoint.load(broken)["log"])) == (8, 6)
    assert train_gpt.main(["--out", str(broken), "--resume"]) == 0
    assert_same_run(broken, whole)


@slow
def test_ctrl_c_saves_and_says_how_to_go_on(text, tmp_path):
    out = tmp_path / "run"
    options = arguments(text, out, "--optimizer=adamw", "--threads=1", "--checkpoint-every=600", steps=600)
    command = [sys.executable, train_gpt.__file__, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not ((out / "log.csv").exists() and len(rows(out)) > 5) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (128 + signal.SIGINT, "")
    done = len(checkpoint.load(out)["log"])
    assert f"after step {done}" in errors
    go_on = shlex.split(errors.splitlines()[-1])
    finished = subprocess.run(go_on, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(finished.stdout.splitlines()[-1])["steps"] == len(rows(out)) == 600


@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
def test_a_run_in_bfloat16_is_near_that_in_float32(rounding, text, tmp_path):
    """Losses agree within 0.02 nats, as in the demo, at a rate too small for rounding to the nearest."""
    losses = {}
    options = ("--lr=3e-4", "--steps=60", "--eval-every=60")
    for name, more in (("wide", []), ("narrow", ["--dtype=bfloat16", f"--rounding={rounding}"])):
        assert train(text, tmp_path / name, *options, *more) == 0
        losses[name] = float(rows(tmp_path / name)[-1]["val_loss"])
    assert losses["narrow"] == pytest.approx(losses["wide"], abs=0.02)


def test_a_finished_run_can_be_reported_again(text, tmp_path, capsys):
    train(text, tmp_path / "run", "--optimizer", "sgd")
    first = capsys.readouterr().out
    assert train_gpt.main(["--out", str(tmp_path / "run"), "--resume"]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--optimizer adam", "invalid choice: 'adam'"),
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--steps many", "invalid int value: 'many'"),
        ("--batch -1", "--batch must be at least 1, got -1"),
        ("--lr 0", "--lr must be positive and finite, got 0.0"),
        ("--lr nan", "--lr must be positive and finite, got nan"),
        ("--seed -1", "--seed must be at least 0"),
        ("--heads 3", "--heads must divide --width 16, got 3"),
        ("--optimizer adamw --block-size 64", "--block-size is for --optimizer kradagrad, not adamw"),
        ("--optimizer kradagrad --backend abacus", "abacus"),
        ("--optimizer kradagrad --rounding up", "`rounding` must be one of"),
        ("--optimizer adamw --rounding nearest", "--rounding is for --optimizer kradagrad, not adamw"),
        ("--dtype float16", "invalid choice: 'float16'"),
        ("--data nowhere", "no such file or folder"),
        ("--context 4000", "too little text"),
        ("--device gpu", "--device must be auto, cpu, cuda or cuda:N, got gpu"),
        (
            "--device cuda:99",
            "--device cuda:99: " if not torch.cuda.is_available() else "--device must be below",
        ),
        ("--resume", "no checkpoint in"),
    ],
)
def test_wrong_options_end_with_status_2_and_nothing_written(options, message, text, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(text, out, *options.split()) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--resume --lr 0.5", "--lr 0.003, got 0.5"),
        ("--resume --optimizer sgd", "--optimizer adamw, got sgd"),
        ("--resume --steps 20", "--steps 14, got 20"),
        ("", "unfinished run"),
    ],
)
def test_an_unfinished_run_is_left_alone(options, message, text, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        train(text, out, "--optimizer", "adamw")
    before = contents(out)
    assert train_gpt.main(["--out", str(out), *options.split()]) == 2
    assert message in capsys.readouterr().err
    assert contents(out) == before


def test_a_run_does_not_resume_with_a_changed_text(text, tmp_path, capsys):
    train(text, tmp_path / "run", "--optimizer", "adamw")
    (text / "00.txt").write_text("something else entirely")
    assert train_gpt.main(["--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "not the one that the run began with" in capsys.readouterr().err


def test_a_step_in_flight_is_one_of_the_run(text, tmp_path, monkeypatch):
    """Losses read some steps later, as on a GPU, are the same; checkpoints and stopped runs include them."""
    whole, late = tmp_path / "whole", tmp_path / "late"
    assert train(text, whole, "--optimizer", "adamw", "--device", "cpu") == 0
    monkeypatch.setattr(Ranks, "steps_in_flight", 4)
    with monkeypatch.context() as patch:
        at_step(patch, 8, lambda: signal.raise_signal(signal.SIGTERM))
        assert train(text, late, "--optimizer", "adamw") == 128 + signal.SIGTERM
    assert len(rows(late)) == len(checkpoint.load(late)["log"]) == 8
    assert train_gpt.main(["--out", str(late), "--resume", "--device", "cpu"]) == 0
    assert_same_run(late, whole)


def test_divergence_is_reported(text, tmp_path, capsys):
    assert train(text, tmp_path / "run", "--optimizer", "sgd", "--lr", "1e30") == 1
    assert "diverged" in capsys.readouterr().err


def test_a_failed_save_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    checkpoint.save({"step": 1}, tmp_path)

    def fail(state, file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save({"step": 2}, tmp_path)
    assert checkpoint.load(tmp_path) == {"step": 1}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (put(b"not a checkpoint"), "cannot read {}"),
        (put(b""), "cannot read {}"),
        (truncate, "cannot read {}"),
        (flip, "cannot read {}"),
        (foreign, "{} is no checkpoint of this program: it lacks `options`"),
        (lambda path: torch.save([1], path), "{} must hold a dict, got list"),
        (rewrite("options", color="red"), "has an unknown `color`"),
        (rewrite("options", optimizer="sgd"), "`optimizers` of {} does not fit this run"),
        (rewrite("options", width=8), "`model` of {} does not fit this run"),
        (rewrite("log", [(1, 2)]), "`log` of {} does not fit this run"),
        (rewrite("batches", torch.zeros(3)), "`batches` of {} does not fit this run"),
        (rewrite("schedulers", [5]), "`schedulers` of {} does not fit this run"),
        (Path.unlink, "no checkpoint in"),
    ],
)
def test_a_bad_checkpoint_is_reported(damage, message, text, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        train(text, out, "--optimizer", "adamw")
    damage(out / checkpoint.NAME)
    before = contents(out)
    assert train_gpt.main(["--out", str(out), "--resume"]) == 2
    assert message.format(out / checkpoint.NAME) in capsys.readouterr().err
    assert contents(out) == before


def test_the_learning_rate_rises_then_falls():
    factor = learning_rate_factor(100)
    rates = [factor(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.03


def test_runs_are_compared(text, tmp_path, capsys):
    folders = []
    for name, seed in (("adamw", 0), ("adamw", 1), ("sgd", 0)):
        folders.append(tmp_path / f"{name}{seed}")
        train(text, folders[-1], f"--optimizer={name}", f"--seed={seed}")
    capsys.readouterr()
    assert compare_runs.main([*map(str, folders), "--out", str(tmp_path / "both")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0].strip() == "optimizer"
    assert sorted(line.split()[0] for line in lines[1:4]) == ["adamw", "adamw", "sgd"]
    assert (tmp_path / "both" / "comparison.png").read_bytes().startswith(PNG)


def test_only_finished_runs_are_compared(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        compare_runs.main([str(tmp_path), "--out", str(tmp_path / "both")])
    assert stopped.value.code == 2
    assert "no finished run" in capsys.readouterr().err
    assert not (tmp_path / "both").exists()
