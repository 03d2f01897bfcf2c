"""Byte-level language models: the example's transformer on two texts, and the fine-tuning of one."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from gpt.data import Text, load_text, validation_windows, windows
from gpt.model import GPT, next_byte_loss
from torch import Generator, Tensor, nn
from tqdm import tqdm

from bench.arena.tasks.base import ArenaTask, Batch, trainable
from bench.common import UNRECORDED

CONTEXT, BATCH = 128, 16
LAYERS, WIDTH, HEADS = 5, 128, 4
STRIDE = 4
"""Of the example's 256 validation windows, which take as long as ten steps, one in so many is used."""

TOPICS_HELD_OUT = 10
"""One of so many help topics is for validation."""


@cache
def standard_library() -> Text:
    """Return the sources of the Python standard library."""
    return load_text(None, CONTEXT)


@cache
def help_topics() -> Text:
    """Return the texts of Python's `help()`: a manual in English, about 0.7 MB, in every Python."""
    from pydoc_data.topics import topics

    texts = [topics[name].encode() for name in sorted(topics)]
    parts = [[text for i, text in enumerate(texts) if (i % TOPICS_HELD_OUT == 0) == held] for held in (0, 1)]
    train, validation = (torch.frombuffer(bytearray(b"\n".join(part)), dtype=torch.uint8) for part in parts)
    return Text(train, validation, digest="")


class LanguageTask(ArenaTask):
    """Windows of a text; the loss is in nats a byte."""

    ends = ("token_embedding.weight", "position_embedding.weight", "head.weight")
    batch_size: ClassVar[int] = BATCH

    def __init__(self, text: Text, stride: int = STRIDE) -> None:
        """Set the text; every `stride`-th of the example's validation windows is for validation."""
        self.text = text
        chunks = validation_windows(text.validation, CONTEXT)[::stride].split(4 * BATCH)
        self.validation = [(chunk,) for chunk in chunks]

    def make_model(self) -> nn.Module:
        return GPT(CONTEXT, LAYERS, WIDTH, HEADS)

    def batch(self, generator: Generator | None) -> Batch:
        last = len(self.text.train) - CONTEXT
        starts = torch.randint(last, (self.batch_size,), generator=generator)
        return (windows(self.text.train, starts, CONTEXT),)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return next_byte_loss(model, batch[0])


class CodeText(LanguageTask):
    """The example's transformer on the standard library's sources."""

    name, steps = "text", 200

    def __init__(self, stride: int = STRIDE) -> None:
        super().__init__(standard_library(), stride)


class ManualText(LanguageTask):
    """The example's transformer on the texts of Python's `help()`."""

    name, steps = "manual", 200

    def __init__(self) -> None:
        super().__init__(help_topics())


class LowRankLinear(nn.Module):
    """A frozen linear layer plus the product of two trained matrices: W x + up (down x)."""

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, frozen.in_features) / frozen.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + x @ self.down.T @ self.up.T


class LowRank(LanguageTask):
    """A transformer trained on the sources, whose layers get LoRA matrices that learn the manual."""

    name, steps = "lora", 200
    rank = 8
    base_steps = 400
    base_rate = 2e-3
    file = "lora_base.pt"

    def __init__(self, folder: Path = UNRECORDED / "arena") -> None:
        super().__init__(help_topics())
        path = folder / self.file
        if not path.exists():
            raise FileNotFoundError(f"{path}: LowRank.prepare trains the model that the task begins with")
        self.base = torch.load(path, weights_only=True)

    @classmethod
    def prepare(cls, folder: Path) -> None:
        """Train the first model with AdamW and store it, unless the folder has it."""
        path = folder / cls.file
        if path.exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        task = CodeText()
        model, batches = task.model(seed=0), task.batches(seed=0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=cls.base_rate, betas=(0.9, 0.99))
        for step in tqdm(range(cls.base_steps), f"{cls.name}: first model", leave=False, disable=None):
            optimizer.param_groups[0]["lr"] = cls.base_rate * min((step + 1) / 20, 1 - step / cls.base_steps)
            task.loss(model, next(batches)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        unfinished = path.with_suffix(f".{os.getpid()}")
        torch.save(model.state_dict(), unfinished)
        unfinished.replace(path)

    def make_model(self) -> nn.Module:
        model = GPT(CONTEXT, LAYERS, WIDTH, HEADS)
        model.load_state_dict(self.base)
        model.requires_grad_(False)
        for block in model.blocks:
            for owner, name in (
                (block.attention, "qkv"),
                (block.attention, "project"),
                (block, "expand"),
                (block, "project"),
            ):
                setattr(owner, name, LowRankLinear(getattr(owner, name), self.rank))
        assert all(name.endswith(("down", "up")) for name, _ in trainable(model))
        return model
