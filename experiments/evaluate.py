"""Restores a run and judges it on a split; the results go to RUN/evaluation/SPLIT.

python -m experiments.evaluate --workdir=RUN [--split=test] [--checkpoint=best|latest|STEP] [--data_dir=DATA]
"""

import pathlib

from absl import flags

from common import runtime
from common.evaluation.judge import judge
from experiments import launch

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
_SPLIT = flags.DEFINE_string('split', 'test', 'Split to judge on.')
_CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, latest, or a step.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Folder of prepared data sets. Default: the one trained from.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 0, 'Examples at a time; 0: as in training.', lower_bound=0)


def main() -> None:
    runtime.start()
    data_dir = pathlib.Path(_DATA_DIR.value) if _DATA_DIR.value else None
    directory, lines = judge(pathlib.Path(_WORKDIR.value), _SPLIT.value, _CHECKPOINT.value, data_dir, _BATCH_SIZE.value)
    print('\n'.join(lines))
    print(f'results: {directory}')


if __name__ == '__main__':
    launch.run(main)
