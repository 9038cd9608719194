"""Trains what a config describes; started again with the same workdir, it goes on where it stopped.

python -m experiments.train --config=lesion/configs/ham10000.py:cnn --workdir=RUN [--data_dir=DATA]
                            [--config.batch_size=32 ...]
"""

import pathlib

from absl import flags
from ml_collections import ConfigDict

from common import runtime
from common.checkpoint import has_checkpoints
from common.history import read_history
from common.lazy import lazy
from common.training.dispatch import cpu_devices
from common.training.interruption import alone
from common.training.loop import train
from common.training.setup import make_training
from common.training.start import begin
from experiments import launch

plots = lazy('common.evaluation.plots')

_CONFIG = launch.define_config()
_DATA_DIR = flags.DEFINE_string('data_dir', None, launch.DATA_DIR_HELP)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of the run: config.json, checkpoints, metrics, evaluation.', required=True
)
_DEVICES = flags.DEFINE_integer('devices', 0, 'Devices to train on; 0: all.', lower_bound=0)
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Join the other processes of this run, as the cluster says.')


def main() -> int:
    config, data_dir, (workdir,) = _CONFIG.value, launch.data_dir(_DATA_DIR), launch.workdirs(_WORKDIR)
    runtime.start(_DISTRIBUTED.value, cpu_devices(config.cpu_devices, config.batch_size))
    launch.prepare_if_needed(config, data_dir, begun=has_checkpoints(workdir))
    training = make_training(config, data_dir, _DEVICES.value)
    print(f'data: {training.transport_choice}')
    with alone(workdir):
        state, progress, checkpoints, how = begin(training, workdir, data_dir)
        print(f'model: {how}')
        try:
            outcome = train(training, state, progress, checkpoints, workdir)
        finally:
            checkpoints.close()
    draw_learning_curves(workdir, training.config.monitor)
    best = outcome.progress
    print(f'{outcome.ended} at step {outcome.step} after {best.seconds:.0f} s of training; run: {workdir}')
    if best.best is not None:
        print(f'best validation {config.monitor.metric}: {best.best:.4f} at step {best.best_step}')
    return outcome.exit_status


def draw_learning_curves(workdir: pathlib.Path, monitor: ConfigDict) -> None:
    """RUN/learning_curves.png: loss and the monitored metric, training beside validation."""
    history = [record for record in read_history(workdir) if 'epoch' in record]
    if history:
        curves = plots.learning_curves(history, monitor.metric, larger_is_better=monitor.mode == 'max')
        plots.save(curves, workdir / 'learning_curves.png')


if __name__ == '__main__':
    flags.mark_flag_as_required('config')
    launch.run(main)
