"""examples/train_gpt.py on several ranks: training, resumed runs, and refused checkpoints."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpt_runs import STEPS, arguments, flip, foreign, make_text, put, rewrite, rows, truncate
from marks import slow
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import train_gpt
from gpt import checkpoint
from gpt.optimizers import NAMES
from gpt.ranks import MODES

TESTS = Path(__file__).resolve().parent
LARGE_MODELS = (TESTS.parent / "docs/large-models.md").read_text()
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""Environment of the ranks, of which four run on any machine."""
ROUNDING = {"rtol": 1e-7, "atol": 1e-7}
"""Tolerances of float64 over these few steps."""
BFLOAT16 = {"rtol": 0.0, "atol": 1e-3}
"""Tolerances of the losses under Muon, which orthogonalizes in bfloat16 whatever its parameters are."""

pytestmark = [
    slow,  # processes of torchrun by the dozen
    # dcp_to_torch_save reads all ranks' files in one process, and warns of it.
    pytest.mark.filterwarnings(
        "ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning"
    ),
]


@pytest.fixture(autouse=True)
def as_the_ranks() -> Iterator[None]:
    """Use one thread in this process, as in the ranks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return make_text(tmp_path / "text")


Launch = Callable[[int | None, list[dict[str, Any]]], Any]


@pytest.fixture(scope="module")
def launch() -> Iterator[Launch]:
    """A function that runs command lines by gpt_ranks.py, on a number of ranks or (None) in one process."""
    command = [sys.executable, str(TESTS / "gpt_ranks.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:

        def ask(world: int | None, runs: list[dict[str, Any]]) -> Any:
            patience = threading.Timer(240, os.killpg, (process.pid, signal.SIGKILL))
            patience.start()
            try:
                process.stdin.write(json.dumps({"world": world, "runs": runs}) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            finally:
                patience.cancel()
            assert answer, "ranks hung, or their launcher died"
            return json.loads(answer)

        yield ask


def ends(answer: list[list[dict[str, Any]]] | str) -> list[tuple[dict[str, Any], ...]]:
    """Return the end of each run on each rank."""
    assert isinstance(answer, list), answer
    return list(zip(*answer, strict=True))


def new(text: Path, out: Path, *options: str, **more: Any) -> dict[str, Any]:
    return {"arguments": arguments(text, out, "--batch=4", "--dtype=float64", *options), **more}


def resume(out: Path, *options: str, **more: Any) -> dict[str, Any]:
    return {"arguments": [f"--out={out}", "--resume", *options], **more}


def losses(out: Path) -> torch.Tensor:
    """Return the losses ``[steps, 2]`` of training, and of validation or 0."""
    logged = [[float(row["train_loss"]), float(row["val_loss"] or 0)] for row in rows(out)]
    return torch.tensor(logged, dtype=torch.float64)


def saved(out: Path) -> dict[str, Any]:
    """Return all tensors of the checkpoint that the ranks left in `out`, by their whole names."""
    whole = out / "whole.pt"
    dcp_to_torch_save(out / (out / checkpoint.POINTER).read_text(), whole)
    return dict(flat(torch.load(whole, weights_only=True)))


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def assert_same(one: Path, other: Path, **tolerances: float) -> None:
    """Compare losses, model and optimizer, bit for bit if there are no tolerances."""
    tolerances = tolerances or {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(losses(one), losses(other), **tolerances)
    torch.testing.assert_close(saved(one), saved(other), **tolerances)


def test_ranks_learn_what_one_process_does(launch: Launch, text: Path, tmp_path: Path) -> None:
    runs = [(optimizer, mode) for optimizer in NAMES for mode in MODES]
    requests = [
        new(text, tmp_path / "-".join(run), f"--optimizer={run[0]}", f"--parallel={run[1]}") for run in runs
    ]
    for (optimizer, mode), (first, second) in zip(runs, ends(launch(2, requests)), strict=True):
        assert second == {"status": 0, "out": "", "err": ""}  # one rank speaks for all
        result = json.loads(first["out"])
        assert [result[key] for key in ("optimizer", "world_size", "parallel")] == [optimizer, 2, mode]
        assert (tmp_path / f"{optimizer}-{mode}" / "loss.png").exists()
    for optimizer in NAMES:
        alone = tmp_path / optimizer
        assert train_gpt.main(new(text, alone, f"--optimizer={optimizer}")["arguments"]) == 0
        model = {f"model.{key}": value for key, value in checkpoint.load(alone)["model"].items()}
        for out in (tmp_path / f"{optimizer}-{mode}" for mode in MODES):
            if optimizer == "muon":
                torch.testing.assert_close(losses(out), losses(alone), **BFLOAT16)
                continue
            torch.testing.assert_close(losses(out), losses(alone), **ROUNDING)
            learned = saved(out)
            torch.testing.assert_close({key: learned[key] for key in model}, model, **ROUNDING)


def test_a_stopped_run_goes_on_on_any_ranks(launch: Launch, text: Path, tmp_path: Path) -> None:
    whole = [new(text, tmp_path / mode, f"--parallel={mode}") for mode in MODES]
    # The signal of one rank stops both.
    stopped = [new(text, tmp_path / f"{mode}-stopped", f"--parallel={mode}", stop=[1, 9]) for mode in MODES]
    for first, second in ends(launch(2, whole + stopped))[len(whole) :]:
        assert first["status"] == second["status"] == 128 + signal.SIGTERM
        assert "Stopped after step 9" in first["err"]
        assert "--nproc-per-node=2" in first["err"]
        assert second["err"] == ""
    for world in (1, 2, 4):
        runs = {tmp_path / f"{a}-{b}-{world}": (a, b) for a in MODES for b in MODES}
        for out, (mode, _) in runs.items():
            shutil.copytree(tmp_path / f"{mode}-stopped", out)
        requests = [resume(out, f"--parallel={mode}") for out, (_, mode) in runs.items()]
        for outcome in ends(launch(world, requests)):
            assert [rank["status"] for rank in outcome] == [0] * world, outcome[0]["err"]
        for out, (mode, went_on) in runs.items():
            same_layout = world == 2 and mode == went_on
            assert_same(out, tmp_path / mode, **({} if same_layout else ROUNDING))


def test_a_signal_to_torchrun_stops_the_ranks_which_say_how_to_go_on(text: Path, tmp_path: Path) -> None:
    """The command is that of docs/large-models.md."""
    out = tmp_path / "run"
    seldom = ("--eval-every=150", "--checkpoint-every=150")
    (its_arguments,) = re.findall(r"^torchrun (.*)$", LARGE_MODELS, re.MULTILINE)
    command = [sys.executable, "-m", "torch.distributed.run", *shlex.split(its_arguments)]
    command += arguments(text, out, "--optimizer=adamw", *seldom, steps=150)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    with subprocess.Popen(command, cwd=TESTS.parent, **pipes) as process:
        deadline = time.monotonic() + 120
        while not ((out / "log.csv").exists() and len(rows(out)) > 8) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert output == ""
    assert f"Stopped after step {len(rows(out))} and saved" in errors
    (go_on,) = (line for line in errors.splitlines() if line.endswith("--resume"))
    finished = subprocess.run(shlex.split(go_on), cwd=TESTS.parent, timeout=120, **pipes)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1])["steps"] == len(rows(out)) == 150


def test_a_kill_while_ranks_save_leaves_the_last_checkpoint(
    launch: Launch, text: Path, tmp_path: Path
) -> None:
    # In the middle of a tensor; in the middle of run.pt; in the write of the pointer, after the folder's.
    kills = {"tensor": [1, 12, "save", 3], "run": [0, 12, "fsync", 3], "pointer": [0, 12, "fsync", 6]}
    for name, kill in kills.items():
        answer = launch(2, [new(text, tmp_path / name, "--parallel=fsdp", kill=kill)])
        assert isinstance(answer, str), answer  # the other rank ends, too
        left = {path.name for path in (tmp_path / name).glob("checkpoint*")}
        half = "checkpoint-12" if name == "pointer" else "checkpoint.tmp-12"
        assert left >= {"checkpoint-6", half}, left
        assert (tmp_path / name / checkpoint.POINTER).read_text() == "checkpoint-6"
    requests = [
        new(text, tmp_path / "whole", "--parallel=fsdp"),
        *(resume(tmp_path / name) for name in kills),
    ]
    for outcome in ends(launch(2, requests)):
        assert [rank["status"] for rank in outcome] == [0, 0], outcome[0]["err"]
    for name in kills:
        assert_same(tmp_path / name, tmp_path / "whole")
        left = sorted(path.name for path in (tmp_path / name).glob("checkpoint*"))
        assert left == [f"checkpoint-{STEPS}", checkpoint.POINTER]


def test_a_kill_while_one_process_saves_leaves_the_last_checkpoint(
    launch: Launch, text: Path, tmp_path: Path
) -> None:
    assert train_gpt.main(new(text, tmp_path / "whole")["arguments"]) == 0
    for kill in ([0, 12, "save", 1], [0, 12, "fsync", 1]):  # half is written; all, under another name
        out = tmp_path / kill[2]
        answer = launch(None, [new(text, out, kill=kill)])
        assert isinstance(answer, str), answer
        assert (out / f"{checkpoint.NAME}.tmp").stat().st_size > 0
        assert len(checkpoint.load(out)["log"]) == 6
        assert train_gpt.main(resume(out)["arguments"]) == 0
        torch.testing.assert_close(losses(out), losses(tmp_path / "whole"), rtol=0.0, atol=0.0)
        model, whole = (checkpoint.load(folder)["model"] for folder in (out, tmp_path / "whole"))
        torch.testing.assert_close(model, whole, rtol=0.0, atol=0.0)


DAMAGES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("checkpoint-6/__1_0.distcp", truncate, "cannot read {file}"),
    ("checkpoint-6/__1_0.distcp", flip, "cannot read {file}"),
    ("checkpoint-6/__0_0.distcp", Path.unlink, "cannot read {file}"),
    ("checkpoint-6/.metadata", truncate, "cannot read {file}"),
    ("checkpoint-6/.metadata", flip, "cannot read {file}"),
    ("checkpoint-6/.metadata", Path.unlink, "cannot read {file}"),
    ("checkpoint-6/run.pt", truncate, "cannot read {file}"),
    ("checkpoint-6/run.pt", put(b"no checkpoint"), "cannot read {file}"),
    ("checkpoint-6/run.pt", foreign, "{file} is no checkpoint of this program: it lacks `options`"),
    ("checkpoint-6/run.pt", rewrite("log", [(3,)]), "`log` of {file} does not fit this run"),
    ("checkpoint-6/run.pt", rewrite("param_groups", []), "`param_groups` of {file} does not fit this run"),
    ("checkpoint-6/run.pt", rewrite("options", 5), "`options` of the checkpoint in {out} must be a dict"),
    # As of a run with another model, and with another optimizer.
    ("checkpoint-6/run.pt", rewrite("options", width=8), "`model.token_embedding.weight` must be"),
    ("checkpoint-6/run.pt", rewrite("options", optimizer="sgd"), "{out}/checkpoint-6 does not fit this run"),
    ("checkpoint.current", put(b"../../somewhere"), "{file} must name a folder checkpoint-STEP"),
    ("checkpoint.current", put(b"checkpoint-7"), "cannot read {out}/checkpoint-7/run.pt"),
    ("checkpoint.current", Path.unlink, "no checkpoint in {out}"),
]  # fmt: skip


def test_ranks_refuse_a_bad_checkpoint_together(launch: Launch, text: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    launch(2, [new(text, good, "--parallel=fsdp", stop=[0, 6])])
    requests, messages = [], []
    for i, (name, damage, message) in enumerate(DAMAGES):
        out = tmp_path / f"bad-{i}"
        shutil.copytree(good, out)
        damage(out / name)
        requests.append(resume(out))
        messages.append(message.format(file=out / name, out=out))
    requests += [resume(good, "--steps=20"), new(text, good), new(text, tmp_path / "odd", "--batch=3")]
    messages += ["--steps 14, got 20", "unfinished run", "--batch must be divisible by the 2 ranks, got 3"]
    for message, (first, second) in zip(messages, ends(launch(2, requests)), strict=True):
        assert second == {"status": 2, "out": "", "err": ""}
        assert (first["status"], first["out"]) == (2, "")
        assert message in first["err"]
