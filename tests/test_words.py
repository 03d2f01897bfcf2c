"""One word for each thing: the glossary, and words and phrases that are not used."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GLOSSARY = "docs/concepts.md"
SUFFIXES = {".py", ".pyi", ".md", ".cpp", ".h", ".cu", ".cuh", ".toml", ".sh"}

# Code and pages of the product; tests may quote what they refuse.
PRODUCT = (
    "kradagrad_ext/",
    "triton_kernels/",
    "csrc/",
    "docs/",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
)

# Names that say nothing about the thing, or English that delays the reader.
AVOIDED = (
    "own",
    "nows",
    "books",
    "tally",
    "dealt",
    "energy",
    "lies",
    "told",
    "made anew",
    "is none",
    "but for",
    "in whole",
    "as ever",
)


def glossary() -> dict[str, str]:
    """Return the word that is not used for each word of the glossary."""
    section = (ROOT / GLOSSARY).read_text().split("\n## Words\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert rows[0] == ["word", "meaning", "not"]
    return {word: avoided for word, _, avoided in rows[1:]}


def product_files() -> list[Path]:
    """Return the product's files, without the generated page and the glossary, which lists the words."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:  # an sdist has no git
        listed.stdout = "\n".join(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*"))
    names = [name for name in listed.stdout.splitlines() if name.startswith(PRODUCT)]
    assert len(names) > 150
    return [
        ROOT / name
        for name in names
        if Path(name).suffix in SUFFIXES and name not in ("docs/gpu-evidence.md", GLOSSARY)
        if (ROOT / name).exists()
    ]


def words_of(text: str) -> str:
    """Return the text in lower case with identifiers separated into words."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).replace("_", " ")
    return re.sub(r"\s+", " ", spaced).lower()


def contains(text: str, phrase: str) -> bool:
    """Return True if the text contains a word, also inside an identifier, or a phrase of prose.

    Code such as ``in whole.parts`` and ``is None`` is no prose.
    """
    if " " in phrase:
        return re.search(rf"(?<!\w){phrase}(?![\w.(])", re.sub(r"\s+", " ", text)) is not None
    return re.search(rf"(?<!\w){phrase}(?!\w)", words_of(text)) is not None


def test_the_glossary_is_short() -> None:
    assert 10 <= len(glossary()) <= 25
    assert len(set(glossary().values())) == len(glossary())


@pytest.mark.parametrize("phrase", [*glossary().values(), *AVOIDED])
def test_no_second_word_is_used(phrase: str) -> None:
    found = [
        path.relative_to(ROOT).as_posix() for path in product_files() if contains(path.read_text(), phrase)
    ]
    assert found == []


def test_words_are_found_in_identifiers_and_phrases_in_prose() -> None:
    assert contains("int own_rows;", "own")
    assert contains("kOwnRows", "own")
    assert not contains("class OwnedBatch: owner", "own")
    assert contains("where there\nis none", "is none")
    assert not contains("if x is None", "is none")


def test_no_two_classes_of_the_product_share_a_name() -> None:
    modules = [path for path in product_files() if path.suffix == ".py"]
    names = [name for path in modules for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE)]
    assert len(names) > 50
    assert [name for name, count in Counter(names).items() if count > 1] == []
