"""What other processes may do to a training: ask it to end, or want its folder."""

import contextlib
import fcntl
import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import jax

from common.errors import UserError


@contextlib.contextmanager
def interruption() -> Iterator[list[int]]:
    """A list of signals, SIGINT (Ctrl-C) and SIGTERM, that ask the process to end; a second Ctrl-C ends it at once."""
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


@contextlib.contextmanager
def alone(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps the folder, made where it is not there, for this process's training; of several processes for the first.

    Raises:
      UserError: if another training has it, or it can be no folder.
    """
    if jax.process_index():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        folder = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise UserError(f'{workdir} cannot be a folder ({error.strerror}): give another --workdir') from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f'another training is at work in {workdir}: give another --workdir, or wait') from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(folder)
        with contextlib.suppress(OSError):  # it holds something
            workdir.rmdir()
