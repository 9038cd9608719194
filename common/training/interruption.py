"""Ctrl-C and SIGTERM as a request: the training saves a checkpoint and ends by itself."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def interruption() -> Iterator[list[int]]:
    """A list that fills when the process is asked to end; a second Ctrl-C ends it at once."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        del frame
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, where no signal arrives
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
