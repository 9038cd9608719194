"""How long a training takes to begin: from the start of its process to the end of its first step."""

import os
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Sequence

from common.errors import UserError
from common.history import METRICS_FILE

POLL_SECONDS = 0.01
# What a training tells on its way, by the first word of the line.
STAGES = ('data', 'model', 'compiled')


def first_step(train: Sequence[str]) -> dict[str, dict[str, float]]:
    """Seconds until the first step's metrics are on disk, with a 'cold' and then with a 'warm' compile cache.

    `train` is the command that starts a training, without its --workdir. What the system keeps in memory of files is
    warm both times.

    Returns:
      For 'cold' and 'warm' the seconds since the command until 'data' was ready to be read, the 'model' initialised or
      restored, its step 'compiled' and the first 'step' done.

    Raises:
      UserError: where the training ends before.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder)
        return {cache: _first_step(train, home / cache, home / 'compiled') for cache in ('cold', 'warm')}


def _first_step(train: Sequence[str], workdir: pathlib.Path, compiled: pathlib.Path) -> dict[str, float]:
    command = [*train, f'--workdir={workdir}', '--config.log_every=1steps']
    environment = {**os.environ, 'TRIPTYCH_COMPILE_CACHE': str(compiled), 'PYTHONUNBUFFERED': '1'}
    metrics = workdir / METRICS_FILE
    reached: dict[str, float] = {}
    with tempfile.NamedTemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        begin = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr)
        told = pathlib.Path(stdout.name)
        try:
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None:
                    stderr.seek(0)
                    raise UserError(f'the training ended before its first step: {stderr.read().decode().strip()}')
                time.sleep(POLL_SECONDS)
                for line in told.read_text(errors='replace').splitlines():
                    stage = line.partition(' ')[0].rstrip(':')
                    if stage in STAGES:
                        reached.setdefault(stage, time.perf_counter() - begin)
            return reached | {'step': time.perf_counter() - begin}
        finally:
            process.kill()
            process.wait()
