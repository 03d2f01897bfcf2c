"""A mixture-of-experts transformer on the standard library's sources."""

from __future__ import annotations

import math

import torch
from gpt.model import GPT, Attention
from torch import Tensor, nn
from torch.nn import functional as F

from bench.arena.tasks.text import CONTEXT, HEADS, LanguageTask, standard_library

EXPERTS, CHOSEN = 4, 2
WIDTH, LAYERS = 96, 4


class Experts(nn.Module):
    """Two-layer networks, of which a router chooses some for each token: ``[tokens, width] -> the same``.

    Each weight is ``[experts, out, in]``: a batch of matrices.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, EXPERTS, bias=False)
        self.expand = nn.Parameter(0.02 * torch.randn(EXPERTS, 2 * width, width))
        self.project = nn.Parameter(0.02 / math.sqrt(2 * layers) * torch.randn(EXPERTS, width, 2 * width))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(CHOSEN)
        weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(x)
        for expert in range(EXPERTS):
            token, place = (chosen == expert).nonzero(as_tuple=True)
            hidden = F.gelu(x[token] @ self.expand[expert].T)
            y = y.index_add(0, token, weights[token, place, None] * (hidden @ self.project[expert].T))
        return y


class ExpertBlock(nn.Module):
    """One pre-norm layer: attention, then experts."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.attention_norm, self.experts_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.experts = Experts(width, layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.experts(self.experts_norm(x).flatten(0, 1)).view_as(x)


class MixtureOfExperts(LanguageTask):
    """Four experts a layer, of which every token uses two."""

    name, steps = "experts", 200

    def __init__(self) -> None:
        super().__init__(standard_library())

    def make_model(self) -> nn.Module:
        model = GPT(CONTEXT, 0, WIDTH, HEADS)
        model.blocks = nn.ModuleList(ExpertBlock(WIDTH, HEADS, LAYERS) for _ in range(LAYERS))
        for name, p in model.blocks.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        return model
