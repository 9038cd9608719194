"""Restores a run and applies it to files of your own.

python -m experiments.predict --workdir=RUN --inputs='photos/*.jpg' --output=predictions.csv
"""

import glob
import pathlib

from absl import flags

from common import runtime
from common.errors import DataError
from common.evaluation.judge import predict
from common.evaluation.restore import restore
from experiments import launch

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
_INPUTS = flags.DEFINE_list('inputs', None, "Files, or patterns in quotes: 'photos/*.jpg'.", required=True)
_OUTPUT = flags.DEFINE_string('output', 'predictions.csv', 'Table to write.')
_CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, latest, or a step.')


def main() -> None:
    paths = [pathlib.Path(path) for pattern in _INPUTS.value for path in sorted(glob.glob(pattern, recursive=True))]
    if not paths:
        raise DataError(f'no file matches --inputs={",".join(_INPUTS.value)}')
    runtime.start()
    run, output = restore(_WORKDIR.value, _CHECKPOINT.value), pathlib.Path(_OUTPUT.value)
    split = run.task.read_inputs(paths)
    run.task.write_predictions(predict(run, split), split, output)
    print(f'{len(split)} predictions: {output}')


if __name__ == '__main__':
    launch.run(main)
