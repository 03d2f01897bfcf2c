"""Steps that are taken whole or not at all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import torch

BROKEN = (
    "KrADagrad: a step broke off after it had begun to change parameters and state: both must be loaded anew "
    "before the optimizer steps or is saved"
)


class WholeSteps:
    """Whether the last step was taken whole.

    What fails before a step has begun to change anything leaves all as it was. What fails later is told, and
    no step is taken from there.
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
        """All is whole again, since it was loaded."""
        self.is_broken = False

    @contextmanager
    def step(self) -> Iterator[Callable[[], None]]:
        """A step; what it gives is to be called before the first change.

        Signals that Python handles, such as Ctrl-C, wait for its end.

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
    """Make tensors that later steps can change; without a graph all the same."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Let handlers of SIGINT and SIGTERM run at the end, where they are Python's and run in this thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def later(number: int, _: FrameType | None) -> None:
        came.append(number)

    def deliver(number: int) -> None:
        if number in came:
            signal.raise_signal(signal.Signals(number))

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    ours = [number for number, handler in handlers.items() if callable(handler)]
    with ExitStack() as at_the_end:  # which does all of it, whatever a handler raises
        for number in ours:
            at_the_end.callback(deliver, number)
        for number in ours:
            at_the_end.callback(signal.signal, number, handlers[number])
            signal.signal(number, later)
        yield
