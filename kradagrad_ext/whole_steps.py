"""Steps that are completed or change nothing; a step that breaks off in between makes later ones raise."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import torch

BROKEN = (
    "KrADagrad: a step broke off after it had begun to change parameters and state: both must be loaded "
    "again before the optimizer steps or is saved"
)


class WholeSteps:
    """State of the last step: completed or broken off.

    A failure before the first change of a step leaves everything as it was. A later failure raises, and every
    further step is refused until parameters and state are loaded again.
    """

    def __init__(self) -> None:
        self.is_broken = False

    def _begin(self) -> None:
        self.is_broken = True

    def check(self) -> None:
        """Raise RuntimeError if a step has broken off."""
        if self.is_broken:
            raise RuntimeError(BROKEN)

    def mend(self) -> None:
        """Allow steps again, after a state dict was loaded."""
        self.is_broken = False

    @contextmanager
    def step(self) -> Iterator[Callable[[], None]]:
        """Run a step; it must call the yielded function before its first change.

        Signals that Python handles, such as Ctrl-C, are deferred to its end.

        Raises:
            RuntimeError: the step failed after its first change; the cause is the error itself.
        """
        self.check()
        with deferred_signals(), outside_inference_mode():
            try:
                yield self._begin
            except Exception as error:
                if self.is_broken:
                    raise RuntimeError(BROKEN) from error
                raise
            self.is_broken = False


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Leave inference mode, so that later steps can change the tensors created here; keep autograd off."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Defer SIGINT and SIGTERM to the end, if their handlers are Python's and this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def later(number: int, _: FrameType | None) -> None:
        received.append(number)

    def deliver(number: int) -> None:
        if number in received:
            signal.raise_signal(signal.Signals(number))

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    deferred = [number for number, handler in handlers.items() if callable(handler)]
    with ExitStack() as at_the_end:  # runs all callbacks, even if a handler raises
        for number in deferred:
            at_the_end.callback(deliver, number)
        for number in deferred:
            at_the_end.callback(signal.signal, number, handlers[number])
            signal.signal(number, later)
        yield
