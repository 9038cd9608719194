"""How a training begins: it goes on from the run's latest checkpoint, or from given weights, or afresh."""

import dataclasses
import pathlib
import warnings
from typing import Any

import jax
import numpy as np

from common.checkpoint import FOLDER, Checkpoints, has_checkpoints
from common.config import CONFIG_FILE, RunRecord, differences, load_run, save_run
from common.data.dataset import Split
from common.errors import DataError, UserError
from common.nn.convolutions.choices import settle
from common.runtime import environment
from common.state import TrainState
from common.training.initialise import Match, initialise
from common.training.loop import VALIDATION, Progress
from common.training.setup import Training, num_parameters

# What may change between the halves of a run without changing its numbers: a run that stopped early goes on without
# patience as if it had never stopped.
FREE = (
    'config.log_every',
    'config.data.threads',
    'config.data.transport',
    'config.dataset.raw_dir',
    'config.monitor.patience',
)


def begin(
    training: Training, workdir: pathlib.Path, data_dir: pathlib.Path
) -> tuple[TrainState, Progress, Checkpoints, str]:
    """Makes `workdir` a run of this training, or goes on with it.

    Returns:
      The state and progress to start from, the run's checkpoints, and a sentence that says which it was.

    Raises:
      UserError: if `workdir` holds a run of another config, files that are no run, or there is no validation split.
      CheckpointError: if the latest checkpoint cannot be restored.
    """
    if not len(training.dataset.splits.get(VALIDATION, ())):
        raise DataError(
            f'{training.config.dataset.name} has no {VALIDATION} split to judge checkpoints by: give it '
            'a share in config.dataset.split_fractions'
        )
    record = _own_record(training, workdir)
    if record and (workdir / FOLDER).exists():
        checkpoints = Checkpoints(workdir, training.config.monitor.mode)
        checkpoints.remove_remains()
        if not checkpoints.is_empty():
            step = checkpoints.find('latest')
            state, progress = checkpoints.restore(training.abstract_state(), step)
            how = f'going on from step {step} of {training.total_steps}{_elsewhere(training, record)}'
            return state, Progress(**progress), checkpoints, how
        checkpoints.close()
    # Before the folder becomes a run: weights that do not fit leave nothing behind.
    state, match = _initial_state(training)
    origin = f'from {training.config.init_from}: {match}' if match else 'fresh'
    if not record and jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        save_run(workdir, _record(training, data_dir, match))
    checkpoints = Checkpoints(workdir, training.config.monitor.mode)
    return state, Progress(), checkpoints, f'{num_parameters(state.params):,} parameters, {origin}'


def _own_record(training: Training, workdir: pathlib.Path) -> RunRecord | None:
    """Of the run of this very training that `workdir` holds, if it holds any; convolutions go its ways from now on."""
    if (workdir / CONFIG_FILE).exists():
        record = load_run(workdir)
        changed = [line for line in differences(record.config, training.config) if not line.startswith(FREE)]
        if changed and not has_checkpoints(workdir):
            return None  # it has learnt nothing yet, and is begun anew
        if changed:
            raise UserError(
                f'{workdir} holds a run of another config:\n  ' + '\n  '.join(changed) + '\n'
                'Give the same values to go on with it, or another --workdir; to train longer, that and '
                f'--config.init_from={workdir}, which begins with its weights.'
            )
        record.check_data(training.dataset.info, workdir)
        settle(record.environment.get('convolutions', {}))
        return record
    if (workdir / FOLDER).exists():
        raise UserError(f'{workdir} holds checkpoints but no {CONFIG_FILE}: give another --workdir.')
    return None


def _record(training: Training, data_dir: pathlib.Path, match: Match | None) -> RunRecord:
    dataset, members = training.dataset, training.members
    started = {'init_from': dataclasses.asdict(match)} if match else {}
    return RunRecord(
        config=training.config,
        info=dataset.info,
        columns=_row_spec(training.train_split),
        tables={name: jax.ShapeDtypeStruct(table.shape, table.dtype) for name, table in dataset.tables.items()},
        groups=members.count if members.by_group else None,
        data_dir=str(data_dir.absolute()),
        environment=_environment(training)
        | {'transport': str(training.transport_choice), 'steps_per_dispatch': training.steps_per_dispatch}
        | {'convolutions': training.convolutions}
        | started,
    )


def _environment(training: Training) -> dict[str, Any]:
    """Of the machine's devices, those that the training takes."""
    return environment() | {'devices': [device.device_kind for device in training.parallel.devices]}


def _elsewhere(training: Training, record: RunRecord) -> str:
    """A word of warning where the run began on another processor, with other libraries or with other flags."""
    before, now = record.environment, _environment(training)
    names = ('backend', 'processor', 'devices', 'versions', 'xla_flags')
    changed = [name for name in names if before.get(name, now[name]) != now[name]]
    return f'; begun with other {" and ".join(changed)} (config.json), so the last digits may differ' if changed else ''


def _row_spec(split: Split) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct((1, *column.shape[1:]), np.dtype(column.dtype))
        for name, column in split.columns.items()
    }


def _warn_of_what_is_known(training: Training) -> None:
    """Of weights that may have learnt from what this run is judged on: of a run on the same data, split otherwise."""
    source = pathlib.Path(training.config.init_from).expanduser()
    if not (source / CONFIG_FILE).is_file():
        return
    here, there = training.dataset.info, load_run(source).info
    if any(here.get(name) != there.get(name) for name in ('dataset', 'class_names')):  # folders can be any images
        return
    held_out = {name for name in here.get('examples', {}) if name != 'train'}
    otherwise = sorted(name for name in held_out if here['examples'][name] != there['examples'].get(name))
    if 'periods' in here and there['periods']['train'][1] >= here['periods'][VALIDATION][0]:  # days as text sort
        otherwise = sorted(here['periods'].keys() - {'train'})
    if otherwise:
        warnings.warn(
            f'{source} was trained on another split of {here["dataset"]}: what this run holds out for '
            f'{" and ".join(otherwise)} it may have learnt from, and then no figure of this run is to be trusted. Give '
            'both the same split (config.dataset.split_*), or begin from other weights.',
            stacklevel=2,
        )


def _initial_state(training: Training) -> tuple[TrainState, Match | None]:
    state = training.init_state()
    if not training.config.init_from:
        return state, None
    _warn_of_what_is_known(training)
    variables, match = initialise(
        training.config,
        {'params': state.params, **state.collections},
        training.dataset.info.get('class_names'),
        training.head(),
        training.members.count,
    )
    variables = training.parallel.replicate(variables)
    params = variables.pop('params')
    average = None if state.average is None else jax.tree.map(jax.numpy.copy, params)
    return state.replace(params=params, collections=variables, average=average), match
