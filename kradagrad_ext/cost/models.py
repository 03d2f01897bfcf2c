"""Shapes of the parameters of known models."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kradagrad_ext.blocking import Shape

SHAPE = re.compile(r"(\d+(?:x\d+)*)(?:\*(\d+))?")


@dataclass(frozen=True)
class Model:
    """Shapes of parameters to precondition, and of those left to the grafting method (embeddings, heads)."""

    name: str
    shapes: tuple[Shape, ...]
    plain_shapes: tuple[Shape, ...] = ()


def gpt(name: str, layers: int, width: int, context: int, vocabulary: int = 50257) -> Model:
    """Return a GPT-2 or GPT-3, with biases; the head is the embedding."""
    matrices = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
    vectors = ((3 * width,), (4 * width,), *((width,),) * 6)
    embeddings = ((vocabulary, width), (context, width))
    return Model(name, layers * (*matrices, *vectors) + ((width,),) * 2, embeddings)


def llama(
    name: str, layers: int, width: int, hidden: int, keys: int | None = None, vocabulary: int = 32000
) -> Model:
    """Return a Llama 2; the head is a separate matrix.

    Args:
        keys: rows of the projections to keys and values; fewer than `width` if queries are grouped.
    """
    projections = (*((width, width),) * 2, *((keys or width, width),) * 2)
    matrices = (*projections, *((hidden, width),) * 2, (width, hidden))
    norms = ((width,),) * 2
    return Model(name, layers * (*matrices, *norms) + ((width,),), ((vocabulary, width),) * 2)


MODELS = {
    "gpt2": gpt("gpt2", 12, 768, 1024),  # 124 M
    "1.3b": gpt("1.3b", 24, 2048, 2048),  # GPT-3 XL
    "7b": llama("7b", 32, 4096, 11008),  # Llama 7B
    "70b": llama("70b", 80, 8192, 28672, keys=1024),  # Llama 2 70B: 8 heads of keys for 64 of queries
}


def parse_shapes(text: str) -> Model:
    """Return the model of a text such as ``2304x768,768x768*12``: shapes, and the number of each.

    Raises:
        ValueError: a part is not a shape.
    """
    shapes: list[Shape] = []
    for part in text.split(","):
        match = SHAPE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"a shape must be like 2304x768 or 768x768*12, got {part!r}")
        shapes += [tuple(map(int, match[1].split("x")))] * int(match[2] or 1)
    return Model(text, tuple(shapes))
