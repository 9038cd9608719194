"""The launch scripts from end to end, as a person runs them: resume after a kill, evaluation, and bad input."""

import errno
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest

from common.history import read_history
from experiments import launch
from lesion.task import Lesion
from tests.conftest import SMALL, Trained, draw_raw, making, run_script, start_script

LONG = ('--config.duration=80steps', '--config.evaluate_every=10steps', '--config.ema_decay=0.99')


@pytest.fixture
def run(trained: Trained, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the finished run, to be used and damaged."""
    return shutil.copytree(trained.workdir, tmp_path / 'run')


@pytest.fixture
def raw(raw_dir: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the raw files, to be damaged."""
    return shutil.copytree(raw_dir, tmp_path / 'raw')


# Training that is killed, interrupted, and goes on.


@pytest.fixture(scope='session')
def uninterrupted(shared: pathlib.Path, trained: Trained) -> pathlib.Path:
    workdir = shared / 'uninterrupted'
    with making(workdir) as first:
        if first:
            assert run_script('train', *trained.arguments, *LONG, f'--workdir={workdir}').status == 0
    return workdir


def stop_in_the_middle(arguments: tuple[str, ...], how: signal.Signals) -> tuple[int, str, str]:
    """Starts a training in a process of its own and sends it a signal after its third evaluation."""
    process = start_script('train', *arguments)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith('epoch') and sum(line.startswith('epoch') for line in seen) == 3:
            break
    os.kill(process.pid, how)
    rest, errors = process.communicate(timeout=240)
    return process.returncode, ''.join(seen) + rest, errors


def saved_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of the latest checkpoint, read by Orbax alone."""
    step = max(int(path.name) for path in (workdir / 'checkpoints').iterdir())
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        state = checkpointer.restore(workdir / 'checkpoints' / str(step) / 'state')
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(state)}


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_training_goes_on_in_another_process_bit_for_bit(trained, uninterrupted, tmp_path, how):
    workdir = tmp_path / 'stopped'
    arguments = (*trained.arguments, *LONG, f'--workdir={workdir}')
    status, stdout, stderr = stop_in_the_middle(arguments, how)
    assert 'complete' not in stdout
    assert 'Traceback' not in stderr
    if how == signal.SIGINT:
        assert status == 128 + signal.SIGINT
        assert 'interrupted at step' in stdout
    else:
        assert status == -signal.SIGKILL
    again = run_script('train', *arguments)
    assert again.status == 0, again.stderr
    assert 'going on from step' in again.stdout
    assert 'complete at step 80' in again.stdout
    state, expected = saved_state(workdir), saved_state(uninterrupted)
    assert state.keys() == expected.keys()
    assert len(state) > 20
    for name, leaf in expected.items():
        np.testing.assert_array_equal(state[name], leaf, err_msg=name)
    records = [[r for r in read_history(folder) if 'epoch' in r] for folder in (workdir, uninterrupted)]
    assert [record['step'] for record in records[0]] == list(range(10, 81, 10))
    for mine, theirs in zip(*records, strict=True):
        assert {'train/loss', 'validation/loss', 'train/accuracy', 'validation/accuracy'} <= mine.keys()
        for name in ('train/loss', 'validation/loss', 'validation/balanced_accuracy'):
            assert mine[name] == theirs[name]
    assert {path.name for path in (workdir / 'checkpoints').iterdir()} == {
        path.name for path in (uninterrupted / 'checkpoints').iterdir()
    }


def test_of_several_processes_one_that_is_to_end_ends_all_at_one_step(trained, script, tmp_path):
    arguments = (*trained.arguments, *LONG, f'--workdir={tmp_path / "run"}')
    with socket.socket() as free:
        free.bind(('localhost', 0))
        cluster = {
            'XLA_FLAGS': '',
            'JAX_COORDINATOR_ADDRESS': f'localhost:{free.getsockname()[1]}',
            'JAX_NUM_PROCESSES': '2',
        }
    first, second = (
        start_script('train', *arguments, '--distributed', env=os.environ | cluster | {'JAX_PROCESS_ID': str(number)})
        for number in range(2)
    )
    try:
        while (line := first.stdout.readline()) and not line.startswith('epoch'):
            pass
        second.send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=90) for process in (first, second)]
    finally:
        first.kill()
        second.kill()
    assert [first.returncode, second.returncode] == 2 * [128 + signal.SIGTERM], said
    [stopped] = {line for stdout, _ in said for line in re.findall('interrupted at step .* after', stdout)}
    again = script('train', *arguments)
    assert f'going on from {stopped.split(" ", 2)[2].removesuffix(" after")} of 80' in again.stdout, again.stderr


def test_a_killed_prepare_starts_over(script, tmp_path):
    raw, data = draw_raw(tmp_path / 'raw', lesions=60), tmp_path / 'data'
    arguments = ('--config=lesion/configs/ham10000.py', f'--raw_dir={raw}', f'--data_dir={data}')
    process = start_script('prepare', *arguments)
    while process.poll() is None and not any((data / 'ham10000').glob('incomplete/*/*')):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert list((data / 'ham10000').glob('incomplete/*'))
    assert not list(data.rglob('audit.json'))
    again = script('prepare', *arguments)
    assert again.status == 0, again.stderr
    assert 'images: 630' in again.stdout
    assert not (data / 'ham10000' / 'incomplete').exists()
    assert len(list(data.rglob('audit.json'))) == 1


def test_a_workdir_that_can_be_no_folder_is_refused(script, trained, tmp_path):
    (tmp_path / 'file').write_text('')
    for workdir in (tmp_path / 'file', tmp_path / 'file/run'):
        ended = script('train', *trained.arguments, f'--workdir={workdir}')
        assert_refused(ended, 1, f'{workdir} cannot be a folder', 'another --workdir')


def test_a_run_that_cannot_be_written_is_told_in_a_sentence(script, trained, run, monkeypatch):
    def full(path, *arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(pathlib.Path, 'replace', full)
    ended = script('train', *trained.arguments, f'--workdir={run}')
    assert_refused(ended, 1, 'No space left on device', 'metrics.jsonl')


@pytest.mark.parametrize(
    ('main', 'status', 'told'),
    [
        (
            "raise RuntimeError('write() failed: No space left on device; writing RUN/x')",
            1,
            'the disk is full (write() ',
        ),
        ("raise OSError(28, 'No space left on device')", 1, 'Make room, and give the same command again'),
        ("raise NotADirectoryError(20, 'Not a directory', 'data')", 1, "Not a directory: 'data'"),
        ("print('x' * 10**6)", 128 + signal.SIGPIPE, ''),
    ],
)
def test_a_full_disk_and_a_reader_that_left_are_no_tracebacks(main, status, told):
    program = f'from experiments import launch\ndef main():\n    {main}\nlaunch.run(main)'
    process = subprocess.Popen(
        [sys.executable, '-c', program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(60) == status
    assert errors.startswith(f'error: {told}' if told.startswith('the') else 'error: ' if told else '')
    assert told in errors
    assert errors.count('\n') == bool(told)


def test_a_folder_with_commas_in_its_name_is_one_run(tmp_path):
    folder = tmp_path / 'rate=1,seed=2'
    names = str(folder).split(',')
    assert launch.workdirs(mock.Mock(value=names)) == [*map(pathlib.Path, names)]
    folder.mkdir()
    assert launch.workdirs(mock.Mock(value=names)) == [folder]


def test_runs_whose_list_is_longer_than_a_file_name_are_several():
    names = [f'seed{number:02}_' + 'x' * 60 for number in range(5)]
    assert launch.workdirs(mock.Mock(value=names)) == [*map(pathlib.Path, names)]


def test_a_run_holds_what_the_readme_says(trained):
    names = {path.name for path in trained.workdir.iterdir()}
    assert {'config.json', 'checkpoints', 'metrics.jsonl', 'learning_curves.png', 'tensorboard'} <= names
    record = json.loads((trained.workdir / 'config.json').read_text())
    assert record['config']['batch_size'] == 16
    assert record['environment']['versions']['jax'] == jax.__version__


def test_every_metric_of_which_the_better_is_known_is_measured(trained):
    measured = {name for record in read_history(trained.workdir) for name in record if name.startswith('validation/')}
    assert {f'validation/{name}' for name in Lesion.better} < measured


def test_a_diverged_training_ends_with_status_1_and_the_best_checkpoint(script, trained, tmp_path):
    explosion = ('--config.schedule.name=step', '--config.schedule.factor=1e30', '--config.optimizer.name=sgd')
    workdir = tmp_path / 'run'
    flags = (*trained.arguments, *explosion, "--config.schedule.milestones=('15steps',)", f'--workdir={workdir}')
    ended = script('train', *flags)
    assert ended.status == 1
    assert ended.stderr.startswith('error: the training loss became')
    assert 'lower config.optimizer.learning_rate' in ended.stderr
    assert [path.name for path in (workdir / 'checkpoints').iterdir()] == ['10']
    assert script('evaluate', f'--workdir={workdir}').status == 0


# Evaluation and prediction.


def test_predictions_for_the_jpeg_files_equal_those_of_evaluate(script, trained, run, tmp_path):
    ended = script('evaluate', f'--workdir={run}', '--views=flip')
    assert ended.status == 0
    assert re.match(rf'{run} after \d+ steps of a training of \d+steps\n', ended.stdout)
    folder = run / 'evaluation/test'
    plain, averaged = (pd.read_csv(place / 'predictions.csv') for place in (folder, folder / 'flip'))
    images = [next(trained.raw_dir.rglob(f'{name}.jpg')) for name in plain.image]
    output = tmp_path / 'predictions.csv'
    classes = list(plain.columns[3:])
    assert len(classes) == 7
    assert plain[classes].std().min() > 1e-4  # the images do differ
    assert np.abs(plain[classes] - averaged[classes]).max().max() > 1e-4
    flags = [f'--workdir={run}', f'--inputs={",".join(map(str, images))}', f'--output={output}']
    for evaluated, more in ((averaged, ['--views=flip']), (plain, [])):
        ended = script('predict', *flags, *more)
        assert ended.status == 0, ended.stderr
        predicted = pd.read_csv(output)
        assert predicted.image.tolist() == evaluated.image.tolist()
        assert predicted.label.isna().all()
        assert predicted.predicted.tolist() == evaluated.predicted.tolist()
        np.testing.assert_allclose(predicted[classes], evaluated[classes], rtol=0, atol=1.01e-6)
    for folder in (output.parent, run / 'evaluation' / 'test'):
        header = (folder / 'submission.csv').read_text().splitlines()[0]
        assert header == 'image,MEL,NV,BCC,AKIEC,BKL,DF,VASC'


def test_a_pattern_finds_files_and_one_image_alone_gives_the_same(script, trained, run, tmp_path):
    folder = trained.raw_dir / 'HAM10000_images_part_1'
    for inputs in (f'{folder}/*.jpg', f'{folder}/ISIC_00000.jpg'):
        assert script('predict', f'--workdir={run}', f'--inputs={inputs}', f'--output={tmp_path}/out.csv').status == 0
        table = pd.read_csv(tmp_path / 'out.csv').set_index('image')
        assert len(table) == (84 if '*' in inputs else 1)
        row = table.loc['ISIC_00000'].drop(['label', 'predicted']).to_numpy(float)
        if '*' in inputs:
            expected = row
    np.testing.assert_allclose(row, expected, rtol=0, atol=1.01e-6)


def test_a_folder_or_a_zip_stands_for_its_images(script, trained, run, tmp_path):
    (tmp_path / 'photos' / 'more').mkdir(parents=True)
    images = sorted(trained.raw_dir.rglob('*.jpg'))
    for image, folder in zip(images[:3], ('', 'more', 'more'), strict=True):
        shutil.copy(image, tmp_path / 'photos' / folder)
    (tmp_path / 'photos' / 'notes.txt').write_text('no image')
    archive = shutil.make_archive(str(tmp_path / 'set'), 'zip', tmp_path / 'photos')
    tables = []
    for inputs in (f'{tmp_path}/photos/**', f'{tmp_path}/photos', archive):
        if '*' in inputs:
            (tmp_path / 'photos' / 'notes.txt').unlink()
        ended = script('predict', f'--workdir={run}', f'--inputs={inputs}', f'--output={tmp_path}/out.csv')
        assert ended.status == 0, ended.stderr
        tables.append(pd.read_csv(tmp_path / 'out.csv').sort_values('image', ignore_index=True))
    assert tables[0].image.tolist() == sorted(image.stem for image in images[:3])
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])


def test_images_of_the_same_name_are_told_apart_by_their_folders(script, trained, run, tmp_path):
    images = sorted(trained.raw_dir.rglob('*.jpg'))
    for image, name in zip(images, ('melanoma/0.jpg', 'mole/0.jpg', 'mole/1.jpg'), strict=False):
        (tmp_path / 'photos' / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / 'photos' / name)
    for inputs in (f'{tmp_path}/photos/**', f'{tmp_path}/photos'):
        output = tmp_path / 'made' / 'on the way' / 'out.csv'
        ended = script('predict', f'--workdir={run}', f'--inputs={inputs}', f'--output={output}')
        assert ended.status == 0, ended.stderr
        for name in ('out.csv', 'submission.csv'):
            table = pd.read_csv(output.with_name(name))
            assert table.image.tolist() == ['melanoma/0.jpg', 'mole/0.jpg', 'mole/1.jpg']


def test_evaluation_repeats_to_the_byte_and_the_batch_size_changes_nothing(script, run):
    directory, texts, tables = run / 'evaluation' / 'test', [], []
    for batch_size in (16, 16, 1, 7, 256):
        ended = script('evaluate', f'--workdir={run}', f'--batch_size={batch_size}')
        assert ended.status == 0, ended.stderr
        texts.append((directory / 'metrics.json').read_text())
        tables.append(pd.read_csv(directory / 'predictions.csv'))
    assert texts[0] == texts[1]
    for text, table in zip(texts, tables, strict=True):
        assert json.loads(text)['accuracy'] == json.loads(texts[0])['accuracy']
        assert table.image.tolist() == tables[0].image.tolist()
        np.testing.assert_allclose(table.iloc[:, 3:], tables[0].iloc[:, 3:], rtol=0, atol=1.01e-6)
    assert json.loads(texts[0])['accuracy'] == (tables[0].label == tables[0].predicted).mean()
    assert (directory / 'confusion_matrix.png').stat().st_size > 1000


def test_a_fresh_process_with_one_device_says_the_same(script, run):
    assert script('evaluate', f'--workdir={run}', '--split=validation', '--checkpoint=latest').status == 0
    file = run / 'evaluation' / 'validation-latest' / 'predictions.csv'  # apart from those of the best checkpoint
    expected = pd.read_csv(file)
    file.unlink()
    environment = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
    process = start_script('evaluate', f'--workdir={run}', '--split=validation', '--checkpoint=latest', env=environment)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert 'balanced_accuracy' in stdout
    np.testing.assert_allclose(pd.read_csv(file).iloc[:, 3:], expected.iloc[:, 3:], rtol=0, atol=1.01e-6)


# Bad input: a sentence that names what is wrong, an exit status, and no traceback.


def assert_refused(ended, status: int, *words: str) -> None:
    assert ended.status == status, ended
    assert ended.stderr.startswith('error: ')
    assert 'Traceback' not in ended.stderr
    for word in words:
        assert word in ended.stderr


PREPARE = '--config=lesion/configs/ham10000.py'


def change_metadata(raw: pathlib.Path, change) -> None:
    path = raw / 'HAM10000_metadata.csv'
    change(pd.read_csv(path)).to_csv(path, index=False)


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda raw: shutil.rmtree(raw), ['There is no', '/raw', '--raw_dir']),
        (lambda raw: [path.unlink() for path in raw.rglob('*') if path.is_file()], ['/raw is empty']),
        (lambda raw: (raw / 'HAM10000_metadata.csv').unlink(), ['has no HAM10000_metadata.csv']),
        (
            lambda raw: change_metadata(raw, lambda table: table.drop(columns=['dx', 'lesion_id'])),
            ['HAM10000_metadata.csv', 'lacks the column(s) lesion_id, dx'],
        ),
        (
            lambda raw: change_metadata(raw, lambda table: table.assign(dx=table.dx.replace('df', 'melanoma'))),
            ['unknown diagnosis', 'HAM10000_metadata.csv line 38: ISIC_00240 (melanoma)', '--skip_bad'],
        ),
        (
            lambda raw: change_metadata(raw, lambda table: table[(table.dx != 'df') | (table.lesion_id < 'HAM_0026')]),
            ["Class 'df' has 2 group(s)", '3 splits'],
        ),
        (
            lambda raw: next(raw.rglob('ISIC_00011.jpg')).write_bytes(b''),
            ['ISIC_00011.jpg: the file is empty', '--skip_bad'],
        ),
        (
            lambda raw: next(raw.rglob('ISIC_00110.jpg')).write_bytes(
                next(raw.rglob('ISIC_00110.jpg')).read_bytes()[:400]
            ),
            ['ISIC_00110.jpg: not a readable image', '--skip_bad'],
        ),
    ],
    ids=['missing', 'empty', 'no table', 'columns', 'diagnosis', 'few lesions', 'zero bytes', 'truncated'],
)
def test_bad_raw_files_are_refused_and_named(script, raw, tmp_path, damage, words):
    damage(raw)
    arguments = (PREPARE, f'--raw_dir={raw}', f'--data_dir={tmp_path}/data')
    assert_refused(script('prepare', *arguments), 1, *words)
    assert not list((tmp_path / 'data').rglob('audit.json'))
    if '--skip_bad' in words and 'unknown diagnosis' not in words:
        skipping = script('prepare', *arguments, '--skip_bad')
        assert skipping.status == 0, skipping.stderr
        assert 'skipped: 1' in skipping.stdout
        assert 'images: 83' in skipping.stdout


def test_raw_files_that_a_flag_names_take_the_place_of_those_of_the_config(script, raw, tmp_path):
    flags = (f'--config.dataset.raw_dir={raw}', f'--raw_dir={tmp_path}/nowhere', f'--data_dir={tmp_path}/data')
    assert_refused(script('prepare', PREPARE, *flags), 1, f'There is no {tmp_path}/nowhere')


def test_a_second_prepare_says_that_it_has_nothing_to_do(script, raw, tmp_path):
    arguments = (PREPARE, f'--raw_dir={raw}', f'--data_dir={tmp_path}/data')
    assert 'unchanged' not in script('prepare', *arguments).stdout
    kept = f'The raw files are unchanged: the data prepared in {tmp_path}/data are kept.\n'
    again = script('prepare', *arguments).stdout
    assert 'Audit of HAM10000' in again
    assert again.endswith(kept)
    training = script('train', PREPARE, f'--config.dataset.raw_dir={raw}', *arguments[2:], '--workdir=/dev/null/run')
    assert training.stdout.startswith(kept)  # and no audit again


def test_training_prepares_only_from_sound_raw_files(script, raw, tmp_path):
    next(raw.rglob('ISIC_00011.jpg')).write_bytes(b'')
    flags = (f'--config.dataset.raw_dir={raw}', f'--data_dir={tmp_path}/data', f'--workdir={tmp_path}/run')
    assert_refused(script('train', *SMALL, *flags), 1, 'ISIC_00011.jpg: the file is empty')
    assert not (tmp_path / 'run').exists()


def test_training_needs_a_validation_split(script, raw, tmp_path):
    shares = [
        f'--config.dataset.split_fractions.{name}={share}' for name, share in (('train', 0.85), ('validation', 0.0))
    ]
    flags = (f'--config.dataset.raw_dir={raw}', f'--data_dir={tmp_path}/data', f'--workdir={tmp_path}/run')
    assert_refused(script('train', *SMALL, *shares, *flags), 1, 'has no validation split')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('name', ['prepare', 'train'])
def test_a_set_that_must_be_downloaded_needs_raw_dir(script, tmp_path, name):
    workdir = [f'--workdir={tmp_path}/run'] if name == 'train' else []
    ended = script(name, PREPARE, f'--data_dir={tmp_path}', *workdir)
    assert_refused(ended, 2, 'set config.dataset.raw_dir', 'https://doi.org/10.7910/DVN/DBW86T')


@pytest.mark.parametrize(
    ('flag', 'status', 'words'),
    [
        ('--config.batchsize=8', 2, ["--config.batchsize: the config has no value 'batchsize'", 'batch_size']),
        ('--config.optimizer.lr=8', 2, ["--config.optimizer.lr: the config has no value 'lr'"]),
        ('--config.optimiser.name=sgd', 2, ["--config.optimiser.name: the config has no value 'optimiser'"]),
        ('--config.model.width=8', 2, ["no value 'width'", 'widths']),
        ('--config.batch_size=abc', 2, ['--config.batch_size=abc', 'int']),
        ('--config.batch_size=8.5', 2, ['--config.batch_size=8.5', 'int']),
        ('--config.batch_size=0', 2, ['config.batch_size is 0; it must be at least 1']),
        ('--config.batch_size=18', 2, ['config.batch_size 18 does not divide over 4 devices']),
        ('--config.accumulate_steps=16', 2, ['batch_size 16 does not divide over 4 devices and 16 parts']),
        ('--config.batch_size=512', 1, ['training examples are fewer than one batch of 512']),
        ('--config.steps_per_dispatch=-1', 2, ['config.steps_per_dispatch is -1']),
        ('--config.accumulate_steps=3', 2, ['config.accumulate_steps is 3']),
        ('--config.duration=0epochs', 2, ["config.duration is '0epochs'; it must be a step or more"]),
        ('--config.evaluate_every=0steps', 2, ["config.evaluate_every is '0steps'; it must be a step or more"]),
        ('--config.optimizer.gradient_clip=-1.0', 2, ['config.optimizer.gradient_clip is -1.0']),
        ('--config.schedule.patience=0', 2, ['config.schedule.patience is 0; it must be at least 1']),
        ('--config.precision=float64', 2, ["config.precision is 'float64'; it may be auto, float32, bfloat16"]),
        ('--config.model.name=nope', 2, ["config.model.name is 'nope'; it may be cnn"]),
        ('--config.optimizer.name=nope', 2, ["config.optimizer.name is 'nope'; it may be adam, adamw, sgd"]),
        ('--config.schedule.name=nope', 2, ["config.schedule.name is 'nope'; it may be constant"]),
        ('--config.data.transport=nope', 2, ["config.data.transport is 'nope'; it may be resident, streaming, auto"]),
        ('--config.data.sampling=nope', 2, ["config.data.sampling is 'nope'; it may be uniform or balanced"]),
        ('--config.dataset.name=nope', 2, ["config.dataset.name is 'nope'; it may be ham10000, isic2018"]),
        ('--config.loss.class_weights=nope', 2, ["config.loss.class_weights is 'nope'; it may be none, inverse"]),
        ('--config.monitor.metric=nope', 2, ["config.monitor.metric is 'nope'; it may be loss, accuracy"]),
        ('--config.monitor.mode=nope', 2, ["config.monitor.mode is 'nope'; it must be auto, min or max"]),
        ('--devices=9', 2, ['--devices=9: there are 4 (cpu)']),
        ('--config.precision=float8', 2, ["config.precision is 'float8'"]),
        ('--config.evaluate_every=3weeks', 2, ["'3weeks' is no duration"]),
        ('--config.augment.zoom=3', 2, ['config.augment.zoom']),
        ('--config.task=nope', 2, ["config.task is 'nope'"]),
        ('--config.task=', 2, ['config.task is empty']),
        ('--config.dataset.image_size=3', 2, ['config.dataset.image_size is (3,); write (height, width)']),
        ('--config.model.widths=(8,8,8,8,8)', 2, ['too small to be halved once more', 'config.model.widths']),
        ('--config.model.widths=()', 2, ['config.model.widths is ()', 'there must be stages']),
        ('--config.model.widths=(8,-8)', 2, ['config.model.widths is (8, -8)']),
        ('--config.seed=-1', 2, ['config.seed is -1; it must be from 0 to below 2**32']),
        ('--config.seed=4294967296', 2, ['config.seed is 4294967296; it must be from 0 to below 2**32']),
        ('--workdir=', 2, ['--workdir is empty']),
        ('--config.init_from=nowhere', 2, ["config.init_from is 'nowhere'", 'folder of a run', 'imagenet']),
        ('--nope', 2, ["Unknown command line flag 'nope'"]),
        ('nope', 2, ["unexpected argument 'nope'"]),
    ],
)
def test_bad_flags_are_refused_and_named(script, trained, tmp_path, flag, status, words):
    arguments = (*trained.arguments, f'--workdir={tmp_path}/run')
    kept = [argument for argument in arguments if argument.split('=')[0] != flag.split('=')[0]]
    assert_refused(script('train', *kept, flag), status, *words)


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        ('lesion/configs/nowhere.py', ['lesion/configs/nowhere.py', 'No such file']),
        ('lesion/configs/__init__.py', ["no attribute 'get_config'"]),
        ('lesion/configs/demo.py:nope', ["there is no variant 'nope'; after --config=FILE: it may be cnn, cnn_lstm"]),
    ],
)
def test_an_unknown_config_or_variant_is_refused_and_named(script, trained, tmp_path, config, words):
    flags = [argument for argument in trained.arguments if not argument.startswith('--config=')]
    ended = script('train', f'--config={config}', *flags, f'--workdir={tmp_path}/run')
    assert_refused(ended, 2, *words)
    alone = script('train', f'--config={config}', f'--data_dir={trained.data_dir}', f'--workdir={tmp_path}/run')
    assert alone.status in (1, 2)  # without overrides, the config is only read when it is used
    assert alone.stderr.startswith('error: ')


def test_a_required_flag_is_asked_for(script):
    assert_refused(script('train', '--workdir=run'), 2, '--config must have a value')
    assert_refused(script('evaluate'), 2, '--workdir must have a value')


def test_a_workdir_of_another_config_or_task_is_refused(script, trained, run, tmp_path):
    before = (run / 'config.json').read_bytes()
    other = script('train', *trained.arguments, '--config.seed=3', f'--workdir={run}')
    assert_refused(
        other, 1, f'{run} holds a run of another config', 'config.seed: 0 before, 3 now', 'another --workdir'
    )
    toy = ('--config=tests/toy/configs/toy.py', '--config.task=tests.toy', f'--data_dir={tmp_path}/data')
    assert_refused(script('train', *toy, f'--workdir={run}'), 1, 'config.task: lesion before, tests.toy now')
    assert (run / 'config.json').read_bytes() == before


def test_a_run_notices_that_its_data_set_was_prepared_from_other_files(script, trained, run, raw, tmp_path):
    def other_lesions(table):
        return table.assign(lesion_id=table.groupby('dx').lesion_id.transform(lambda ids: ids.to_numpy()[::-1]))

    change_metadata(raw, other_lesions)
    data = f'--data_dir={tmp_path}/data'
    assert script('prepare', SMALL[0], f'--raw_dir={raw}', data).status == 0
    words = (f'the data set is not the one that {run} was trained on', 'examples', 'Prepare it again')
    assert_refused(script('evaluate', f'--workdir={run}', data), 1, *words)
    again = (*SMALL, f'--config.dataset.raw_dir={raw}', data, f'--workdir={run}')
    assert_refused(script('train', *again), 1, *words)


def test_raw_files_that_changed_do_not_take_the_data_of_a_run_away(script, trained, run, raw, tmp_path):
    data = shutil.copytree(trained.data_dir, tmp_path / 'data')
    flags = (*SMALL, f'--data_dir={data}', f'--config.dataset.raw_dir={raw}')
    change_metadata(raw, lambda table: table[1:])
    assert 'going on from step 40' in script('train', *flags, f'--workdir={run}').stdout
    assert script('evaluate', f'--workdir={run}', f'--data_dir={data}').status == 0
    assert 'instead_of' in script('train', *flags, f'--workdir={tmp_path}/new').stdout  # a new run has the new ones
    assert_refused(script('train', *flags, f'--workdir={run}'), 1, 'the data set is not the one')


def remove_checkpoints(run: pathlib.Path) -> None:
    shutil.rmtree(run / 'checkpoints')


def truncate_checkpoints(run: pathlib.Path) -> None:
    for path in (run / 'checkpoints').glob('*/state/**/d/*'):
        path.write_bytes(path.read_bytes()[:-100])


def change_config(run: pathlib.Path) -> None:
    record = json.loads((run / 'config.json').read_text())
    record['config']['model']['widths'] = [6]
    (run / 'config.json').write_text(json.dumps(record))


def cut_config(run: pathlib.Path) -> None:
    (run / 'config.json').write_text((run / 'config.json').read_text()[:300])


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (shutil.rmtree, ['holds no run']),
        (cut_config, ['config.json is damaged']),
        (remove_checkpoints, ['there is no checkpoint in']),
        (truncate_checkpoints, ['/checkpoints', 'damaged']),
        (change_config, ['belongs to another model', 'float32[8] there, float32[6] here']),
    ],
)
def test_a_damaged_run_is_refused_and_named(script, trained, run, damage, words):
    damage(run)
    assert_refused(script('evaluate', f'--workdir={run}'), 1, str(run), *words)
    image = next(trained.raw_dir.rglob('*.jpg'))
    assert_refused(script('predict', f'--workdir={run}', f'--inputs={image}'), 1, str(run), *words)
    if damage is truncate_checkpoints:
        assert_refused(script('train', *trained.arguments, f'--workdir={run}'), 1, str(run), *words)


def test_an_unknown_split_checkpoint_or_data_folder_is_refused(script, run, tmp_path):
    evaluate = ('evaluate', f'--workdir={run}')
    assert_refused(script('evaluate', '--workdir='), 2, '--workdir is empty')
    assert_refused(script(*evaluate, '--split=nope'), 2, '--split=nope', 'train, validation, test')
    assert_refused(script(*evaluate, '--checkpoint=7'), 1, "no checkpoint '7'", 'there are: best, latest', '40')
    assert_refused(script(*evaluate, f'--against={run}', '--checkpoint=7'), 1, "no checkpoint '7'")
    predict = ('predict', f'--workdir={run}', f'--inputs={tmp_path}', f'--output={tmp_path}/out.csv')
    assert_refused(script(*predict, '--checkpoint=7'), 1, "no checkpoint '7'")
    assert_refused(script(*evaluate, f'--data_dir={tmp_path}'), 1, f'not prepared in {tmp_path}')


def test_predict_names_inputs_that_are_missing_or_unreadable(script, trained, run, tmp_path):
    photos, empty = tmp_path / 'photos', tmp_path / 'empty'
    photos.mkdir()
    empty.mkdir()
    (photos / 'broken.jpg').write_bytes(b'no image')
    (empty / 'notes.txt').write_text('no image')
    predict = ('predict', f'--workdir={run}', f'--output={tmp_path}/out.csv')
    for inputs in (f'{photos}/*.png', f'{photos}/broken.jpg,{photos}/*.png'):
        assert_refused(script(*predict, f'--inputs={inputs}'), 1, f'no file matches --inputs={photos}/*.png')
    for inputs in (f'{photos}/*.jpg', photos):
        assert_refused(script(*predict, f'--inputs={inputs}'), 1, f'{photos}/broken.jpg', 'not a readable image')
    assert_refused(script(*predict, f'--inputs={empty}'), 1, f'{empty} holds no image')
    assert not (tmp_path / 'out.csv').exists()
    shutil.copy(next(trained.raw_dir.rglob('*.jpg')), photos / 'sound.jpg')
    shutil.copy(photos / 'sound.jpg', tmp_path / 'photo [1].jpg')  # a pattern by its looks
    assert script(*predict, f'--inputs={tmp_path}/photo [1].jpg').status == 0
    ended = script(*predict, f'--inputs={photos}')
    assert ended.status == 0
    assert f'not predicted, 1:\n  {photos}/broken.jpg: not a readable image' in ended.stdout
    assert pd.read_csv(tmp_path / 'out.csv').image.tolist() == ['sound']


def test_predict_refuses_an_output_that_cannot_be_written_before_it_works(script, trained, run, tmp_path):
    (tmp_path / 'file').touch()
    predict = ('predict', f'--workdir={run}', f'--inputs={trained.raw_dir}')
    with mock.patch('common.evaluation.predict.restore_all', side_effect=AssertionError('too late')):
        assert_refused(script(*predict, f'--output={tmp_path}'), 2, f'--output={tmp_path} cannot be written')
        assert_refused(script(*predict, f'--output={tmp_path}/file/p.csv'), 2, 'its folder cannot be made')


def test_errors_reach_the_shell_as_one_sentence_and_a_status(trained, run, tmp_path):
    """The same through real processes, all at once."""
    workdir = f'--workdir={tmp_path}/new'
    cases = [
        (('train', *SMALL, '--config.batchsize=8', workdir), 2, "no value 'batchsize'"),
        (('train', *SMALL, f'--config.dataset.raw_dir={tmp_path}/none', f'--data_dir={tmp_path}', workdir), 1, '/none'),
        (('train', *trained.arguments, '--config.seed=3', f'--workdir={run}'), 1, 'config.seed: 0 before, 3 now'),
        (('evaluate', f'--workdir={tmp_path}/new'), 1, 'holds no run'),
        (('evaluate', f'--workdir={run}', '--checkpoint=7'), 1, "no checkpoint '7'"),
    ]
    processes = [start_script(*arguments) for arguments, _, _ in cases]
    for process, (_, status, words) in zip(processes, cases, strict=True):
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == status, stderr
        assert stderr.startswith('error: ')
        assert words in stderr
        assert 'Traceback' not in stderr


def test_a_warning_is_a_line(trained, tmp_path):
    flags = (*trained.arguments, '--config.duration=1steps', '--config.schedule.warmup=0steps')
    process = start_script('train', *flags, '--config.loss.class_weights=inverse', f'--workdir={tmp_path}/run')
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stderr.startswith('warning: rare classes are favoured twice')
    assert stderr.count('\n') == 1
