"""Restores a run and judges it on a split; the results, report.html among them, go to RUN/evaluation/SPLIT.

Those of another checkpoint than the best go to RUN/evaluation/SPLIT-latest, or SPLIT-500 for step 500. Of several
runs, --workdir=A,B,C, the predictions are averaged; the results go to A/evaluation/SPLIT-ensemble-of-3.

With --against=OTHER, prints by how much RUN is better or worse than OTHER on the same examples, and nothing else.

python -m experiments.evaluate --workdir=RUN[,RUN...] [--split=test] [--checkpoint=best|latest|STEP]
                               [--data_dir=DATA] [--views=flip|ten_crop|dihedral] [--walk_forward=K]
                               [--against=OTHER[,OTHER...]]
"""

from absl import flags

from common import runtime
from common.config import load_run
from common.errors import UsageError
from common.evaluation.judge import compare, judge
from common.evaluation.views import VIEWS
from common.training.dispatch import cpu_devices
from common.training.folds import walk_forward
from experiments import launch

_WORKDIR = flags.DEFINE_list('workdir', None, 'Folder of the run, or of several to average.', required=True)
_AGAINST = flags.DEFINE_list('against', [], 'Folder of the run, or of several to average, to compare with.')
_SPLIT = flags.DEFINE_string('split', 'test', 'Split to judge on.')
_CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, latest, or a step.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Folder of prepared data sets. Default: the one trained from.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 0, 'Examples at a time; 0: as in training.', lower_bound=0)
_VIEWS = flags.DEFINE_enum('views', None, list(VIEWS), 'Views to average over, reported beside the plain figures.')
_WALK_FORWARD = flags.DEFINE_integer(
    'walk_forward', 0, 'Train anew and judge on this many consecutive periods of the test split.', lower_bound=0
)
UNUSED = ('split', 'checkpoint', 'batch_size', 'views')  # by a walk forward


def main() -> None:
    workdirs = launch.workdirs(_WORKDIR)
    against = [*map(launch.path, _AGAINST.value)]
    config = load_run(workdirs[0]).config
    runtime.start(cpu_devices=cpu_devices(config.cpu_devices, config.batch_size) if _WALK_FORWARD.value else 1)
    data_dir = launch.path(_DATA_DIR.value) if _DATA_DIR.value else None
    how = _SPLIT.value, _CHECKPOINT.value, data_dir, _BATCH_SIZE.value, _VIEWS.value
    if _WALK_FORWARD.value:
        if len(workdirs) > 1 or against:
            raise UsageError('--walk_forward trains the config of one run anew; give one --workdir and no --against')
        if given := [name for name in UNUSED if not flags.FLAGS[name].using_default_value]:
            raise UsageError(f'--walk_forward judges the best of every period on its test split, without --{given[0]}')
        directory, lines = walk_forward(workdirs[0], data_dir, _WALK_FORWARD.value)
    elif against:
        print('\n'.join(compare(workdirs, against, *how)))
        return
    else:
        directory, lines = judge(workdirs, *how)
    print('\n'.join(lines))
    print(f'results: {directory}')


if __name__ == '__main__':
    launch.run(main)
