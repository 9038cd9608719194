"""The loop: resume is bit-exact, best and latest, early stopping, plateau, divergence, and what is recorded."""

import errno
import fcntl
import itertools
import json
import math
import os
import pathlib
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tqdm import tqdm

from common.checkpoint import Checkpoints
from common.config import load_run
from common.errors import TrainingDivergedError, UsageError, UserError
from common.history import read_history
from common.training.interruption import alone, interruption
from common.training.journal import Clock, Journal
from common.training.loop import Outcome, train
from common.training.plan import chunks
from common.training.setup import Training, make_training
from common.training.start import begin
from tests.toy import datasets as toy_datasets
from tests.toy.configs import toy as toy_config
from tests.toy.task import Toy


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp('toy')
    toy_datasets.prepare(None, folder, skip_bad=False)
    return folder


@pytest.fixture
def fit(data_dir):
    """Trains the toy task in a folder, as experiments.train does; `stop_at` asks it to end after that many steps."""

    def fit(workdir: pathlib.Path, stop_at: int = 0, number: int = signal.SIGINT, **values) -> tuple[Training, Outcome]:
        config = toy_config.get_config()
        config.task = 'tests.toy'
        config.steps_per_dispatch = 1
        config.update_from_flattened_dict({name.replace('__', '.'): value for name, value in values.items()})
        training = make_training(config, data_dir, devices=2)
        if stop_at:
            interrupt(training, stop_at, number)
        with alone(workdir):
            state, progress, checkpoints, _ = begin(training, workdir, data_dir)
            try:
                return training, train(training, state, progress, checkpoints, workdir)
            finally:
                checkpoints.close()

    return fit


def interrupt(training: Training, stop_at: int, number: int) -> None:
    """Lets this process get a signal while step `stop_at` is taken."""
    compile_step = training.compile

    def compile_and_watch(state, batch):
        step, cost = compile_step(state, batch)

        def watched(state, shared, batch):
            result = step(state, shared, batch)
            if int(np.max(result[0].step)) == stop_at:
                os.kill(os.getpid(), number)
            return result

        return watched, cost

    training.compile = compile_and_watch


def restored(training: Training, workdir: pathlib.Path, which: str = 'latest'):
    checkpoints = Checkpoints(workdir, training.config.monitor.mode)
    state, progress = checkpoints.restore(training.abstract_state(), checkpoints.find(which))
    return jax.tree.map(np.asarray, state), progress


def assert_identical(got, want):
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def kept(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())


def evaluations(workdir: pathlib.Path) -> list[dict]:
    return [record for record in read_history(workdir) if 'epoch' in record]


STATEFUL = {'ema_decay': 0.9, 'optimizer__momentum': 0.9, 'schedule__warmup': '4steps', 'monitor__patience': 9}


@pytest.mark.parametrize(
    ('values', 'number'),
    [
        ({}, signal.SIGTERM),
        ({'ensemble': 2, 'data__transport': 'streaming'}, signal.SIGINT),
        ({'steps_per_dispatch': 3}, signal.SIGINT),
        ({'schedule__name': 'plateau', 'schedule__patience': 1, 'optimizer__learning_rate': 0.0}, signal.SIGINT),
    ],
    ids=['plain', 'ensemble', 'dispatches', 'plateau'],
)
def test_an_interrupted_run_that_goes_on_equals_an_uninterrupted_one_bit_for_bit(fit, tmp_path, values, number):
    values = STATEFUL | values
    training, whole = fit(tmp_path / 'whole', **values)
    assert whole.ended == 'complete'
    for stop_at in (3, 8, 19, 24):
        _, outcome = fit(tmp_path / 'halves', stop_at, number, **values)
        assert (outcome.ended, outcome.step) == ('complete' if stop_at == 24 else 'interrupted', stop_at)
        assert Checkpoints(tmp_path / 'halves').find('latest') == stop_at
    (state, progress), (again, other) = (restored(training, tmp_path / name) for name in ('whole', 'halves'))
    assert_identical(again, state)
    assert {**progress, 'seconds': 0} == {**other, 'seconds': 0}
    assert kept(tmp_path / 'whole') == kept(tmp_path / 'halves')
    mine, theirs = evaluations(tmp_path / 'halves'), evaluations(tmp_path / 'whole')
    assert [record['step'] for record in mine] == [8, 16, 24]
    for a, b in zip(mine, theirs, strict=True):
        same = [name for name in b if name.startswith(('train/', 'validation/'))]
        assert len(same) >= 4
        assert [a[name] for name in same] == [b[name] for name in same]


