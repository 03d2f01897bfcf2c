"""A sharded optimizer as trainers use it: saved on one rank only, and sharded after its creation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from marks import slow_after
from torch import Tensor

from kradagrad_ext import KrADagrad


def consolidating_rank(rank: int, mode: str, folder: str) -> dict[str, Any]:
    """Write a checkpoint as trainers do, on the last rank only; return the parameters of the unbroken and the
    resumed run."""
    model = ranks.make_model()
    options = ranks.OPTIONS | ranks.shard(model, mode)
    optimizer = KrADagrad(model.parameters(), **options)
    messages = []
    for step in range(8):
        if step == 4:
            names = [name for name, _ in model.named_parameters()]
            weights = dict(zip(names, ranks.whole(model), strict=True))
            optimizer.consolidate_state_dict(to=1)
            if rank == 1:
                torch.save({"model": weights, "optimizer": optimizer.state_dict()}, f"{folder}/saved")
        ranks.backward(model, step)
        optimizer.step()
    unbroken = ranks.whole(model)
    saved = torch.load(f"{folder}/saved", weights_only=True)
    model = ranks.make_model()
    model.load_state_dict(saved["model"])
    options = ranks.OPTIONS | ranks.shard(model, mode)
    other = KrADagrad(model.parameters(), **options)
    other.load_state_dict(saved["optimizer"])
    for step in range(4, 8):
        ranks.backward(model, step)
        other.step()
    for refused in (
        lambda: torch.save(optimizer.state_dict(), io.BytesIO()),
        lambda: optimizer.consolidate_state_dict(to=2),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            refused()
        messages.append(str(caught.value))
    return {"unbroken": unbroken, "resumed": ranks.whole(model), "messages": messages}


@pytest.mark.parametrize("mode", slow_after(1, ["fsdp", "ddp"]))
def test_one_rank_saves_the_whole_state(mode: str, tmp_path: Path) -> None:
    """The same number of ranks resumes bit for bit, and one rank resumes to rounding. After another step the
    consolidated state is out of date, so saving is refused."""
    for result in ranks.launch(2, consolidating_rank, tmp_path, mode, str(tmp_path)):
        assert all(map(torch.equal, result["unbroken"], result["resumed"]))
        not_consolidated, no_rank = result["messages"]
        assert (
            "must be saved with torch.distributed.checkpoint, or after `consolidate_state_dict`"
            in not_consolidated
        )
        assert no_rank == "KrADagrad: `to` must be a rank in [0, 2), got 2"
    saved = torch.load(tmp_path / "saved", weights_only=True)
    model = ranks.make_model()
    model.load_state_dict(saved["model"])
    optimizer = KrADagrad(model.parameters(), **ranks.OPTIONS)
    optimizer.load_state_dict(saved["optimizer"])
    for step in range(4, 8):
        ranks.backward(model, step)
        optimizer.step()
    for ours, expected in zip(ranks.whole(model), result["unbroken"], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def exchanged_rank(rank: int) -> list[Tensor]:
    """Shard the model after the optimizer was created, and replace its parameters, as Accelerate does."""
    model = ranks.make_model()
    optimizer = KrADagrad(model.parameters(), **ranks.OPTIONS)
    optimizer.load_state_dict(optimizer.state_dict())
    ranks.shard(model, "fsdp")
    optimizer.param_groups[0]["params"] = list(model.parameters())
    for step in range(4):
        ranks.backward(model, step)
        optimizer.step()
    return ranks.whole(model)


def test_parameters_sharded_after_the_optimizer_was_created(tmp_path: Path) -> None:
    model = ranks.make_model()
    optimizer = KrADagrad(model.parameters(), **ranks.OPTIONS)
    for step in range(4):
        ranks.backward(model, step)
        optimizer.step()
    for ours, alone in zip(ranks.launch(2, exchanged_rank, tmp_path)[0], ranks.whole(model), strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-10, atol=1e-10)
