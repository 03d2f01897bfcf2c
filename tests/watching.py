"""Dispatch modes that watch the operations of a step."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

LOOKING = (
    "_local_scalar_dense",
    "item",
    "equal",
    "is_nonzero",
    "nonzero",
    "unique",
    "masked_select",
    "_to_copy",
)


class NoLooking(TorchDispatchMode):
    """Mode that raises AssertionError if the host reads a value or copies a tensor to another device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        copies = name == "_to_copy" and (kwargs or {}).get("device") in (None, args[0].device)
        assert copies or name not in LOOKING, f"the host looks: {func}"
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Mode that counts the calls of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))
