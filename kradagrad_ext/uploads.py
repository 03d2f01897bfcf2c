"""Small tensors that the host makes, put on a device without waiting for it."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

MOST_MASKS = 64
"""Masks that are kept, for gradients that come and go."""


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A copy of a host tensor on a device. From page-locked memory, as any other copy makes the host wait."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def is_capturing(device: torch.device) -> bool:
    """Whether the device's current stream is being captured into a graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Masks:
    """Boolean masks on a device by their content, the last used of them kept."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: OrderedDict[tuple[bool, ...], Tensor] = OrderedDict()
        self._captured: dict[tuple[bool, ...], Tensor] = {}

    def __contains__(self, mask: tuple[bool, ...]) -> bool:
        return mask in self._kept

    def of(self, mask: tuple[bool, ...]) -> Tensor:
        """The mask as a tensor; one that a graph was captured with stays where it is for ever."""
        found = self._kept.pop(mask, None)
        if found is None:
            found = upload(torch.tensor(mask, dtype=torch.bool, device="cpu"), self.device)
        self._kept[mask] = found
        if len(self._kept) > MOST_MASKS:
            self._kept.popitem(last=False)
        if is_capturing(self.device):
            self._captured[mask] = found
        return found