def test_an_interrupted_run_tells_by_its_exit_status_which_signal_it_was(fit, tmp_path):
    assert [fit(tmp_path / str(number), 3, number)[1].exit_status for number in (2, 15)] == [130, 143]
    assert fit(tmp_path / '2')[1].exit_status == 0


def test_a_folder_in_which_another_process_trains_is_refused(fit, tmp_path):
    fit(tmp_path, 3)
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UserError, match='another training is at work in'):
        fit(tmp_path)
    assert sorted(tmp_path.rglob('*')) == before
    os.close(folder)
    assert fit(tmp_path)[1].ended == 'complete'


def test_who_is_refused_leaves_the_folder_of_who_is_at_work_though_it_is_empty_yet(tmp_path):
    with alone(tmp_path / 'run'):
        with pytest.raises(UserError, match='another training is at work in'), alone(tmp_path / 'run'):
            pass
        assert (tmp_path / 'run').is_dir()
    assert not (tmp_path / 'run').exists()


def test_the_better_of_a_metric_is_what_its_task_says_unless_the_config_does(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, 'better', {'mae': 'max'})
    training, outcome = fit(tmp_path / 'run')  # the error falls, so that the first one is the greatest
    assert (training.config.monitor.mode, outcome.progress.best_step) == ('max', 8)
    training, outcome = fit(tmp_path / 'other', monitor__mode='min')
    assert (training.config.monitor.mode, outcome.progress.best_step) == ('min', 24)


def test_an_unknown_metric_is_refused_before_the_first_step(fit, tmp_path):
    with pytest.raises(UsageError, match="metric is 'mse'; it may be loss, mae"):
        fit(tmp_path / 'run', monitor__metric='mse')
    assert not (tmp_path / 'run').exists()


def test_training_figures_are_means_over_the_steps_since_the_evaluation_before(fit, tmp_path):
    values = {
        'optimizer__learning_rate': 0.0,
        'model__batch_norm': False,
        'model__dropout': 0.0,
        'augment__jitter': 0.0,
    }
    fit(tmp_path, 11, **values)
    training, _ = fit(tmp_path, **values)
    rows = np.array([training.plan.index(step).reshape(-1) for step in range(24)])
    losses = training.evaluate(restored(training, tmp_path)[0], 'train')['loss'][rows].mean(1)
    means = [record['train/loss'] for record in evaluations(tmp_path)]
    np.testing.assert_allclose(means, losses.reshape(3, 8).mean(1), rtol=1e-5)


def test_the_seconds_of_training_leave_out_compiling_and_evaluating(fit, tmp_path, monkeypatch):
    def slowly(function):
        return lambda *args: time.sleep(2) or function(*args)

    for name in ('compile', 'evaluate'):
        monkeypatch.setattr(Training, name, slowly(getattr(Training, name)))
    _, outcome = fit(tmp_path / 'run', steps_per_dispatch=3)  # and single steps at the end of an epoch
    assert 0 < outcome.progress.seconds < 2


def test_the_seconds_of_training_go_on_after_an_interruption(fit, tmp_path):
    seconds = [fit(tmp_path, stop_at)[1].progress.seconds for stop_at in (3, 23, 0)]
    assert 0 < seconds[0] < seconds[1] < seconds[2]


def test_tensorboard_shows_what_metrics_jsonl_holds_also_after_a_kill(tmp_path):
    journal = Journal(tmp_path, 0)
    for step in (4, 8, 12):
        journal.write(step, {'loss': 1 / step, 'by_class': [1, 2]})
    journal.close()
    for path in (tmp_path / 'tensorboard').iterdir():
        path.write_bytes(path.read_bytes()[:-40])  # what was still on its way
    begun = time.time()
    journal = Journal(tmp_path, 8)
    journal.write(12, {'loss': 0.1})
    journal.close()
    scalars = [event for event in events(tmp_path) if event.HasField('summary')]
    assert [(event.step, event.summary.value[0].tag) for event in scalars] == [(4, 'loss'), (8, 'loss'), (12, 'loss')]
    np.testing.assert_allclose([event.summary.value[0].simple_value for event in scalars], [1 / 4, 1 / 8, 0.1])
    assert [event.wall_time >= begun for event in scalars] == [False, False, True]


