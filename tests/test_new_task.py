"""Adding a task takes one new package of three files and a config, and no change in the frame."""

import json
import pathlib
import shutil

import numpy as np
import pandas as pd
import pytest

TOY = pathlib.Path(__file__).parent / 'toy'


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The toy package as a stranger's, in a folder of its own outside of the toolkit."""
    package = tmp_path / 'points'
    shutil.copytree(TOY, package, ignore=shutil.ignore_patterns('__pycache__'))
    config = package / 'configs' / 'toy.py'
    config.write_text(config.read_text().replace("config.task = 'toy'", "config.task = 'points'"))
    assert {path.name for path in package.glob('*.py')} == {'__init__.py', 'datasets.py', 'models.py', 'task.py'}
    monkeypatch.syspath_prepend(tmp_path)
    return package


def test_a_new_task_is_prepared_trained_evaluated_and_applied_by_the_scripts(package, script, tmp_path):
    flags = (f'--config={package}/configs/toy.py', f'--data_dir={tmp_path}/data')
    workdir = tmp_path / 'run'
    trained = script(
        'train', *flags, f'--workdir={workdir}', '--config.duration=20epochs', '--config.model.dropout=0.0'
    )
    assert trained.status == 0, trained.stderr
    assert 'complete at step 240' in trained.stdout
    assert script('evaluate', f'--workdir={workdir}').status == 0
    metrics = json.loads((workdir / 'evaluation' / 'test' / 'metrics.json').read_text())
    assert metrics['examples'] == 30

    points = pd.read_csv(tmp_path / 'data' / 'toy' / 'points.csv')
    test = points[points.split == 'test'].reset_index(drop=True)
    assert metrics['mae'] < 0.9 * (test.y - points[points.split == 'train'].y.mean()).abs().mean()

    test.drop(columns='y').to_csv(tmp_path / 'new.csv', index=False)
    applied = script(
        'predict', f'--workdir={workdir}', f'--inputs={tmp_path}/new.csv', f'--output={tmp_path}/predicted.csv'
    )
    assert applied.status == 0, applied.stderr
    predicted = pd.read_csv(tmp_path / 'predicted.csv')
    evaluated = pd.read_csv(workdir / 'evaluation' / 'test' / 'predictions.csv')
    np.testing.assert_allclose(predicted.predicted, evaluated.predicted, atol=1e-6)
    assert (predicted.predicted - test.y).abs().mean() == pytest.approx(metrics['mae'], abs=1e-5)


def test_bad_rows_of_a_new_task_are_refused_or_skipped(package, script, tmp_path):
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / 'points.csv').write_text('x0,x1,x2,group,y,split\n1,2,3,0,0.5,train\n1,2,3,0,,train\n')
    flags = (f'--config={package}/configs/toy.py', f'--raw_dir={tmp_path}/raw', f'--data_dir={tmp_path}/data')
    refused = script('prepare', *flags)
    assert refused.status == 1
    assert 'points.csv line 3' in refused.stderr
    assert not list((tmp_path / 'data').rglob('points.csv'))
    assert script('prepare', *flags, '--skip_bad').status == 0
    assert list((tmp_path / 'data').rglob('points.csv'))
