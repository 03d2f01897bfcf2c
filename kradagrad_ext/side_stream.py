"""A CUDA side stream: its kernels move memory while others compute."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@functools.cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class SideStream:
    """A stream for launches that may overlap with later launches of the current stream, until it is joined.

    On a CPU, or while `torch.compile` traces the step, there is no side stream and all launches run in order.
    Its kernels must not write memory that overlapping kernels read, nor read memory that they write.
    """

    def __init__(self, device: torch.device, wanted: bool) -> None:
        has_streams = device.type == "cuda" and not torch.compiler.is_compiling()
        self._device = device
        self._stream = _stream_of(device) if wanted and has_streams else None
        self._is_open = False

    @property
    def is_open(self) -> bool:
        """True if there are launches that the current stream has not waited for."""
        return self._is_open

    @contextmanager
    def launches(self) -> Iterator[None]:
        """Put launches on the side stream, which first waits for earlier ones of the current stream."""
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
        """Make the current stream wait for the launches, unless it has already."""
        if self._stream is not None and self._is_open:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._is_open = False
