"""Draw the pictures of the pages as SVG: ``python docs/pictures.py [--record]``.

They go to build/pictures, or with ``--record`` to docs/images, which git tracks. Numbers come from
`kradagrad_ext.cost`. Pictures are 460 wide, so that their text can be read on a phone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

from kradagrad_ext.cost import StateBytes, estimate_cost
from kradagrad_ext.cost.models import llama

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 460
INK, PALE, LEFT, RIGHT, GREY = "#1f2937", "#e5e7eb", "#2563eb", "#d97706", "#9ca3af"
KINDS = {"moments, statistics": GREY, "factors": LEFT, "roots": RIGHT}
"""Colour of each kind of state in the picture of memory."""

BFLOAT16 = {"root_dtype": torch.bfloat16, "factor_dtype": torch.bfloat16}
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "root_dtype=bfloat16": {"root_dtype": torch.bfloat16},
    "and factor_dtype=bfloat16": BFLOAT16,
    "and packed=True": {**BFLOAT16, "packed": True},
    'and graft="rms"': {**BFLOAT16, "packed": True, "graft": "rms"},
    "precondition=False (as AdamW)": {"precondition": False},
}
"""Rows of the picture of memory; each option is added to those above it, except for the last."""

MODEL = llama("1.1b", 22, 2048, 5632, keys=256)


def svg(height: int, title: str, parts: Sequence[str]) -> str:
    """Return a picture on white, which a dark page needs, too."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'height="{height}" font-family="system-ui, sans-serif" font-size="14" fill="{INK}">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def rect(x: float, y: float, width: float, height: float, fill: str, stroke: str = INK) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{stroke}"/>'
    )


