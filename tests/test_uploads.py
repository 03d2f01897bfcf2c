"""Uploads from the host to a device, each of which is made once."""

from __future__ import annotations

import pytest
import torch

from kradagrad_ext import uploads
from kradagrad_ext.uploads import MOST_MASKS, Masks

CPU = torch.device("cpu")


def numbered(number: int) -> tuple[bool, ...]:
    return tuple(bool(number >> bit & 1) for bit in range(8))


def test_a_mask_is_made_once_while_others_come_and_go() -> None:
    masks = Masks(CPU)
    first, second = masks.of((True, False)), masks.of((True, True))
    for _ in range(3):
        assert masks.of((True, False)) is first
        assert masks.of((True, True)) is second
    assert first.tolist() == [True, False]
    assert second.tolist() == [True, True]


def test_the_masks_used_last_are_kept() -> None:
    masks = Masks(CPU)
    first = masks.of(numbered(0))
    for number in range(1, MOST_MASKS):
        masks.of(numbered(number))
    assert masks.of(numbered(0)) is first
    masks.of(numbered(MOST_MASKS))
    assert numbered(0) in masks
    assert numbered(1) not in masks
    assert masks.of(numbered(1)).tolist() == list(numbered(1))


def test_a_mask_that_a_graph_was_captured_with_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = Masks(CPU)
    used = masks.of(numbered(0))
    monkeypatch.setattr(uploads, "is_capturing", lambda _: True)
    assert masks.of(numbered(0)) is used
    monkeypatch.setattr(uploads, "is_capturing", lambda _: False)
    address = used.data_ptr()
    del used
    others = [masks.of(numbered(number)) for number in range(1, 2 * MOST_MASKS)]
    assert address not in {other.data_ptr() for other in others}, "its memory was given to another"
