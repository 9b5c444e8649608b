"""Stopping between two steps, not in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM instead of obeying it; a second one acts as it always did.

    The caller looks at the list when it can stop, and raises the signal again after the block.
    Signals reach the main thread only: elsewhere nothing is deferred.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def put_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        put_back()

    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        put_back()
