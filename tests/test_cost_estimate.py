"""Estimates of work, bytes and times, against counts by hand; the table and the command line."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kradagrad_ext import estimate_cost
from kradagrad_ext.blocking import blocking_of, group_by_shape
from kradagrad_ext.cost.__main__ import main
from kradagrad_ext.cost.models import MODELS
from kradagrad_ext.cost.parameters import make_config
from kradagrad_ext.cost.time_model import TRAINING_MFU
from kradagrad_ext.cost.time_model.gpus import BANDWIDTH_FRACTION, GPUS

pytestmark = pytest.mark.filterwarnings("ignore:KrADagrad. `max_factor_dim` should be")


def planned_flops(shapes: list[tuple[int, ...]], refine: int, **options: Any) -> tuple[int, int]:
    """Return the flops of updates without damping, and those of products."""
    config = make_config(**options)
    groups = group_by_shape([blocking_of(shape, config) for shape in shapes])
    return sum(group.update_flops(refine) for group in groups), sum(group.product_flops for group in groups)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((600, 300), {}),
        ((40, 16, 24), {"merge_dims": False}),
        ((90, 20), {"max_factor_dim": 50}),
        ((50,), {"precondition_1d": True}),
    ],
)
def test_flops_are_those_of_the_plan(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """Updates of the factors count by their share of steps; with `factor_decay` 1 there is no damping."""
    options = {"block_size": 128, "refine": 3, "factor_decay": 1, "coupling": "none", **options}
    estimate = estimate_cost([shape], **options).ranks[0].kernels.flops
    updates, products = planned_flops([shape], **options)
    assert estimate == pytest.approx(updates + products)
    seldom = estimate_cost([shape], factor_every=4, **options).ranks[0].kernels.flops
    assert seldom == pytest.approx(updates / 4 + products)


def test_flops_of_a_square_block_by_hand() -> None:
    """A side takes 7 b^3 at refine 2: B 2, H 1, the polynomial 2, F R 2; coupling 2 more, damping 1.

    The product takes 4 b^3. Damping enters once a refresh, or with every third update if roots take turns.
    """
    options = {"refine": 2, "root_every": 5}
    for coupling, each in (("none", 7), ("kl", 9)):
        for root_method, damped in (("polar", 1 / 3), ("eigh", 1 / 5)):
            estimate = estimate_cost([(64, 64)], coupling=coupling, root_method=root_method, **options)
            assert estimate.ranks[0].kernels.flops == pytest.approx(64**3 * (2 * (each + damped) + 4))


@pytest.mark.parametrize(
    ("exponent", "method", "flops"),
    [
        (0.5, "polar", 8 * 4 + 1 + 2),
        (0.25, "polar", 8 * 4 + 1 + 8 * 4 + 3),
        (1 / 3, "eigh", 1 + 3 + 9),
    ],
)
def test_roots_by_hand(exponent: float, method: str, flops: float) -> None:
    """A polar step takes 1 + 1 + 2, one of its square root 4, F Q^T 1; an eigendecomposition 9 and 1; X and
    powers of P for the residual."""
    options = {"exponent": exponent, "root_method": method, "root_every": 5}
    estimate = estimate_cost([(128, 128)], **options).ranks[0].roots.flops
    assert estimate == pytest.approx(2 * 128**3 * flops / 5)


def test_bytes_and_time_of_moments_by_hand() -> None:
    """A vector has the bytes of its guard, moments and write; its time is bytes over bandwidth."""
    (rank,) = estimate_cost([(1000,)], nesterov=False).ranks
    size = 1000 * (4 + (4 + 8 + 8) + (2 * 4 + 8)) + 4 * (2 * 9 + 10)
    assert (rank.kernels.bytes, rank.kernels.flops) == (size, 0)
    for gpu, time in rank.kernels.milliseconds.items():
        assert time == pytest.approx(1e3 * size / (BANDWIDTH_FRACTION * 1e9 * GPUS[gpu].hbm))


def test_packed_triangles_are_unpacked() -> None:
    """Packed roots are unpacked on every step: they save state and cost traffic."""
    whole, packed = (estimate_cost([(256, 256)], block_size=256, packed=p).ranks[0] for p in (False, True))
    each = 256**2 + 256 * 257 // 2
    assert packed.kernels.bytes - whole.kernels.bytes == 2 * 4 * each
    assert packed.state.roots == whole.state.roots * 257 / 512
    assert packed.state.factors == whole.state.factors
    assert estimate_cost([(256, 256)], packed=True, device="cpu").ranks[0].state.factors == packed.state.roots
    assert packed.kernels.flops == whole.kernels.flops


@pytest.mark.parametrize("block_size", [128, 256])
def test_no_later_step_of_a_large_model_takes_much_longer_than_the_mean(block_size: int) -> None:
    """Roots take turns; damping, which only some steps have, enters on all with `capturable`. The first steps
    compute more roots."""
    model = MODELS["1.3b"]
    groups = [{"params": model.shapes}, {"params": model.plain_shapes, "precondition": False}]
    mean, longest = (
        estimate_cost(groups, block_size=block_size, capturable=capturable).ranks[0]
        for capturable in (False, True)
    )
    for gpu in mean.kernels.milliseconds:
        assert mean.milliseconds(gpu) < longest.milliseconds(gpu) < 1.1 * mean.milliseconds(gpu)


@pytest.mark.parametrize(("options", "most"), [({}, 45), ({"root_every": 1}, 90)])
def test_a_step_of_a_large_model_on_an_h100(options: dict[str, Any], most: float) -> None:
    """Milliseconds, predicted from the counted work of the kernels."""
    model = MODELS["1.3b"]
    groups = [{"params": model.shapes}, {"params": model.plain_shapes, "precondition": False}]
    assert 0.8 * most < estimate_cost(groups, **options).ranks[0].milliseconds("H100") < most


def test_share_of_a_training_step() -> None:
    estimate = estimate_cost([(512, 512)], world_size=2, tokens=1000)
    for gpu in ("A100", "H100", "B200"):
        trained = 1e3 * 6 * 512**2 * 1000 / (TRAINING_MFU * 1e12 * GPUS[gpu].bf16) / 2
        assert estimate.training_milliseconds(gpu) == pytest.approx(trained)
        slowest = max(rank.milliseconds(gpu) for rank in estimate.ranks)
        assert estimate.share(gpu) == pytest.approx(slowest / trained)
        assert f"{100 * estimate.share(gpu):.1f}%" in str(estimate)


def test_a_table_says_that_times_are_predicted() -> None:
    text = str(estimate_cost([(1024, 1024)], root_dtype=torch.bfloat16))
    assert "PREDICTED, not measured" in text
    rows = dict(line.split(maxsplit=1) for line in text.splitlines() if line.startswith(("state", "  ")))
    assert rows["state"].split() == ["21.0", "MB", "21.0", "MB"]
    assert rows["roots"].split() == ["4.19", "MB", "4.19", "MB"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "kradagrad_ext.cost", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_command_line() -> None:
    """The module that the package imports runs without a warning; a known model has its parameters."""
    done = run("--model", "7b", "--world-size", "64", "--dtype", "bfloat16", "--packed", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    estimate = json.loads(done.stdout)
    model = MODELS["7b"]
    assert estimate["parameters"] == sum(map(math.prod, (*model.shapes, *model.plain_shapes)))
    assert (estimate["world_size"], estimate["tokens"]) == (64, 64 * 1024)
    # An embedding has only moments of every element in float32, and scalars.
    assert estimate["state_bytes"]["mean"]["moments"] == 8 * estimate["parameters"] / 64


def test_command_line_options(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--shapes 96x64*2,64 --world-size 2 --replicated --block-size 32 --max-factor-dim 80"
    more = "--root-every 4 --root-dtype bfloat16 --packed --dtype bfloat16 --tokens 4096 --graft rms"
    stored = "--factor-dtype bfloat16 --device cpu"
    main([*arguments.split(), *more.split(), *stored.split()])
    estimate = estimate_cost(
        [(96, 64), (96, 64), (64,)], world_size=2, replicated=True, block_size=32, max_factor_dim=80,
        root_every=4, root_dtype=torch.bfloat16, packed=True, dtype=torch.bfloat16, tokens=4096, graft="rms",
        factor_dtype=torch.bfloat16, device="cpu",
    )  # fmt: skip
    assert capsys.readouterr().out == f"{estimate}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--world-size 0", "argument --world-size: must be an integer >= 1, got '0'"),
        ("--block-size many", "argument --block-size: must be an integer >= 1, got 'many'"),
        ("--shapes 2304x", "argument --shapes: a shape must be like 2304x768 or 768x768*12, got '2304x'"),
        ("--shapes 0x4", "`model` must have parameters with elements"),
        ("--model 8b", "argument --model: invalid choice: '8b'"),
        ("--dtype float16", "argument --dtype: invalid choice"),
        ("--model 7b --shapes 2x2", "argument --shapes: not allowed with argument --model"),
    ],
)
def test_command_line_errors(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())
    assert message in capsys.readouterr().err


def test_docs_show_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parent.parent / "docs/large-models.md").read_text()
    ((arguments, shown),) = re.findall(
        r"^\$ python -m kradagrad_ext\.cost (.*)\n([^`]*)```", text, re.MULTILINE
    )
    main(arguments.split())
    assert capsys.readouterr().out == shown
