"""What other processes may do to a training: ask it to end, or want its folder."""

import contextlib
import fcntl
import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from common.errors import UserError


@contextlib.contextmanager
def interruption() -> Iterator[list[int]]:
    """A list of signals, SIGINT (Ctrl-C) and SIGTERM, that ask the process to end; a second Ctrl-C ends it at once.

    Of several processes none may end alone, for the others would wait for it: the list stays empty, and all of them
    learn from `asked_of_all` what one was asked.
    """
    asked: list[int] = []
    together = jax.process_count() > 1

    def note(number: int, frame: Any) -> None:
        del frame
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        if together:
            signal.raise_signal(signal.SIGTERM)

    numbers = [signal.SIGINT] if together else [signal.SIGINT, signal.SIGTERM]  # jax itself waits for SIGTERM
    try:
        before = {number: signal.signal(number, note) for number in numbers}
    except ValueError:  # not the main thread, where no signal arrives
        yield asked
        return
    try:
        yield [] if together else asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def asked_of_all(boundary: int) -> bool:
    """Whether all of several processes are to end here, since one of them was asked to.

    All must call it with the same numbers, which go up by one: jax settles on the next that none has called with.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(boundary)


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
    is_ours = False
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f'another training is at work in {workdir}: give another --workdir, or wait') from error
        except OSError:
            pass  # a file system without locks
        is_ours = True
        yield
    finally:
        if is_ours:  # or it would vanish under the feet of whoever is at work there
            with contextlib.suppress(OSError):  # it holds something
                workdir.rmdir()
        os.close(folder)
