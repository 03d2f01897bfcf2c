"""A byte-level GPT: pre-norm transformer, causal attention, learned positions, untied head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 256
"""One token per byte value."""


class Attention(nn.Module):
    """Causal multi-head self-attention, ``[B, T, width] -> [B, T, width]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        # [B, T, 3 width] -> three of [B, heads, T, width / heads]
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.project(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """One pre-norm layer: attention, then a GELU MLP four times as wide; each adds to the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.project(F.gelu(self.expand(self.mlp_norm(x))))


class GPT(nn.Module):
    """Logits of the next byte: ``[B, T]`` int64 in 0..255, T <= context, to ``[B, T, 256]``."""

    def __init__(self, context: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.position_embedding = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self._initialize(layers)

    def _initialize(self, layers: int) -> None:
        """Initialise as GPT-2: N(0, 0.02), smaller for the two projections of a layer to keep the scale."""
        for name, p in self.named_parameters():
            if p.dim() >= 2:
                std = 0.02 / math.sqrt(2 * layers) if name.endswith("project.weight") else 0.02
                nn.init.normal_(p, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))


def next_byte_loss(network: nn.Module, windows: Tensor) -> Tensor:
    """Return the mean cross-entropy of ``[B, T + 1]`` windows in nats per byte by a GPT or its wrapper."""
    logits = network(windows[:, :-1]).flatten(0, 1)
    exact = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(exact), windows[:, 1:].flatten())
