"""The snippets of the README and of the pages on large models and trainers run; links have targets."""

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

from kradagrad_ext.cost.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def snippets(page: str, heading: str | None = None) -> list[str]:
    """Return the Python blocks of a page, or of one of its sections."""
    text = (ROOT / page).read_text()
    if heading is not None:
        text = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


SETUP, *LARGE = snippets("docs/large-models.md", "In a few lines")
SETUP_OF_TRAINERS, *TRAINERS = snippets("docs/trainers.md")


def test_the_first_lines_make_an_optimizer(capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = snippets("README.md")
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    model(torch.ones(1, 8)).sum().backward()
    before = [p.clone() for p in model.parameters()]
    exec(source, {"model": model})
    assert not all(map(torch.equal, before, model.parameters()))
    assert "matrices" in capsys.readouterr().out


def run_rank(rank: int, folder: str) -> list[list[float]]:
    """Run every snippet after the first one, which all need, then train; return the losses of each.

    Graphs run as they are traced; test_compile.py checks Inductor's code.
    """
    os.chdir(folder)
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    losses = []
    for source in LARGE:
        torch.manual_seed(0)
        space: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(SETUP, space)
            exec(source, space)
        losses.append(train(space))
    return losses


def train(space: dict[str, Any]) -> list[float]:
    losses = []
    model, optimizer, step = space["model"], space["optimizer"], space.get("step")
    for number, batch in enumerate(space["batches"][:1] * 6):
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
@pytest.mark.parametrize("source", TRAINERS, ids=["transformers", "lightning", "accelerate"])
def test_snippets_on_trainers_train(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    space: dict[str, Any] = {}
    exec(SETUP_OF_TRAINERS, space)

    def loss() -> float:
        with torch.no_grad():
            rows = torch.stack([example["input_ids"] for example in space["dataset"]])
            return float(space["model"](input_ids=rows, labels=rows).loss)

    before = loss()
    exec(source, space)
    assert loss() < before - 1


def test_the_cost_of_a_large_model_is_printed() -> None:
    (command,) = re.findall(r"`python -m kradagrad_ext\.(cost .*?)`", README)
    module, *arguments = shlex.split(command)
    assert module == "cost"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(arguments)
    assert "PREDICTED, not measured" in out.getvalue()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "bench/README.md",
    *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md")),
]


@pytest.mark.parametrize("page", PAGES)
def test_links_have_targets(page: str) -> None:
    """Every link names a file that exists, and a heading of it if it has an anchor."""
    source = ROOT / page
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", source.read_text()):
        if target.startswith("http"):
            continue
        file = source.parent / target if target else source
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), (target, anchor)


def test_every_test_that_the_table_of_situations_names_is_there() -> None:
    table = (ROOT / "docs/robustness.md").read_text()
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", table)
    assert len(named) == table.count("tests/test_")
    for path, name in named:
        assert f"\ndef {name}(" in (ROOT / path).read_text(), (path, name)
    rows = [line for line in table.splitlines() if line.startswith("| ") and "::" in line]
    assert len(rows) >= 40
