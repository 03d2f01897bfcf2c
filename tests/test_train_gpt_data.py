"""The text of examples/train_gpt.py: the files read, their split, and the windows drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from gpt import data
from gpt.errors import UsageError


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Write a folder of 20 files."""
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(f"This is the text of file {i}.\n" * 10)
    return tmp_path


def test_files_go_to_one_side_only(text):
    (text / "copy.txt").write_bytes((text / "09.txt").read_bytes())
    (text / "binary").write_bytes(b"\0\1\2")
    split = data.load_text(str(text), context=16)
    train_bytes, validation_bytes = (bytes(part.tolist()) for part in (split.train, split.validation))
    for path in text.glob("*.txt"):
        content = path.read_bytes()
        assert (content in train_bytes) != (content in validation_bytes), path
    assert validation_bytes == b"\n".join((text / f"{i}.txt").read_bytes() for i in ("09", "19"))
    assert b"\0" not in train_bytes


def test_a_single_file_is_cut(text):
    content = (text / "00.txt").read_bytes()
    split = data.load_text(str(text / "00.txt"), context=16)
    assert bytes(split.train.tolist() + split.validation.tolist()) == content
    assert len(split.validation) == len(content) // 10


def test_equal_seeds_draw_equal_windows():
    content = torch.arange(200, dtype=torch.uint8)
    first, same, other = (data.Batches(content, 4, 16, seed) for seed in (1, 1, 2))
    for _ in range(3):
        drawn = first.next()
        assert torch.equal(drawn, same.next())
        assert not torch.equal(drawn, other.next())
        assert torch.equal(drawn - drawn[:, :1], torch.arange(17).expand(4, 17))


def test_validation_windows_span_the_text():
    held_out = data.validation_windows(torch.arange(40, dtype=torch.uint8), context=16)
    assert held_out.shape == (2, 17)
    assert (held_out[0, 0], held_out[-1, -1]) == (0, 39)


def test_the_standard_library_is_found():
    split = data.load_text(None, context=128)
    assert len(split.train) > 5 * len(split.validation) > 1_000_000
    assert split.digest == data.load_text(None, context=128).digest
    assert b"def " in bytes(split.validation[:100_000].tolist())


def test_a_folder_without_text_is_reported(tmp_path):
    (tmp_path / "binary").write_bytes(b"\0")
    with pytest.raises(UsageError, match="no text found"):
        data.load_text(str(tmp_path), context=16)
