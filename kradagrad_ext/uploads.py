"""Uploads of small host tensors to a device without waiting for it."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

MOST_MASKS = 64
"""Largest number of masks that are kept, for sets of gradients that change between steps."""


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to a device, from page-locked memory: any other copy makes the host wait."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def is_capturing(device: torch.device) -> bool:
    """Return True if the device's current stream is being captured into a graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Masks:
    """Boolean masks on a device by their content; a cache of the most recently used."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: OrderedDict[tuple[bool, ...], Tensor] = OrderedDict()
        self._captured: dict[tuple[bool, ...], Tensor] = {}

    def __contains__(self, mask: tuple[bool, ...]) -> bool:
        return mask in self._kept

    def of(self, mask: tuple[bool, ...]) -> Tensor:
        """Return the mask as a tensor; one that a graph has captured is never freed."""
        tensor = self._kept.pop(mask, None)
        if tensor is None:
            tensor = upload(torch.tensor(mask, dtype=torch.bool, device="cpu"), self.device)
        self._kept[mask] = tensor
        if len(self._kept) > MOST_MASKS:
            self._kept.popitem(last=False)
        if is_capturing(self.device):
            self._captured[mask] = tensor
        return tensor