def text(x: float, y: float, content: str, anchor: str = "middle", style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {style}>{escape(content)}</text>'


def arrow(*points: tuple[float, float]) -> str:
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.5" marker-end="url(#tip)"/>'


def box(x: float, y: float, width: float, lines: Sequence[str], fill: str) -> str:
    """Return a box with its lines, of which the first is bold."""
    height = 14 + 18 * len(lines)
    bold = 'font-weight="600"'
    return "\n".join(
        [
            rect(x, y, width, height, fill),
            *(
                text(x + width / 2, y + 20 + 18 * i, line, style=bold if i == 0 else 'font-size="12.5"')
                for i, line in enumerate(lines)
            ),
        ]
    )


def blocks() -> str:
    """Draw a matrix in blocks, and the two roots of one of them."""
    sides, x0, y0 = ((72, 72, 40), (72, 72, 72, 24)), 24.0, 44.0
    parts = [text(x0, 28, "a weight matrix, cut into blocks", "start", 'font-weight="600"')]
    y = y0
    for i, height in enumerate(sides[0]):
        x = x0
        for j, width in enumerate(sides[1]):
            parts.append(rect(x, y, width, height, "#bbf7d0" if (i, j) == (0, 1) else PALE))
            x += width
        y += height
    parts += [
        text(x0 + 108, y0 + 41, "G"),
        text(x0 + 256, y0 + 60, "no block is longer", "start", 'font-size="12.5"'),
        text(x0 + 256, y0 + 78, "than block_size; the", "start", 'font-size="12.5"'),
        text(x0 + 256, y0 + 96, "last ones are shorter", "start", 'font-size="12.5"'),
        arrow((x0 + 108, y0 + 184), (x0 + 108, y0 + 214)),
        text(x0, y0 + 240, "each block, preconditioned on both sides", "start", 'font-weight="600"'),
    ]
    y = y0 + 258
    for x, fill, name in (
        (24.0, "#bfdbfe", "P left"),
        (152.0, "#bbf7d0", "G"),
        (280.0, "#fde68a", "P right"),
    ):
        parts += [rect(x, y, 88, 88, fill), text(x + 44, y + 49, name)]
    parts += [text(132, y + 49, "·"), text(260, y + 49, "·")]
    for x, name in ((68, "F left"), (324, "F right")):
        parts += [arrow((x, y + 122), (x, y + 94)), text(x, y + 140, name)]
    notes = (
        "P is a root of F Fᵀ, which follows the inverse of the running",
        "statistics: of G Gᵀ on the left, of Gᵀ G on the right.",
    )
    parts += [text(24, y + 172 + 18 * i, note, "start", 'font-size="12.5"') for i, note in enumerate(notes)]
    return svg(int(y + 172 + 18 * len(notes)), "A matrix in blocks, each with two factors", parts)


def step() -> str:
    """Draw the parts of a step and the data between them."""
    blue, amber, green = "#dbeafe", "#fef3c7", "#dcfce7"
    parts = [
        box(130, 16, 200, ["gradient G"], "#ffffff"),
        arrow((230, 48), (230, 72)),
        box(110, 74, 240, ["guard", "NaN skips the matrix, spikes shrink"], PALE),
        arrow((170, 124), (110, 124 + 32)),
        arrow((290, 124), (350, 124 + 32)),
        box(16, 158, 200, ["moments", "M: running mean of G", "V: of its squares"], green),
        box(244, 158, 200, ["factors, both sides", "F ← F R", "(P of the other side whitens G)"], blue),
        arrow((344, 226), (344, 258)),
        box(244, 260, 200, ["roots, when due", "P = (F Fᵀ)^(1/2), checked"], amber),
        arrow((116, 226), (116, 334), (150, 334)),
        arrow((344, 310), (344, 334), (312, 334)),
        text(106, 286, "M", "end"),
        box(152, 320, 158, ["product", "U = P left · M · P right"], PALE),
        arrow((230, 370), (230, 394)),
        box(110, 396, 240, ["length", "|U| becomes that of Adam's update"], PALE),
        arrow((230, 446), (230, 470)),
        box(110, 472, 240, ["write", "W ← W - lr (U + weight_decay W)"], "#ffffff"),
    ]
    return svg(540, "The parts of a step and the data between them", parts)


def memory_rows(device: str = "cuda") -> dict[str, dict[str, float]]:
    """Return the bytes of state a parameter of each kind, on a device, by recipe."""
    rows = {}
    for name, options in RECIPES.items():
        groups = [{"params": MODEL.shapes}, {"params": MODEL.plain_shapes, "precondition": False}]
        estimate = estimate_cost(groups, device=device, **options)
        state: StateBytes = estimate.most_state
        sizes = (state.moments + state.rest, state.factors, state.roots)
        rows[name] = {kind: size / estimate.parameters for kind, size in zip(KINDS, sizes, strict=True)}
    return rows


def memory() -> str:
    """Draw the bytes of state a parameter, by options."""
    rows = memory_rows()
    scale = 400 / max(sum(row.values()) for row in rows.values())
    parts = [text(16, 28, "bytes of state a parameter, on a GPU", "start", 'font-weight="600"')]
    x = 16.0
    for kind, colour in KINDS.items():
        parts += [rect(x, 42, 12, 12, colour, colour), text(x + 18, 53, kind, "start", 'font-size="12.5"')]
        x += 38 + 7 * len(kind)
    y = 72.0
    for name, row in rows.items():
        parts.append(text(16, y + 12, name, "start", 'font-size="12.5"'))
        x = 16.0
        for kind, colour in KINDS.items():
            parts.append(rect(x, y + 18, row[kind] * scale, 18, colour, colour))
            x += row[kind] * scale
        parts.append(text(x + 6, y + 32, f"{sum(row.values()):.1f}", "start"))
        y += 46
    note = "a Llama with 1.1 billion parameters; embeddings and head have no blocks"
    parts.append(text(16, y + 10, note, "start", 'font-size="11.5"'))
    return svg(int(y + 24), "Bytes of state a parameter, by options", parts)


PICTURES: dict[str, Callable[[], str]] = {"blocks": blocks, "step": step, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write to docs/images, which git tracks")
    folder = ROOT / ("docs/images" if parser.parse_args().record else "build/pictures")
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        path = folder / f"{name}.svg"
        path.write_text(draw())
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
