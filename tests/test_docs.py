"""The pages of docs/: every page is listed, and names only what exists. `make docs` builds the site."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import kradagrad_ext
from kradagrad_ext import KrADagrad
from kradagrad_ext.config import STRUCTURAL
from kradagrad_ext.cost.__main__ import _parser
from kradagrad_ext.diagnostics import MEASURES
from kradagrad_ext.group_options import GROUP_DEFAULTS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))
CONSTRUCTOR = {
    name: parameter.default
    for name, parameter in inspect.signature(KrADagrad.__init__).parameters.items()
    if name not in ("self", "params", "group_options")
}
OPTIONS: dict[str, Any] = {**CONSTRUCTOR, **GROUP_DEFAULTS}


def text_of(page: str) -> str:
    return (DOCS / page).read_text()


def rows_of(text: str) -> Iterator[list[str]]:
    """Yield the cells of the rows of all tables, without the lines that head them."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        for row in table.splitlines()[2:]:
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip()[1:-1])]


def codes(text: str) -> list[str]:
    """Return the code in backticks of a text."""
    return [code.strip() for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def sections(text: str) -> dict[str, str]:
    """Return the text of every section by its heading."""
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1] for part in text.split("\n## ")[1:]}


def test_every_page_is_in_the_navigation_once() -> None:
    listed = re.findall(
        r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1], re.MULTILINE
    )
    assert sorted(listed) == sorted([*PAGES, "index.md"])  # index.md is README.md, see docs/site_hooks.py


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_one_title(page: str) -> None:
    without_code = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    assert text_of(page).startswith("# ")
    assert len(re.findall(r"^# ", without_code, re.MULTILINE)) == 1


def test_the_readme_leads_to_every_page_that_explains() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [page for page in PAGES if f"(docs/{page}" not in readme] == []


def test_the_page_of_options_has_every_option_with_its_default() -> None:
    rows = [
        row
        for row in rows_of(text_of("options.md").split("\n## Options of `KrADagrad`\n")[1])
        if len(row) == 4
    ]
    described = [(codes(option)[0], codes(default)[0]) for option, default, _, _ in rows]
    assert [name for name, _ in described[: len(CONSTRUCTOR)]] == list(CONSTRUCTOR)
    assert {name: ast.literal_eval(default) for name, default in described} == OPTIONS
    assert len(described) == len(OPTIONS)
    assert all(all(row) for row in rows)


def test_the_page_of_options_has_the_options_that_may_not_change() -> None:
    section = sections(text_of("options.md"))["What may change during training"]
    assert set(STRUCTURAL) == set(codes(section.split("; with")[0]))


def test_decisions_name_options_and_values_that_exist() -> None:
    section = sections(text_of("options.md"))["If you have this, choose that"]
    for _, choice, _ in rows_of(section):
        for code in codes(choice):
            assignment = re.fullmatch(r"(\w+)(=(.*))?", code)
            if assignment is None:
                continue
            name, _, value = assignment.groups()
            assert name in OPTIONS, code
            if value and value[0] in '"0123456789':
                KrADagrad([torch.nn.Parameter(torch.ones(2, 2))], **{name: ast.literal_eval(value)})


MIGRATION = sections(text_of("migration.md"))


@pytest.mark.parametrize("heading", [heading for heading in MIGRATION if heading.startswith("From ")])
def test_migration_names_options_that_exist(heading: str) -> None:
    rows = list(rows_of(MIGRATION[heading]))
    assert len(rows) >= 7
    for theirs, ours, conversion in rows:
        assert codes(theirs), theirs
        assert conversion
        assert set(codes(ours)) <= set(OPTIONS), ours


@pytest.mark.parametrize(
    ("heading", "optimizer"), [("From AdamW", torch.optim.AdamW), ("From Muon", torch.optim.Muon)]
)
def test_migration_has_every_option_of_torchs_optimizers(heading: str, optimizer: type) -> None:
    theirs = set(inspect.signature(optimizer).parameters) - {"params"}
    named = {
        re.split(r"\W", code)[0] for theirs_, _, _ in rows_of(MIGRATION[heading]) for code in codes(theirs_)
    }
    assert named == theirs


