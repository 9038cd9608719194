"""The stocks task through the launch scripts: trained, judged, walked forward, applied to a new file."""

import json
import os

import numpy as np
import pandas as pd
import pytest

from common.processor import cores
from common.training.loop import Outcome, Progress
from tests.conftest import start_script

SMALL = (
    '--config.dataset.window=10',
    '--config.model.hidden_size=4',
    '--config.duration=4steps',
    '--config.evaluate_every=2steps',
    '--config.steps_per_dispatch=2',
    '--config.schedule.warmup=0steps',
    '--config.batch_size=32',
)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp('stocks')
    return home / 'data', home / 'runs'


@pytest.mark.parametrize('variant', ['returns', 'per_ticker'])
def test_demo_prices_are_trained_judged_and_forecast(script, folders, tmp_path, variant):
    data, runs = folders
    run = runs / variant
    flags = [f'--config=stocks/configs/demo.py:{variant}', *SMALL, f'--data_dir={data}', f'--workdir={run}']
    ended = script('train', *flags)
    assert ended.status == 0, ended.stderr
    ended = script('evaluate', f'--workdir={run}')
    assert ended.status == 0, ended.stderr
    metrics = json.loads((run / 'evaluation/test/metrics.json').read_text())
    for name in ('mse_scaled', 'rmse', 'mae', 'mape', 'directional_accuracy'):
        assert metrics[f'naive_{name}'] > 0
    table = pd.read_csv(run / 'evaluation/test/predictions.csv')
    assert list(table) == ['ticker', 'date', 'target_date', 'last_close', 'actual', 'predicted', 'lower_90', 'upper_90']
    assert len(table) == metrics['examples']
    page = (run / 'evaluation/test/report.html').read_text()
    assert 'no financial advice' in page
    assert metrics['verdict'] in page
    assert {path.name for path in (run / 'evaluation/test').glob('*.png')} == {
        'forecasts.png',
        'residuals.png',
        'skill_by_ticker.png',
        'returns.png',
        'learning_curves.png',
    }
    days = pd.bdate_range('2013-03-04', periods=12)
    close = 200 + np.arange(12.0)
    prices = {'Date': days, 'Open': close, 'High': close + 1, 'Low': close - 1, 'Close': close, 'Volume': 1e6}
    pd.DataFrame(prices).to_csv(tmp_path / 'IBM.csv', index=False)
    ended = script('predict', f'--workdir={run}', f'--inputs={tmp_path}/IBM.csv', f'--output={tmp_path}/next.csv')
    assert ended.status == 0, ended.stderr
    assert pd.read_csv(tmp_path / 'next.csv')['ticker'].tolist() == ['IBM']


def test_runs_that_forecast_other_tickers_are_not_averaged(script, folders, tmp_path):
    for own in (False, True):
        one = ('--config.dataset.tickers=IBM', f'--config.per_ticker={own}')
        flags = ['--config=stocks/configs/demo.py:returns', *SMALL, f'--data_dir={folders[0]}']
        assert script('train', *flags, *one, f'--workdir={tmp_path}/{own}').status == 0
    for ticker in ('IBM', 'NEW'):
        days, close = pd.bdate_range('2013-03-04', periods=12), 200 + np.arange(12.0)
        prices = {'Date': days, 'Open': close, 'High': close + 1, 'Low': close - 1, 'Close': close, 'Volume': 1e6}
        pd.DataFrame(prices).to_csv(tmp_path / f'{ticker}.csv', index=False)
    predict = ('predict', f'--workdir={tmp_path}/False,{tmp_path}/True', f'--output={tmp_path}/next.csv')
    assert script(*predict, f'--inputs={tmp_path}/IBM.csv').status == 0
    ended = script(*predict, f'--inputs={tmp_path}/IBM.csv,{tmp_path}/NEW.csv')
    assert ended.status == 2
    assert f'{tmp_path}/True and {tmp_path}/False cannot be averaged' in ended.stderr


def test_a_training_divides_the_cpu_by_itself_and_so_does_walking_forward(script, folders, tmp_path):
    data, _ = folders
    flags = ['--config=stocks/configs/demo.py', *SMALL, f'--data_dir={data}', f'--workdir={tmp_path}/run']
    assert script('prepare', flags[0], f'--data_dir={data}').status == 0
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    forward = ('evaluate', f'--workdir={tmp_path}/run', '--walk_forward=1')
    for command, place in ((('train', *flags), 'run'), (forward, 'run/walk_forward/1-of-1')):
        process = start_script(*command, env=environment)
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
        devices = json.loads((tmp_path / place / 'config.json').read_text())['environment']['devices']
        assert len(devices) == min(cores(), 2)  # 16 of 32 rows each


def test_walking_forward_trains_and_judges_every_period(script, folders, monkeypatch):
    data, runs = folders
    run = runs / 'walked'
    flags = ['--config=stocks/configs/demo.py:returns', *SMALL, f'--data_dir={data}', f'--workdir={run}']
    assert script('train', *flags).status == 0
    ended = script('evaluate', f'--workdir={run}', '--walk_forward=2', '--split=test')
    assert (ended.status, 'without --split' in ended.stderr) == (2, True)
    with monkeypatch.context() as interrupted:
        interrupted.setattr('common.training.folds.train', lambda *_: Outcome('interrupted', 1, Progress(), 130))
        ended = script('evaluate', f'--workdir={run}', '--walk_forward=2')
        assert 'interrupted in period 1 of 2; the same command goes on from there' in ended.stderr
    assert not (run / 'walk_forward' / '1-of-2' / 'evaluation').exists()
    record = json.loads((run / 'config.json').read_text())
    (run / 'config.json').write_text(json.dumps(record | {'data_dir': str(runs / 'moved')}))
    ended = script('evaluate', f'--workdir={run}', '--walk_forward=2', f'--data_dir={data}')
    assert ended.status == 0, ended.stderr
    periods = json.loads((run / 'walk_forward/metrics.json').read_text())
    assert len(periods) == 2
    tables = [pd.read_csv(run / f'walk_forward/{k}-of-2/evaluation/test/predictions.csv') for k in (1, 2)]
    assert tables[0]['date'].max() < tables[1]['date'].min()
    page = (run / 'walk_forward/report.html').read_text()
    assert 'no financial advice' in page
    assert all(f'<td>{period["rmse"]:.3f}</td>' in page for period in periods)
    assert all(f'<td>{len(table):,}</td>' in page for table in tables)
