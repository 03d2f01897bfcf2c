"""Every Python snippet of the README runs, those on large models on two ranks; links have targets."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import transformers
from torch import nn

from kradagrad_ext.cost.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def snippets(heading: str) -> list[str]:
    """Return the Python blocks of one section."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


TRAINERS = [source for source in snippets("Large models") if "Trainer(" in source]
LARGE = [source for source in snippets("Large models") if source not in TRAINERS]


def test_the_first_example_prints_diagnostics(capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = snippets("Use")
    exec(source, {})
    assert "non_finite_gradients" in capsys.readouterr().out


def make_model() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 60, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, **tokens))


def make_batches(count: int) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(0, 60, (count, 4, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": batch, "labels": batch} for batch in tokens]


def run_rank(rank: int, folder: str) -> list[list[float]]:
    """Run every snippet after the first one, which all need, then train; return the losses of each.

    Graphs run as they are traced; test_compile.py checks Inductor's code.
    """
    os.chdir(folder)
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    losses = []
    for source in LARGE:
        space: dict[str, Any] = {"torch": torch, "model": make_model(), "batches": make_batches(3)}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(LARGE[0], space)
            if source is not LARGE[0]:
                exec(source, space)
        losses.append(train(space["model"], space["optimizer"], space.get("step")))
    return losses


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: Any) -> list[float]:
    losses = []
    for number, batch in enumerate(make_batches(1) * 6):
        loss = model(**batch).loss
        loss.backward()
        (step if step and number else optimizer.step)()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_snippets_on_large_models_train_on_two_ranks(tmp_path: Path) -> None:
    first, second = ranks.launch(2, run_rank, tmp_path, str(tmp_path))
    assert first == second
    assert len(first) == len(LARGE) >= 8
    for source, losses in zip(LARGE, first, strict=True):
        assert losses[-1] < losses[0] - 0.3, source


# Warnings of Lightning about workers, logging and its calls into torch, and of Trainer about pinned memory.
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.* is deprecated")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.parametrize("source", TRAINERS, ids=["transformers", "lightning"])
def test_snippets_on_trainers_train(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (batch,) = make_batches(1)
    examples = [{key: value[0] for key, value in batch.items()}] * 16
    space: dict[str, Any] = {"torch": torch, "model": make_model(), "dataset": examples}
    space["loader"] = torch.utils.data.DataLoader(examples, 4)
    space["arguments"] = transformers.TrainingArguments("out", max_steps=20, use_cpu=True, report_to="none")

    def loss() -> float:
        with torch.no_grad():
            return float(space["model"](**{key: value[:1] for key, value in batch.items()}).loss)

    before = loss()
    exec(LARGE[0], space)
    exec(source, space)
    assert loss() < before - 1


def test_the_cost_of_a_large_model_is_printed() -> None:
    (command,) = re.findall(r"^python -m kradagrad_ext\.(.*)$", README, re.MULTILINE)
    module, *arguments = shlex.split(command)
    assert module == "cost"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(arguments)
    assert "PREDICTED, not measured" in out.getvalue()


@pytest.mark.parametrize(
    "page", ["README.md", *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md"))]
)
def test_links_have_targets(page: str) -> None:
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        assert target.startswith("http") or (folder / target).exists(), target


def test_every_test_that_the_table_of_situations_names_is_there() -> None:
    table = (ROOT / "docs/robustness.md").read_text()
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", table)
    assert len(named) == table.count("tests/test_")
    for path, name in named:
        assert f"\ndef {name}(" in (ROOT / path).read_text(), (path, name)
    rows = [line for line in table.splitlines() if line.startswith("| ") and "::" in line]
    assert len(rows) >= 40
