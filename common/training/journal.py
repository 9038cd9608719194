"""What a training tells: metrics.jsonl and TensorBoard for later; and the clock of its rates."""

import json
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX import SummaryWriter

from common.history import METRICS_FILE, read_history


class Journal:
    """Appends one JSON object a record to metrics.jsonl and the same scalars to TensorBoard."""

    def __init__(self, workdir: pathlib.Path, resumed_at: int, *, active: bool = True):
        """Records after step `resumed_at`, left by a run that was killed, are dropped; they will come again.

        TensorBoard's files are written anew from the others, for a process that is killed takes some with it that were
        on their way. Only the process with `active` writes.
        """
        self._path = workdir / METRICS_FILE
        self._board = None
        if active:
            kept = [record for record in read_history(workdir) if record['step'] <= resumed_at and resumed_at]
            partial = workdir / (METRICS_FILE + '.partial')
            partial.write_text(''.join(json.dumps(record) + '\n' for record in kept), encoding='utf-8')
            partial.replace(self._path)  # a kill or a full disk leaves the records as they were
            folder = workdir / 'tensorboard'
            shutil.rmtree(folder, ignore_errors=True)
            self._board = SummaryWriter(str(folder))
            for record in kept:
                _show(self._board, record)

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        if self._board is None:
            return
        record = {'step': step, 'time': time.time(), **record}
        with self._path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(record) + '\n')
        _show(self._board, record)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _show(board: SummaryWriter, record: Mapping[str, Any]) -> None:
    for name, value in record.items():
        if name not in ('step', 'time') and isinstance(value, int | float):
            board.add_scalar(name, value, record['step'], walltime=record.get('time'))


class Clock:
    """Seconds spent training, without evaluations and checkpoints; goes on where a resumed run left off."""

    def __init__(self, seconds: float = 0.0):
        self._before = seconds
        self._since: float | None = None

    def resume(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def pause(self) -> None:
        if self._since is not None:
            self._before, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        return self._before + (time.perf_counter() - self._since if self._since is not None else 0.0)


def duration_text(seconds: float) -> str:
    """65 -> '1:05', 3700 -> '1:01:40'."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'
