"""timm's factory takes the optimizer by its registered name; timm needs torchvision."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from kradagrad_ext import KrADagrad, param_groups

timm = pytest.importorskip("timm", reason="pip install timm, beside a torchvision that fits torch")

PAGE = Path(__file__).resolve().parent.parent / "docs/trainers.md"


def test_the_snippet_of_the_page_creates_the_optimizer() -> None:
    """It takes the steps of an optimizer that was made without timm."""
    section = PAGE.read_text().split("\n## timm\n")[1]
    (snippet,) = re.findall(r"(?:^    .*\n|^\n(?=    ))+", section, re.MULTILINE)
    models = []
    for by_factory in (True, False):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
        space = dict(model=model, KrADagrad=KrADagrad, param_groups=param_groups)
        if by_factory:
            exec("\n".join(line.strip() for line in snippet.splitlines()), space)
        optimizer = space["optimizer"] if by_factory else KrADagrad(param_groups(model, show=None), lr=1e-2)
        assert type(optimizer) is KrADagrad
        for step in range(4):
            images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
            torch.nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
            optimizer.step()
            optimizer.zero_grad()
        models.append(model)
    assert all(map(torch.equal, *(model.parameters() for model in models)))
