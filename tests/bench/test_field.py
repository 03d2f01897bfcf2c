"""The bench against the field: its cases, and a race of small workloads."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

pytest.importorskip("heavyball")
pytest.importorskip("pytorch_optimizer")

from bench.steps import baselines, field
from bench.steps.baselines import Contender, race
from bench.workload import Workload, gpt2, tiny

SMALL = Workload("small", ((96, 64), (64, 32)))


def test_workloads_repeat_their_gradients() -> None:
    assert tiny(6).shapes == ((8, 8), (8, 16), (16, 8), (16, 16), (8, 8), (8, 16))
    assert gpt2(2).elements == 2 * gpt2().elements
    once, again, next_step = SMALL.gradients(1), SMALL.gradients(1), SMALL.gradients(2)
    assert all(map(torch.equal, once, again))
    assert not any(map(torch.equal, once, next_step))
    assert [tuple(p.shape) for p in SMALL.parameters()] == [tuple(g.shape) for g in once]


def test_whole_dims_are_left_out_where_a_refresh_takes_minutes() -> None:
    names = {one.name for one in field.FieldCase(gpt2(), 1, 64).contenders()}
    large = {one.name for one in field.FieldCase(field.LARGE, 1, 64).contenders()}
    assert names - large == {"SOAP whole dims"}
    assert {"KL-SOAP blocks", "KL-Shampoo blocks", "KrADagrad default", "AdamW fused"} <= large


def test_blocks_have_the_size_of_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    case = field.FieldCase(SMALL, 1, 32)
    ours = next(one for one in case.contenders() if one.name == "KrADagrad default")
    ours.start()
    assert ours.optimizer.param_groups[0]["block_size"] == 32
    assert ours.blocks == SMALL.elements // 32**2
    assert [tuple(p.shape) for p in ours.params] == list(SMALL.shapes)


def test_a_race_of_tiny_parameters_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every optimizer of the field steps parameters of this size; each gets two rows of the CSV."""
    written = tmp_path / "benchmarks.csv"
    monkeypatch.setenv("KRADAGRAD_BENCH_CSV", str(written))
    monkeypatch.setitem(field.WORKLOADS, "tiny", tiny(8))
    threads = torch.get_num_threads()
    try:
        field.main(["--only", "tiny", "--threads", "1", "--steps", "3", "--warmup", "1"])
    finally:
        torch.set_num_threads(threads)
    with written.open(newline="") as file:
        rows = list(csv.DictReader(file))
    optimizers = {row["op"] for row in rows}
    assert len(rows) == 2 * len(optimizers) == 2 * len(field.labels())
    assert {row["shape"] for row in rows} == {"8 tiny"}
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 8 tiny | 1 | - |")]
    assert len(table) == 1
    assert all(float(cell) > 0 for cell in table[0].strip("| ").split(" | ")[3:])


def test_a_slow_optimizer_steps_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its seconds an optimizer takes one step that counts, and its mean says how many it took."""
    monkeypatch.setattr(baselines, "tqdm", lambda steps, *names, **options: steps)
    fast, slow = (Contender(name, "torch", torch.optim.SGD, workload=SMALL) for name in ("fast", "slow"))
    seconds = iter(range(0, 10_000, 1))
    monkeypatch.setattr(baselines.time, "perf_counter", lambda: next(seconds))
    race([fast], warmup=1, steps=4)
    race([slow], warmup=1, steps=4, limit=3)
    assert (len(fast.seconds), len(slow.seconds)) == (4, 1)
    assert field.note(fast, 4) == ""
    assert field.note(slow, 4) == " (1 steps)"