def test_weight_decay_keeps_its_product_with_the_rate() -> None:
    """Of a parameter without gradients to speak of, all shrink alike."""
    shrunk = []
    for make in (
        lambda p: torch.optim.AdamW([p], lr=3e-3, weight_decay=0.1),
        lambda p: torch.optim.Muon([p], lr=1.5e-3, weight_decay=0.2),
        lambda p: KrADagrad([p], lr=9e-3, weight_decay=0.1 / 3),
    ):
        p = torch.nn.Parameter(torch.ones(4, 4))
        optimizer = make(p)
        p.grad = torch.zeros_like(p)
        for _ in range(10):
            optimizer.step()
        shrunk.append(p.detach())
    torch.testing.assert_close(shrunk[0], torch.full((4, 4), (1 - 3e-4) ** 10))
    torch.testing.assert_close(shrunk[1], shrunk[0])
    torch.testing.assert_close(shrunk[2], shrunk[0])


def test_updates_of_graft_rms_are_as_long_as_those_of_muon() -> None:
    lengths = []
    for make in (
        lambda p: torch.optim.Muon([p], lr=1e-2, weight_decay=0, adjust_lr_fn="match_rms_adamw"),
        lambda p: KrADagrad([p], lr=1e-2, graft="rms"),
    ):
        p = torch.nn.Parameter(torch.zeros(48, 64))
        optimizer = make(p)
        p.grad = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        lengths.append(float(p.detach().square().mean().sqrt()))
    assert lengths[1] == pytest.approx(0.2 * 1e-2, rel=1e-3)
    assert lengths[0] == pytest.approx(lengths[1], rel=0.3)  # Muon's singular values are near 1, not at it


def message_of(node: ast.AST) -> str | None:
    """Return a string of the source, with ``...`` for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    return None


def messages() -> list[str]:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "kradagrad_ext").rglob("*.py")]
    return [text for tree in trees for node in ast.walk(tree) if (text := message_of(node))]


def test_messages_of_troubleshooting_are_those_of_the_code() -> None:
    """The first column of the tables headed `message` or `reason`; ``must be`` comes from one function."""
    known = messages()
    quoted = []
    for table in re.findall(r"(?:^\|.*\n)+", text_of("troubleshooting.md"), re.MULTILINE):
        if table.startswith(("| message ", "| reason ")):
            quoted += [row[0] for row in rows_of(table) if row[0].startswith("`")]
    assert len(quoted) >= 18
    for cell in quoted:
        found = re.match(r"(`+) ?(.*?) ?\1(?!`)", cell)
        assert found is not None, cell
        text = found[2]
        parts = [text, text.split(" must be ")[-1]]
        assert any(part in message for part in parts for message in known), text


def test_troubleshooting_names_measures_and_options_that_exist() -> None:
    text = text_of("troubleshooting.md")
    counters = sections(text)["Counters of NaN grow"]
    first = [codes(row[0])[0] for row in rows_of(counters)]
    assert set(first) <= set(MEASURES)
    assigned = {name for code in codes(text) for name in re.findall(r"^(\w+)=", code)}
    assert assigned - {"CXX", "KRADAGRAD_BUILD", "TRITON_INTERPRET"} <= set(OPTIONS)


def test_the_reference_has_every_public_name_and_every_option_of_the_command() -> None:
    text = text_of("api.md")
    entries = re.findall(r"^::: kradagrad_ext\.([\w.]+)$", text, re.MULTILINE)
    for entry in entries:
        path, _, name = f"kradagrad_ext.{entry}".rpartition(".")
        assert hasattr(importlib.import_module(path), name), entry
    assert set(kradagrad_ext.__all__) - {"__version__"} <= set(entries)
    table = next(part for part in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE) if "`--model`" in part)
    named = {code for row in rows_of(table) for code in codes(row[0])}
    assert named == {action.option_strings[-1] for action in _parser()._actions} - {"--help"}


def pictures() -> ModuleType:
    """Import docs/pictures.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["blocks", "step", "memory"])
def test_pictures_are_those_that_the_script_draws(name: str) -> None:
    module = pictures()
    assert set(module.PICTURES) == {path.stem for path in (DOCS / "images").glob("*.svg")}
    assert (DOCS / f"images/{name}.svg").read_text() == module.PICTURES[name]()


def test_the_picture_of_memory_and_the_table_have_the_same_numbers() -> None:
    section = sections(text_of("large-models.md"))["Memory"]
    shown = [tuple(map(float, row[1:])) for row in rows_of(section)]
    columns = []
    for device in ("cuda", "cpu"):
        *recipes, adam = pictures().memory_rows(device).values()
        columns += [
            [sum(row.values()) for row in recipes],
            [row["factors"] + row["roots"] for row in recipes],
        ]
        assert sum(adam.values()) == pytest.approx(8, abs=1e-3)
    assert [tuple(round(value, 1) for value in row) for row in zip(*columns, strict=True)] == shown
