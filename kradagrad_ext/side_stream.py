"""A side stream of CUDA: kernels that move memory while others compute."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@functools.cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class SideStream:
    """Launches that may run at the same time as later ones of the current stream, until it waits for them.

    On a CPU, or where `torch.compile` traces the step, there is none and everything runs in order. What is
    launched on it must neither write what runs at the same time reads, nor read what that writes.
    """

    def __init__(self, device: torch.device, wanted: bool) -> None:
        has_streams = device.type == "cuda" and not torch.compiler.is_compiling()
        self._device = device
        self._stream = _stream_of(device) if wanted and has_streams else None
        self._is_open = False

    @property
    def is_open(self) -> bool:
        """Whether there are launches that nobody has waited for."""
        return self._is_open

    @contextmanager
    def launches(self) -> Iterator[None]:
        """Puts launches on the stream, which waits for what came before."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._is_open = True
        try:
            with torch.cuda.stream(self._stream):
                yield
        except BaseException:
            self.join()
            raise

    def join(self) -> None:
        """Makes the current stream wait for the launches, if it has not yet."""
        if self._stream is not None and self._is_open:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._is_open = False
