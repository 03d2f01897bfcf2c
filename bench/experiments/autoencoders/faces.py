"""Drawn faces: smooth pictures of 24 random numbers each, in place of photographs."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

SIDE = 25
"""Side of a picture, in pixels."""

SOFTNESS = 0.06
"""Width of an edge; a face is about 2 high."""

RANGES: dict[str, tuple[float, float]] = {
    "angle": (-math.pi / 2, math.pi / 2),
    "scale": (0.85, 1.25),
    "shift_x": (-0.15, 0.15),
    "shift_y": (-0.15, 0.15),
    "width": (0.62, 0.82),
    "skin": (0.5, 0.9),
    "light_x": (-0.35, 0.35),
    "light_y": (-0.2, 0.2),
    "background": (0.0, 0.8),
    "hair": (0.0, 0.5),
    "hairline": (-0.75, -0.4),
    "eye_x": (0.24, 0.36),
    "eye_y": (-0.25, -0.1),
    "eye_size": (0.06, 0.11),
    "eye_depth": (0.3, 0.7),
    "brow_y": (0.13, 0.24),
    "brow_slope": (-0.4, 0.4),
    "brow_depth": (0.0, 0.5),
    "nose_length": (0.15, 0.3),
    "nose_height": (0.0, 0.35),
    "mouth_y": (0.42, 0.6),
    "mouth_width": (0.15, 0.32),
    "mouth_curve": (-1.2, 1.2),
    "mouth_depth": (0.2, 0.6),
}
"""The numbers of a face, uniform between these limits; lengths in units of half a face's height."""


def blob(x: Tensor, y: Tensor, width: Tensor | float, height: Tensor | float) -> Tensor:
    """Return a spot of height 1 around zero with these standard deviations."""
    return torch.exp(-((x / width).square() + (y / height).square()) / 2)


def inside(signed: Tensor) -> Tensor:
    """Return 1 where a signed distance is positive and 0 where it is negative, with a soft edge."""
    return torch.sigmoid(signed / SOFTNESS)


def features(x: Tensor, y: Tensor, face: dict[str, Tensor]) -> Tensor:
    """Return what eyes, brows, nose and mouth add to the brightness of skin."""
    both = x.abs() - face["eye_x"]
    eyes = face["eye_depth"] * blob(both, y - face["eye_y"], 1.6 * face["eye_size"], face["eye_size"])
    height = y - face["eye_y"] + face["brow_y"] + face["brow_slope"] * both
    brows = face["brow_depth"] * blob(both, height, 0.14, 0.05)
    nose = face["nose_height"] * blob(x, y - 0.12, 0.07, face["nose_length"])
    lips = y - face["mouth_y"] + face["mouth_curve"] * x.square()
    mouth = face["mouth_depth"] * blob(x, lips, face["mouth_width"], 0.06)
    return nose - eyes - brows - mouth


def draw_faces(numbers: Tensor) -> Tensor:
    """Draw pictures ``[N, 25, 25]``, brightness about 0 to 1.

    Args:
        numbers: ``[N, 24]`` in [0, 1], the places of a face's numbers between their limits in `RANGES`.
    """
    columns = numbers.T[:, :, None, None]
    face = {
        name: low + (high - low) * place
        for (name, (low, high)), place in zip(RANGES.items(), columns, strict=True)
    }
    line = torch.linspace(-1, 1, SIDE)
    across, down = line[None, None, :] - face["shift_x"], line[None, :, None] - face["shift_y"]
    cosine, sine = face["angle"].cos() / face["scale"], face["angle"].sin() / face["scale"]
    x, y = cosine * across + sine * down, cosine * down - sine * across
    head = inside(1 - ((x / face["width"]).square() + y.square()).sqrt())
    crown = inside(1.08 - ((x / (1.12 * face["width"])).square() + y.square()).sqrt()) * inside(-0.1 - y)
    skin = face["skin"] + face["light_x"] * x + face["light_y"] * y + features(x, y, face)
    bald = inside(y - face["hairline"] - 0.25 * x.square())
    return torch.lerp(
        torch.lerp(face["background"], face["hair"], crown),
        torch.lerp(face["hair"], skin, bald),
        head,
    )


def random_faces(count: int, generator: Generator | None) -> Tensor:
    """Return pictures ``[count, 25, 25]`` of the generator's next faces."""
    return draw_faces(torch.rand(count, len(RANGES), generator=generator))
