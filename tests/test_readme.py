"""Every snippet of Python and every console of the README and the pages runs; links have targets."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from torch.distributed import checkpoint

from kradagrad_ext import KrADagrad, param_groups
from kradagrad_ext.cost.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "bench/README.md",
    *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md")),
]


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
@pytest.mark.parametrize("source", TRAINERS, ids=["transformers", "factory", "lightning", "accelerate"])
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


def stepped(**options: Any) -> dict[str, Any]:
    """Return what pages suppose: a model, an optimizer that has taken a step, its loss, and modules."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    optimizer = KrADagrad(model.parameters(), **options)
    loss = model(torch.ones(1, 8)).square().sum()
    loss.backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "loss": loss.detach(), "torch": torch}


def mixtral() -> dict[str, Any]:
    """Return the model of the table on the page of large models."""
    from transformers import MixtralConfig, MixtralForCausalLM  # slow to import

    sizes = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)
    config = MixtralConfig(vocab_size=50, num_key_value_heads=2, num_local_experts=3, **sizes)
    model = MixtralForCausalLM(config)
    optimizer = KrADagrad(param_groups(model, show=None), capturable=True)
    return {"model": model, "optimizer": optimizer, "param_groups": param_groups, "torch": torch}


PAGES_THAT_RUN: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/diagnostics.md": lambda: stepped() | {"batches": range(120)},
    "docs/large-models.md": mixtral,
    "docs/migration.md": lambda: {k: v for k, v in stepped().items() if k != "optimizer"},
    "docs/start.md": stepped,
    "docs/troubleshooting.md": stepped,
}
"""Pages whose snippets run one after another in one process, with what they suppose."""

ON_RANKS = {"docs/distributed.md", "docs/large-models.md"}
ELSEWHERE = {"README.md", "docs/trainers.md"}
LONG = "STEPS = 300\n"


def test_every_page_with_snippets_runs() -> None:
    with_snippets = {page for page in PAGES if snippets(page)}
    assert with_snippets == {*PAGES_THAT_RUN, *ON_RANKS, *ELSEWHERE}


# TensorBoard's use of NumPy, and of protocol buffers.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
@pytest.mark.parametrize("page", PAGES_THAT_RUN)
def test_the_snippets_of_a_page_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after another, as a reader would; the training of `start.md` is shortened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    space = PAGES_THAT_RUN[page]()
    sources = [source for source in snippets(page) if source not in {SETUP, *LARGE}]
    assert sources
    for source in sources:
        exec(source.replace(LONG, "STEPS = 4\n"), space)
    printed = capsys.readouterr().out
    if page == "docs/diagnostics.md":
        assert "condition" in printed
        assert "kradagrad/group0/condition" in space["metrics"]
        assert list(tmp_path.glob("runs/mine/events*"))
    if page == "docs/large-models.md":
        assert [group["lr"] for group in space["groups"] if group["name"] == "matrices"] == [2e-2]
        assert callable(space["step"])
    if page == "docs/troubleshooting.md":
        assert "kradagrad/group0/non_finite_gradients" in printed


@pytest.mark.slow
def test_the_first_example_wins(capsys: pytest.CaptureFixture[str]) -> None:
    """The training of `start.md` ends far below AdamW, each at its best rate."""
    (source,) = [source for source in snippets("docs/start.md") if LONG in source]
    space: dict[str, Any] = {}
    exec(source, space)
    assert min(space["losses"]["kradagrad"]) < min(space["losses"]["adamw"]) / 2
    printed = capsys.readouterr().out
    page = (ROOT / "docs/start.md").read_text()
    assert printed.splitlines()[0] in page


def run_distributed(rank: int, folder: str) -> list[bool]:
    """Run each snippet of the page on many ranks with a sharded optimizer that has taken a step."""
    os.chdir(folder)
    trained = []
    for source in snippets("docs/distributed.md"):
        torch.manual_seed(0)
        space = stepped(process_group=dist.group.WORLD)
        space |= {"KrADagrad": KrADagrad, "dist": dist, "checkpoint": checkpoint}
        space |= {"folder": "checkpoint", "file": "state.pt"}
        exec(source, space)
        before = [p.detach().clone() for p in space["model"].parameters()]
        space["model"](torch.ones(1, 8)).square().sum().backward()
        space["optimizer"].step()
        trained.append(not all(map(torch.equal, before, space["model"].parameters())))
    return [*trained, Path("state.pt").exists(), Path("checkpoint").is_dir()]


def test_snippets_on_many_ranks_run_on_two(tmp_path: Path) -> None:
    for rank in ranks.launch(2, run_distributed, tmp_path, str(tmp_path)):
        assert rank == [True] * (len(snippets("docs/distributed.md")) + 2)


CONSOLES = [
    (page, command, output)
    for page in PAGES
    for block in re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for command, output in re.findall(r"^\$ (.*)\n((?:[^$].*\n|\n)*)", block, re.MULTILINE)
]


def test_consoles_are_found() -> None:
    assert {page for page, _, _ in CONSOLES} == {"docs/large-models.md", "docs/troubleshooting.md"}


@pytest.mark.parametrize(("page", "command", "output"), CONSOLES, ids=[command for _, command, _ in CONSOLES])
def test_a_console_shows_what_its_command_prints(page: str, command: str, output: str) -> None:
    """The output follows exactly, unless the page leaves it out."""
    interpreter, *arguments = shlex.split(command)
    assert interpreter == "python"
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    assert result.stdout.strip()
    if output:
        assert result.stdout == output


def test_shell_snippets_name_what_there_is() -> None:
    """Commands that install are not run; their modules exist."""
    commands = [
        line
        for page in PAGES
        for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        for line in block.splitlines()
    ]
    assert commands
    for command in commands:
        words = shlex.split(command)
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), command
        else:
            assert command == "pip install ."


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
