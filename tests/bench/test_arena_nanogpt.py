"""The script for modded-nanogpt's track at toy size, with shards that the test makes, on one rank and two."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from marks import slow_after

from bench.arena import nanogpt
from bench.arena.nanogpt import RATES, SEEDS, TOY, TrackGPT, TrackRun, next_runs

OPTIMIZERS = tuple(RATES)


def write_shard(path: Path, tokens: torch.Tensor) -> None:
    header = torch.zeros(nanogpt.HEADER, dtype=torch.int32)
    header[0], header[1], header[2] = nanogpt.MAGIC, nanogpt.VERSION, len(tokens)
    path.write_bytes(header.numpy().tobytes() + tokens.to(torch.uint16).numpy().tobytes())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder of shards of a predictable text: a counter with random digits."""
    folder = tmp_path / "data"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train_000001", 700), ("train_000002", 900), ("val_000000", 400)):
        tokens = torch.arange(count) * 7 % 50 + torch.randint(2, (count,), generator=generator)
        write_shard(folder / f"fineweb_{name}.bin", tokens)
    return folder


@pytest.fixture
def alone() -> Iterator[None]:
    nanogpt.start_ranks()
    yield
    dist.destroy_process_group()


def test_shards_are_read_in_order_and_shared_by_ranks(data: Path) -> None:
    files = sorted(data.glob("fineweb_train_*.bin"))
    whole = list(zip(range(5), nanogpt.batches(files, 128, 32, 0, 1), strict=False))
    shares = [list(zip(range(5), nanogpt.batches(files, 128, 32, rank, 2), strict=False)) for rank in (0, 1)]
    first = nanogpt.read_shard(files[0]).to(torch.int64)
    assert torch.equal(whole[0][1][0].flatten(), first[:128])
    assert torch.equal(whole[0][1][1].flatten(), first[1:129])
    assert torch.equal(whole[1][1][0].flatten(), first[128:256])
    for (_, (inputs, targets)), *halves in zip(whole, *shares, strict=True):
        assert inputs.shape == (4, 32)
        assert torch.equal(torch.cat([half[1][0] for half in halves]), inputs)
        assert torch.equal(torch.cat([half[1][1] for half in halves]), targets)
    with pytest.raises(ValueError, match="2 shards do not have 128 tokens for every step"):
        list(nanogpt.batches(files, 128, 32, 0, 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", "must begin with 20240520 and version 1"),
        (bytes(4 * 256), "must begin with 20240520 and version 1, got [0, 0]"),
        (None, "must have 800 bytes of tokens after its header, got 798"),
    ],
)
def test_a_file_that_is_no_shard_is_refused(data: Path, content: bytes | None, message: str) -> None:
    path = data / "fineweb_val_000000.bin"
    path.write_bytes(path.read_bytes()[:-2] if content is None else content)
    with pytest.raises(ValueError, match=r"fineweb_val_000000\.bin must") as caught:
        nanogpt.read_shard(path)
    assert message in str(caught.value)


def test_the_model_has_the_tracks_size_and_initial_loss() -> None:
    with torch.device("meta"):
        track = TrackGPT(nanogpt.Sizes())
    shapes = {name: tuple(p.shape) for name, p in track.named_parameters()}
    assert shapes["embed.weight"] == shapes["proj.weight"] == (50304, 768)
    assert shapes["blocks.11.expand.weight"] == (3072, 768)
    hidden = [shape for name, shape in shapes.items() if "blocks" in name and len(shape) == 2]
    assert sum(map(torch.Size.numel, map(torch.Size, hidden))) == 12 * 12 * 768**2
    torch.manual_seed(0)
    model = TrackGPT(TOY)
    tokens = torch.randint(256, (2, 32))
    assert model(tokens, tokens).item() / tokens.numel() == pytest.approx(math.log(256), rel=1e-5)