def events(workdir: pathlib.Path) -> list[Event]:
    """Every event in TensorBoard's files: a length of 8 bytes, 4 of its sum, the event, and 4 of its sum."""
    found = []
    for path in sorted((workdir / 'tensorboard').iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], 'little')
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_the_handlers_of_signals_come_back(fit, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    fit(tmp_path / 'run', 3)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_ctrl_c_ends_at_once_and_nothing_else_does():
    with interruption() as asked:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert asked == 2 * [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_training_may_run_in_another_thread():
    def enter():
        with interruption() as asked:
            return asked

    with ThreadPoolExecutor(1) as elsewhere:
        assert elsewhere.submit(enter).result() == []


def test_a_file_system_without_locks_stops_nothing(tmp_path, monkeypatch):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', flock)
    with alone(tmp_path / 'run'):
        (tmp_path / 'run' / 'file').touch()
    assert (tmp_path / 'run' / 'file').exists()


def test_a_clock_that_runs_goes_on_when_it_is_resumed(monkeypatch):
    now = iter((10.0, 12.0, 15.0))
    monkeypatch.setattr(time, 'perf_counter', lambda: next(now))
    clock = Clock(1.0)
    clock.resume()
    assert clock.seconds == 3.0
    clock.resume()
    clock.pause()
    assert clock.seconds == 6.0


def test_a_finished_run_only_says_so_when_started_again(fit, tmp_path):
    fit(tmp_path / 'run')
    text = (tmp_path / 'run' / 'metrics.jsonl').read_text()
    _, outcome = fit(tmp_path / 'run')
    assert (outcome.ended, outcome.step) == ('complete', 24)
    assert (tmp_path / 'run' / 'metrics.jsonl').read_text() == text


def test_records_hold_training_and_validation_side_by_side(fit, tmp_path):
    training, outcome = fit(tmp_path / 'run')
    records = evaluations(tmp_path / 'run')
    assert [record['step'] for record in records] == [8, 16, 24]
    assert [record['epoch'] for record in records] == pytest.approx([8 / 12, 16 / 12, 2])
    for record in records:
        assert {'train/loss', 'validation/loss', 'validation/mae'} <= record.keys()
        assert all(math.isfinite(value) for value in record.values())
    best = min(records, key=lambda record: record['validation/mae'])
    assert (outcome.progress.best, outcome.progress.best_step) == (best['validation/mae'], best['step'])
    rates = [record for record in read_history(tmp_path / 'run') if 'examples_per_second' in record]
    assert [record['step'] for record in rates] == [4, 8, 12, 16, 20, 24][: len(rates)]
    scheduled = [float(training.schedule(record['step'] - 1)) for record in rates]
    assert [record['learning_rate'] for record in rates] == pytest.approx(scheduled, rel=1e-4)
    assert scheduled == sorted(set(scheduled), reverse=True)
    assert list((tmp_path / 'run' / 'tensorboard').glob('events.out.tfevents.*'))


def test_a_record_holds_the_loss_of_its_own_step_also_after_a_resume(fit, tmp_path):
    fit(tmp_path / 'every', log_every='1steps')
    values = {'steps_per_dispatch': 4, 'log_every': '4steps'}
    fit(tmp_path / 'run', **values)
    fit(tmp_path / 'stopped', 12, **values)
    fit(tmp_path / 'stopped', **values)
    every, run, stopped = (
        {r['step']: r['step_loss'] for r in read_history(tmp_path / name) if 'step_loss' in r}
        for name in ('every', 'run', 'stopped')
    )
    assert list(every) == list(range(1, 25))
    assert list(run) == [4, 8, 12, 16, 20, 24]
    np.testing.assert_allclose([every[step] for step in run], list(run.values()), rtol=1e-5)
    assert stopped == run


def test_a_run_goes_on_where_another_number_of_steps_in_a_dispatch_suits_the_machine(fit, tmp_path, monkeypatch):
    for steps, stop_at in ((4, 12), (2, 0)):
        monkeypatch.setattr('common.training.setup.steps_per_dispatch', lambda *_, steps=steps: steps)
        training, outcome = fit(tmp_path / 'run', stop_at, steps_per_dispatch=0)
        assert training.steps_per_dispatch == steps
    assert (outcome.ended, outcome.step) == ('complete', 24)


@pytest.mark.parametrize('models', [1, 2])
def test_a_rate_is_of_steps_that_were_waited_for(fit, tmp_path, monkeypatch, models):
    seconds, said = itertools.count(0.0, 2.0), []
    monkeypatch.setattr(tqdm, 'set_description_str', lambda line, text: said.append(text))
    monkeypatch.setattr(Clock, 'seconds', property(lambda clock: next(seconds)))
    fit(tmp_path / 'run', log_every='1steps', evaluate_every='24steps', steps_per_dispatch=3, ensemble=models)
    records = [record for record in read_history(tmp_path / 'run') if 'step_loss' in record]
    assert [record['step'] for record in records] == list(range(3, 25, 3))
    rates = [record.get('examples_per_second') for record in records]
    assert rates == [None, *[models * 3 * 8 / 2.0] * 7]
    left = [text.split()[-3] for text in said if text.endswith('to go')]
    assert left == ['0:12', '0:10', '0:08', '0:06', '0:04', '0:02', '0:00']


def test_best_and_latest_are_kept_and_only_these(fit, tmp_path):
    # A learning rate that explodes after the second evaluation: the best is before the latest.
    training, outcome = fit(
        tmp_path / 'run', schedule__name='step', schedule__factor=100.0, schedule__milestones=('16steps',)
    )
    assert kept(tmp_path / 'run') == [16, 24]
    assert outcome.progress.best_step == 16
    checkpoints = Checkpoints(tmp_path / 'run', 'min')
    assert (checkpoints.find('best'), checkpoints.find('latest')) == (16, 24)
    state, _ = restored(training, tmp_path / 'run', 'best')
    assert int(state.step) == 16


@pytest.mark.parametrize(
    ('explodes_at', 'message'),
    [
        ('11steps', r'the training loss became (nan|inf) at step 13'),
        ('15steps', 'the validation loss is inf at step 16'),
    ],
)
def test_a_diverged_training_stops_and_leaves_the_best_checkpoint(fit, tmp_path, explodes_at, message):
    """In the middle of a stretch, and at its very last step, where the first to see it is the evaluation."""
    values = {'optimizer__name': 'sgd', 'schedule__name': 'step', 'schedule__factor': 1e30}
    with pytest.raises(TrainingDivergedError, match=message):
        fit(tmp_path / 'run', schedule__milestones=(explodes_at,), **values)
    assert kept(tmp_path / 'run') == [8]
    checkpoints = Checkpoints(tmp_path / 'run', 'min')
    assert (checkpoints.find('best'), checkpoints.find('latest')) == (8, 8)
    assert [record['step'] for record in evaluations(tmp_path / 'run')] == [8]


def test_a_monitored_metric_that_is_undefined_ends_the_training_and_is_named(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, 'better', {'skill': 'max'})
    monkeypatch.setattr(Toy, 'metrics', lambda task, predictions, split: {'skill': math.nan})
    with pytest.raises(TrainingDivergedError, match=r'skill is nan at step 8: give another config\.monitor\.metric'):
        fit(tmp_path / 'run', monitor__metric='skill')


def test_a_run_that_has_learnt_nothing_yet_is_begun_anew_with_another_config(fit, tmp_path):
    with pytest.raises(TrainingDivergedError, match=r'set config\.optimizer\.gradient_clip$'):  # no checkpoint is left
        fit(tmp_path / 'run', optimizer__name='sgd', optimizer__learning_rate=1e30)
    (tmp_path / 'run' / 'checkpoints' / '4.orbax-checkpoint-tmp-0').mkdir()  # of a save that a kill cut short
    _, outcome = fit(tmp_path / 'run', optimizer__name='sgd', optimizer__learning_rate=0.01)
    assert outcome.ended == 'complete'
    assert load_run(tmp_path / 'run').config.optimizer.learning_rate == 0.01
    assert [record['step'] for record in evaluations(tmp_path / 'run')] == [8, 16, 24]


def test_training_stops_early_when_patience_ends(fit, tmp_path):
    values = {'optimizer__learning_rate': 0.0, 'model__batch_norm': False, 'duration': '100steps'}
    _, outcome = fit(tmp_path / 'run', monitor__patience=2, **values)
    assert (outcome.ended, outcome.step, outcome.progress.best_step) == ('stopped early', 24, 8)
    assert kept(tmp_path / 'run') == [8, 24]
    _, again = fit(tmp_path / 'run', monitor__patience=2, **values)
    assert (again.ended, again.step) == ('stopped early', 24)


def test_a_run_that_stopped_early_goes_on_without_patience_as_if_it_never_had(fit, tmp_path):
    values = {'duration': '40steps', 'monitor__mode': 'max'}  # the loss falls, so it is never better
    _, stopped = fit(tmp_path / 'run', monitor__patience=2, **values)
    assert (stopped.ended, stopped.step) == ('stopped early', 24)
    training, longer = fit(tmp_path / 'run', **values)
    assert (longer.ended, longer.step) == ('complete', 40)
    fit(tmp_path / 'other', **values)
    assert_identical(*(restored(training, tmp_path / name)[0] for name in ('run', 'other')))


def test_no_other_schedule_is_lowered_where_nothing_gets_better(fit, tmp_path, capsys):
    training, _ = fit(tmp_path, schedule__patience=1, monitor__mode='max')  # the error falls, so it is never better
    assert float(restored(training, tmp_path)[0].learning_rate_scale) == 1.0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('epoch')]
    assert [line.endswith('(best)') for line in lines] == [True, False, False]


def test_plateau_lowers_the_rate_and_a_resume_keeps_it(fit, tmp_path):
    values = {'optimizer__learning_rate': 0.0, 'model__batch_norm': False, 'duration': '56steps'}
    values |= {'schedule__name': 'plateau', 'schedule__patience': 2, 'schedule__factor': 0.5}
    # Evaluations at 8 (the best), 16, 24 (lowered), 32, 40 (lowered), 48, 56 (lowered).
    for stop_at, scale in ((23, 1.0), (27, 0.5), (45, 0.25), (56, 0.125)):
        training, _ = fit(tmp_path / 'run', stop_at, **values)
        state, _ = restored(training, tmp_path / 'run')
        assert float(state.learning_rate_scale) == scale


def test_plateau_scales_the_step(fit, tmp_path):
    values = {'schedule__name': 'plateau', 'schedule__patience': 1, 'optimizer__name': 'sgd', 'log_every': '8steps'}
    values |= {'monitor__mode': 'max'}  # the error falls, so it is never better and the rate always lowered
    fit(tmp_path / 'run', schedule__factor=0.1, duration='40steps', **values)
    rates = {
        record['step']: record['learning_rate'] for record in read_history(tmp_path / 'run') if 'step_loss' in record
    }
    np.testing.assert_allclose([rates[step] for step in (16, 24, 32, 40)], [1e-2, 1e-3, 1e-4, 1e-5], rtol=1e-5)
    # A factor of 0 at step 16 leaves the parameters where they are.
    states = []
    for duration in ('8steps', '16steps', '32steps'):
        training, _ = fit(tmp_path / duration, schedule__factor=0.0, duration=duration, **values)
        states.append(restored(training, tmp_path / duration)[0].params)
    assert_identical(states[2], states[1])
    assert not np.array_equal(states[0]['Dense_0']['kernel'], states[1]['Dense_0']['kernel'])


@pytest.mark.parametrize('change', [{'batch_size': 4}, {'model__width': 9}, {'duration': '30steps'}, {'seed': 1}])
def test_a_run_of_another_config_is_refused_and_what_differs_named(fit, tmp_path, change):
    fit(tmp_path / 'run', 3)
    [(key, value)] = change.items()
    with pytest.raises(
        UserError, match=rf'holds a run of another config:\n  config\.{key.replace("__", ".")}: .* {value} now'
    ):
        fit(tmp_path / 'run', **change)


def test_what_changes_no_number_may_change_between_halves(fit, tmp_path):
    fit(tmp_path / 'run', 3)
    _, outcome = fit(tmp_path / 'run', log_every='1steps', data__threads=1, data__transport='streaming')
    assert outcome.ended == 'complete'


def test_a_run_that_goes_on_with_other_devices_of_the_machine_says_so(fit, data_dir, tmp_path):
    training, _ = fit(tmp_path / 'run', 3)  # with two devices
    for devices, warned in ((2, False), (1, True)):
        other = make_training(training.config, data_dir, devices)
        _, _, checkpoints, how = begin(other, tmp_path / 'run', data_dir)
        checkpoints.close()
        assert ('begun with other devices' in how) == warned


def test_checkpoints_without_a_config_are_not_overwritten(fit, tmp_path):
    (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
    with pytest.raises(UserError, match=r'holds checkpoints but no config\.json: give another --workdir'):
        fit(tmp_path / 'run')


def test_weights_of_another_run_are_where_training_starts(fit, tmp_path, monkeypatch):
    training, _ = fit(tmp_path / 'first', monitor__mode='max')  # the error falls, so that the first one is the best
    best, _ = restored(training, tmp_path / 'first', 'best')
    monkeypatch.setenv('HOME', str(tmp_path))
    training, _ = fit(tmp_path / 'second', init_from='~/first', optimizer__learning_rate=0.0)
    state, _ = restored(training, tmp_path / 'second')
    assert_identical(state.params, best.params)
    assert int(state.step) == 24


def test_a_frozen_part_stays_while_its_batch_statistics_and_the_rest_move(fit, tmp_path):
    training, _ = fit(tmp_path / 'run', optimizer__freeze=(('Dense_0', '100%'), ('Dense_1', '10steps')), ema_decay=0.9)
    state, _ = restored(training, tmp_path / 'run')
    fresh = training.init_state()
    for tree, at_first in ((state.params, fresh.params), (state.average, fresh.average)):
        assert_identical(tree['Dense_0'], at_first['Dense_0'])
        assert not np.array_equal(tree['Dense_1']['kernel'], at_first['Dense_1']['kernel'])
    assert not np.array_equal(
        state.collections['batch_stats']['BatchNorm_0']['mean'], fresh.collections['batch_stats']['BatchNorm_0']['mean']
    )


def test_weights_that_do_not_fit_leave_no_run_behind(fit, tmp_path):
    fit(tmp_path / 'first')
    with pytest.raises(UserError, match=r'batch_stats\.BatchNorm_0\.mean is \[8\] in .*\[5\] in this model'):
        fit(tmp_path / 'second', init_from=str(tmp_path / 'first'), model__width=5)
    with pytest.raises(UserError, match='no parameter begins with'):
        fit(tmp_path / 'second', optimizer__freeze=(('backbone', '100%'),))
    assert not (tmp_path / 'second').exists()


def test_records_after_the_resumed_step_are_dropped_and_a_torn_line_too(tmp_path):
    lines = [json.dumps({'step': step}) for step in (4, 8, 12)]
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n{"step": 16, "lo')
    assert [record['step'] for record in read_history(tmp_path)] == [4, 8, 12]
    journal = Journal(tmp_path, resumed_at=8)
    journal.write(12, {'validation/loss': 1.0})
    journal.close()
    assert [record['step'] for record in read_history(tmp_path)] == [4, 8, 12]
    Journal(tmp_path, resumed_at=0).close()
    assert read_history(tmp_path) == []


def test_a_full_disk_leaves_the_records_as_they_were(tmp_path):
    """A limit on the size of files stands for it."""
    text = ''.join(json.dumps({'step': step, 'loss': 1.0}) + '\n' for step in range(1, 100))
    (tmp_path / 'metrics.jsonl').write_text(text)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match='too large'):
            Journal(tmp_path, resumed_at=50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / 'metrics.jsonl').read_text() == text


def test_chunks_depend_on_the_absolute_step_alone():
    whole = chunks(0, 50, 12, 5)
    assert whole[:4] == [(0, 5), (5, 5), (10, 1), (11, 1)]
    assert sum(count for _, count in whole) == 50
    for number, (first, _) in enumerate(whole):
        assert chunks(first, 50, 12, 5) == whole[number:]
    assert all(first // 12 == (first + count - 1) // 12 for first, count in whole)  # no chunk steps over an evaluation
