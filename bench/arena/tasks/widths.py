"""One small transformer in four widths: does the best learning rate stay where it is?"""

from __future__ import annotations

from gpt.model import GPT
from torch import nn

from bench.arena.tasks.base import ArenaTask
from bench.arena.tasks.text import CONTEXT, LanguageTask, standard_library

LAYERS, HEAD = 2, 32
"""Layers, and the width of an attention head."""


class OfWidth(LanguageTask):
    """Two layers on the standard library's sources, with batches of eight windows."""

    steps, batch_size = 120, 8
    width: int

    def __init__(self) -> None:
        super().__init__(standard_library())

    def make_model(self) -> nn.Module:
        return GPT(CONTEXT, LAYERS, self.width, self.width // HEAD)


def task_of_width(width: int) -> type[ArenaTask]:
    return type(f"Width{width}", (OfWidth,), {"name": f"width {width}", "width": width})


WIDTHS: dict[str, type[ArenaTask]] = {task.name: task for task in map(task_of_width, (64, 128, 256, 512))}