def test_positions_turn_half_of_a_head_and_only_differences_count() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16)
    turned = [nanogpt.rotate(one.expand(1, 8, 1, 16)) for one in (q, k)]
    products = turned[0][0, :, 0] @ turned[1][0, :, 0].T
    for offset in range(-3, 4):
        diagonal = products.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    assert products.diagonal(2)[0] != products.diagonal(3)[0]
    assert torch.equal(turned[0][..., 4:8], q[..., 4:8].expand(1, 8, 1, 4))


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_muon_makes_matrices_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    values = torch.linalg.svdvals(nanogpt.orthogonal(matrix))
    torch.testing.assert_close(values, torch.ones(8), rtol=0, atol=0.02)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(nanogpt.orthogonal(matrix), u @ v, rtol=0, atol=0.02)


def test_the_schedule() -> None:
    factors = [nanogpt.rate_factor(step, 100) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:31] == [1.0] * 26
    assert factors[31:] == pytest.approx([(1 - step / 100) / 0.7 for step in range(31, 100)])


def test_the_search_extends_edges_and_repeats_the_best() -> None:
    done: dict[TrackRun, dict[int, float]] = {}
    order = []
    while waiting := next_runs("adamw", 6, done):
        for run in waiting:
            done[run] = {6: -run.lr if run.lr < 0.2 else math.nan}
            order.append(run)
    assert [run.lr for run in order] == [*RATES["adamw"], 0.1, 0.3, *[0.1] * 5]
    assert [run.seed for run in order[7:]] == list(SEEDS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns(alone: None, data: Path, optimizer: str) -> None:
    run = TrackRun(optimizer, RATES[optimizer][2], 1, 6)
    trial = nanogpt.Trial(run, TOY, data, torch.device("cpu"))
    owned = [p for one in trial.optimizers for group in one.param_groups for p in group["params"]]
    assert sorted(map(id, owned)) == sorted(map(id, trial.model.parameters()))
    first = trial.validate()
    curve = trial.train()
    assert [step for step, _, _ in curve] == [3, 6]
    assert first == pytest.approx(math.log(256), rel=1e-3)
    assert curve[-1][1] < first - 0.1


@pytest.mark.parametrize("optimizer", slow_after(1, ["kradagrad", "muon"]))
def test_two_ranks_learn_what_one_learns(data: Path, tmp_path: Path, optimizer: str) -> None:
    """The whole search and its seeds end with the same losses; a second call adds nothing."""
    paths = [tmp_path / f"{ranks}.csv" for ranks in (1, 2)]
    commands = [
        ["--toy", "--steps", "3", "--data", str(data), "--csv", str(path), "--optimizer", optimizer]
        for path in paths
    ]
    assert nanogpt.main(commands[0]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*torchrun, nanogpt.__file__, *commands[1]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"| {optimizer} |" in done.stdout
    found = [nanogpt.stored(path) for path in paths]
    assert [sum(run.seed > 0 for run in runs) for runs in found] == [5, 5]
    common = found[0].keys() & found[1].keys()
    assert len(common) >= len(RATES[optimizer])
    for run in common:
        assert found[1][run][3] == pytest.approx(found[0][run][3], abs=2e-3)
    before = paths[0].read_text()
    assert nanogpt.main(commands[0]) == 0
    assert paths[0].read_text() == before


def test_the_report_states_the_tracks_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nanogpt.csv"
    rows = ["optimizer,lr,seed,steps,step,val_loss,seconds,ranks"]
    for seed, last in enumerate((3.27, 3.277, 3.279, 3.278)):
        rows += [f"muon,0.03,{seed},500,375,3.281,9,8", f"muon,0.03,{seed},500,500,{last},12,8"]
    path.write_text("\n".join(rows) + "\n")
    assert nanogpt.main(["--report", "--csv", str(path)]) == 0
    # Three seeds count: their mean is 3.278, and 0.002 * sqrt(3) = 0.0035 is below 0.004.
    assert "| muon | 0.03 | 3 | 3.27800 | 0.00100 | never |" in capsys.readouterr().out
    path.write_text(path.read_text().replace("3.279,", "3.276,"))
    nanogpt.main(["--report", "--csv", str(path)])
    assert "| muon | 0.03 | 3 | 3.27700 | 0.00100 | 500 |" in capsys.readouterr().out


def test_a_folder_without_shards_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        nanogpt.main(["--data", str(tmp_path)])
    assert "--data must be a folder with fineweb_train_*.bin" in capsys.readouterr().err
