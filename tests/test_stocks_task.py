"""The stocks task from files to report: losses, members, new files, and what the report writes."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from common.errors import DataError, UsageError
from common.evaluation.report.page import write_page
from common.findings import Evidence
from common.training.setup import make_training
from stocks.configs import demo, prices
from stocks.data.csv_files import COLUMNS
from stocks.data.panel import feature_values
from stocks.evaluation import intervals
from stocks.evaluation.forecast_metrics import diebold_mariano, skill, skill_interval
from stocks.task import TASK, Stocks
from tests.test_stocks_panel import config_of, random_history


def write_csv(path, history):
    table = pd.DataFrame(history.values, columns=list(COLUMNS))
    table.insert(0, 'Date', history.dates)
    table.to_csv(path, index=False)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """Folder of prepared prices of 24 tickers."""
    root = tmp_path_factory.mktemp('stocks')
    (root / 'raw').mkdir()
    for number in range(24):
        write_csv(root / 'raw' / f'T{number:02}.csv', random_history(f'T{number:02}', rows=300))
    config = config_of()
    audit = TASK.prepare(config, root / 'raw', root / 'data', skip_bad=False)
    assert audit.counts['tickers'] == 24
    assert TASK.is_prepared(config, root / 'data')
    return root / 'data'


def task_and_data(prepared, *args, **changes):
    config = config_of(*args, **changes)
    dataset = Stocks.load(config, prepared)
    return Stocks(config, json.loads(json.dumps(dataset.info))), dataset


def as_predictions(task, split, forecast):
    """What a model would have said to forecast these prices."""
    last_close = split.records['last_close'].to_numpy()
    return {'forecast': task._target_scaler(split).scaled(np.asarray(forecast, float), last_close)[:, None]}


def report_of(task, predictions, split, directory, calibration=None):
    """What goes into metrics.json."""
    evidence = Evidence(predictions=predictions, split=split, calibration=calibration, directory=directory)
    return task.report(evidence).metrics


def test_the_report_of_the_naive_forecast_has_no_skill_and_says_so(prepared, tmp_path):
    task, dataset = task_and_data(prepared, 'log_return', 'relative')
    said = {name: as_predictions(task, split, split.records['last_close']) for name, split in dataset.splits.items()}
    calibration = (said['validation'], dataset.splits['validation'])
    report = report_of(task, said['test'], dataset.splits['test'], tmp_path, calibration)
    assert report['skill'] == 0
    assert report['rmse'] == report['naive_rmse']
    assert report['diebold_mariano'] == {'statistic': 0.0, 'p_value': 1.0}
    assert 'repeats the last close' in report['repetition']['sentence']
    assert report['rank_information_coefficient'] is None
    assert 0.75 < report['coverage_90'] <= 1
    assert len(report['tickers']) == 24
    json.dumps(report, allow_nan=False)
    table = pd.read_csv(tmp_path / 'predictions.csv')
    assert list(table) == ['ticker', 'date', 'target_date', 'last_close', 'actual', 'predicted', 'lower_90', 'upper_90']
    assert len(table) == len(dataset.splits['test'])
    inside = (table['lower_90'] <= table['actual']) & (table['actual'] <= table['upper_90'])
    assert inside.mean() == pytest.approx(report['coverage_90'], abs=1e-3)
    assert {path.name for path in tmp_path.iterdir()} == {'predictions.csv', 'tickers.csv'}


def test_the_report_tells_a_seer_from_the_baselines(prepared, tmp_path):
    task, dataset = task_and_data(prepared)
    split = dataset.splits['test']
    records = split.records
    forecast = records['last_close'] + 0.5 * (records['actual'] - records['last_close'])
    report = report_of(task, as_predictions(task, split, forecast), split, tmp_path)
    assert report['skill'] == pytest.approx(0.5)
    assert report['intervals_95']['skill'] == pytest.approx([0.5, 0.5])
    assert report['mse_scaled'] == pytest.approx(report['naive_mse_scaled'] / 4)
    assert report['diebold_mariano']['p_value'] < 0.01
    assert report['rank_information_coefficient']['mean'] == pytest.approx(1)
    assert report['prediction_intervals'] == {}
    assert pd.read_csv(tmp_path / 'predictions.csv')['lower_90'].isna().all()
    metrics = task.metrics(as_predictions(task, split, forecast), split)
    assert metrics['skill'] == pytest.approx(report['skill'])
    assert metrics['rmse'] == pytest.approx(report['rmse'])


def test_the_report_is_of_every_forecast_and_ticker_by_itself(prepared, tmp_path):
    task, dataset = task_and_data(prepared, window=10, horizon=5)
    split, horizon = dataset.splits['test'], task.config.dataset.horizon
    records = split.records.astype({'ticker': str})
    random = np.random.default_rng(0)
    forecast = records['last_close'] + random.uniform(0, 1, len(records)) * (records['actual'] - records['last_close'])
    said = as_predictions(task, split, forecast)
    report = report_of(task, said, split, tmp_path)
    forecast = pd.Series(task.prices(said, split))

    def errors_of(prices, rows):
        return ((prices[rows.index] - rows['actual']) / rows['last_close']).to_numpy()

    naive = errors_of(records['last_close'], records)
    for name in ('drift', 'autoregression'):
        figures = report['forecasts'][name]
        assert figures['mae'] == pytest.approx(np.mean(np.abs(records[name] - records['actual'])))
        expected = skill(errors_of(records[name], records), naive)
        assert (figures['skill'], report[f'skill_of_{name}']) == pytest.approx((expected, expected))
    assert task.metrics(said, split)['skill'] == pytest.approx(report['skill'])
    table = pd.read_csv(tmp_path / 'tickers.csv', index_col='ticker')
    for ticker, rows in records.groupby('ticker'):
        errors, naive = errors_of(forecast, rows), errors_of(records['last_close'], rows)
        found, days = report['tickers'][ticker], rows['date'].to_numpy()
        assert found['rmse'] == pytest.approx(np.sqrt(np.mean((forecast[rows.index] - rows['actual']) ** 2)))
        assert found['skill_interval_95'] == pytest.approx(skill_interval(errors, naive, days, horizon=horizon))
        assert found['diebold_mariano'] == pytest.approx(diebold_mariano(errors, naive, days, horizon=horizon))
        assert table.loc[ticker, ['skill_low', 'skill_high']].to_list() == pytest.approx(
            found['skill_interval_95'], rel=1e-4
        )


def test_intervals_are_calibrated_on_the_validation_split(prepared, tmp_path):
    task, dataset = task_and_data(prepared)
    test, validation = dataset.splits['test'], dataset.splits['validation']
    said = as_predictions(task, test, test.records['last_close'])
    off = as_predictions(task, validation, 1.5 * validation.records['last_close'])
    report = report_of(task, said, test, tmp_path, (off, validation))
    widths = intervals.calibrate(intervals.scores(validation.records, task.prices(off, validation)))
    expected = intervals.coverage(test.records, task.prices(said, test), widths)
    assert report['prediction_intervals'] == expected
    assert report['coverage_80'] == 1  # by a model that was far off before


def test_of_each_metric_the_better_is_what_it_is_said_to_be(prepared):
    task, dataset = task_and_data(prepared)
    split = dataset.splits['test']
    last_close, actual = split.records['last_close'], split.records['actual']
    forecasts = (last_close * (actual / last_close) ** power for power in (0.5, -0.5))
    good, bad = (task.metrics(as_predictions(task, split, forecast), split) for forecast in forecasts)
    assert {name: 'max' if good[name] > bad[name] else 'min' for name in Stocks.better} == Stocks.better


def test_the_page_of_the_validation_split_does_without_coverage(prepared, tmp_path):
    task, dataset = task_and_data(prepared)
    split = dataset.splits['validation']
    said = as_predictions(task, split, split.records['last_close'])
    evidence = Evidence(predictions=said, split=split, calibration=None, directory=tmp_path)
    report = task.report(evidence)
    assert 'coverage_90' not in report.metrics
    assert write_page(report, tmp_path, title='', subtitle='', notice='').exists()


@pytest.mark.parametrize(
    ('still', 'days', 'said'), [(True, 60, 'never wrong'), (False, 1, 'too few days'), (False, 60, 'cannot be told')]
)
def test_prices_that_stand_still_and_single_days_are_judged_as_what_they_are(prepared, tmp_path, still, days, said):
    task, dataset = task_and_data(prepared, tickers=('T03',))
    whole = dataset.splits['train']
    records = whole.records[:days]
    if still:
        records = records.assign(actual=100.0, last_close=100.0)
    split = dataclasses.replace(whole, columns={n: c[:days] for n, c in whole.columns.items()}, records=records)
    shaken = records['last_close'] * np.random.default_rng(0).normal(1, 1e-4, days)
    report = report_of(task, as_predictions(task, split, shaken), split, tmp_path)
    assert said in report['verdict']
    assert ('No price moved' in report['repetition']['sentence']) == still
    assert (report['directional_accuracy'] is None) == still
    assert set(report['intervals_95']) == ({'skill'} if said == 'cannot be told' else set())
    assert pd.read_csv(tmp_path / 'tickers.csv')['skill_low'].isna().all() == (said != 'cannot be told')
    json.dumps(report, allow_nan=False)


def test_scaled_error_is_the_loss_of_training(prepared, tmp_path):
    task, dataset = task_and_data(prepared)
    split = dataset.splits['validation']
    outputs = np.random.default_rng(0).normal(0.5, 0.1, (len(split), 1)).astype(np.float32)
    loss = task.loss(jnp.asarray(outputs), {'target': split.columns['target']}, train=False)
    report = report_of(task, {'forecast': outputs}, split, tmp_path)
    assert report['mse_scaled'] == pytest.approx(float(loss.mean()), rel=1e-4)


def test_each_loss_is_least_at_its_own_middle(prepared):
    target = np.random.default_rng(1).exponential(size=4001).astype(np.float32)
    grid = np.linspace(0, 4, 401, dtype=np.float32)
    task, dataset = task_and_data(prepared)

    def best(name, column=0, **changes):
        task.config.loss.update({'name': name, **changes})
        fresh = Stocks(task.config, dataset.info)
        width = max(len(fresh._quantiles), 1)
        sums = [
            fresh.loss(jnp.full((len(target), width), 5.0).at[:, column].set(value), {'target': target}, False).mean()
            for value in grid
        ]
        return grid[int(np.argmin(sums))]

    assert best('mse') == pytest.approx(target.mean(), abs=0.01)
    assert best('huber', delta=1e-4) == pytest.approx(np.median(target), abs=0.02)
    assert best('quantile', 2, quantiles=(0.1, 0.5, 0.9)) == pytest.approx(np.quantile(target, 0.9), abs=0.03)


def test_quantiles_forecast_by_their_median_and_report_what_lies_below(prepared, tmp_path):
    task, dataset = task_and_data(prepared)
    task.config.loss.name = 'quantile'
    task = Stocks(task.config, dataset.info)
    split = dataset.splits['test']
    target = split.columns['target'][:, None]
    predictions = {'forecast': target + np.array([-1.0, 0.0, 1.0], np.float32)}
    np.testing.assert_allclose(task.prices(predictions, split), split.records['actual'], rtol=1e-5)
    report = report_of(task, predictions, split, tmp_path)
    assert report['share_below_quantile'] == {'0.05': 0.0, '0.5': 1.0, '0.95': 1.0}
    assert task.model().num_outputs == 3
    task.config.loss.quantiles = (0.1, 0.9)
    with pytest.raises(UsageError, match=r'must hold 0\.5'):
        Stocks(task.config, dataset.info)


def test_members_part_the_split_by_ticker(prepared):
    task, dataset = task_and_data(prepared)
    split = dataset.splits['train']
    assert task.members(split) is None
    task.config.update({'per_ticker': True, 'batch_size': 32})
    rows = task.members(split)
    assert len(rows) == 24
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(len(split)))
    for ticker, chosen in zip(dataset.info['tickers'], rows, strict=True):
        assert set(split.records['ticker'].iloc[chosen]) == {ticker}


def test_a_ticker_too_short_for_a_model_of_its_own_is_named(prepared):
    task, dataset = task_and_data(prepared)
    task.config.update({'per_ticker': True, 'batch_size': 100})
    split = dataset.splits['train']
    rows = np.setdiff1d(np.arange(len(split)), task.members(split)[3][95:])
    columns = {name: column[rows] for name, column in split.columns.items()}
    with pytest.raises(DataError, match=r'batch of 100 training examples .* T03 has 95: lower config\.batch_size'):
        task.members(dataclasses.replace(split, columns=columns, records=split.records.iloc[rows]))
    assert len(task.members(dataset.splits['validation'])[3]) < 100


def test_the_first_forecast_of_a_return_is_the_naive_one(prepared):
    task, dataset = task_and_data(prepared, 'log_return', 'relative')
    split = dataset.splits['train']
    batch = {name: jnp.asarray(column[:8]) for name, column in split.columns.items()}
    batch = task.preprocess(batch, dataset.tables, None)
    model = task.model()
    variables = model.init(jax.random.key(0), batch['inputs'])
    outputs = model.apply(variables, batch['inputs'])
    assert outputs.shape == (8, 1)
    np.testing.assert_array_equal(outputs, 0)
    gradient = jax.grad(lambda v: task.loss(model.apply(v, batch['inputs']), batch, True).mean())(variables)
    assert np.abs(gradient['params']['head']['kernel']).max() > 0


def test_precision_is_what_the_config_says_and_float32_where_it_says_nothing(prepared):
    task, dataset = task_and_data(prepared)
    split = dataset.splits['train']
    batch = {name: jnp.asarray(column[:8]) for name, column in split.columns.items()}
    inputs = task.preprocess(batch, dataset.tables, None)['inputs']
    variables = task.model().init(jax.random.key(0), inputs)
    variables['params']['head']['kernel'] += 0.1
    said = {}
    for precision in ('auto', 'float32', 'bfloat16'):
        task.config.precision = precision
        said[precision] = task.model().apply(variables, inputs)
        assert said[precision].dtype == jnp.float32
    np.testing.assert_array_equal(said['auto'], said['float32'])
    np.testing.assert_allclose(said['bfloat16'], said['float32'], atol=0.03)
    assert not np.array_equal(said['bfloat16'], said['float32'])
    task.config.precision = 'half'
    with pytest.raises(UsageError, match=r"config\.precision is 'half'"):
        task.model()


def test_tables_keep_the_digits_of_prices_far_below_a_cent(tmp_path):
    (tmp_path / 'raw').mkdir()
    history = random_history('A', rows=300)
    cheap = history.values * np.where(np.array(COLUMNS) == 'Volume', 1, 1e-7)
    write_csv(tmp_path / 'raw' / 'A.csv', dataclasses.replace(history, values=cheap))
    TASK.prepare(config_of(), tmp_path / 'raw', tmp_path / 'data', skip_bad=False)
    task, dataset = task_and_data(tmp_path / 'data', 'log_return', 'relative')
    split = dataset.splits['test']
    said = as_predictions(task, split, split.records['last_close'])
    report_of(task, said, split, tmp_path)
    task.write_predictions(said, split, tmp_path / 'next.csv')
    for name in ('predictions', 'next'):
        table = pd.read_csv(tmp_path / f'{name}.csv')
        np.testing.assert_allclose(table['predicted'], split.records['last_close'], rtol=1e-8)


@pytest.mark.parametrize(('target', 'scaler'), [('price', 'minmax'), ('log_return', 'relative')])
def test_new_files_are_treated_as_prepared_ones(prepared, tmp_path, target, scaler):
    task, dataset = task_and_data(prepared, target, scaler)
    history, split = random_history('T03', rows=300), dataset.splits['test']
    row = np.flatnonzero(split.columns['ticker'] == 3)[-1]
    cut = int(np.flatnonzero(history.dates == split.records['date'].iloc[row].to_datetime64())[0]) + 1
    shorter = type(history)(ticker='T03', dates=history.dates[:cut], values=history.values[:cut])
    write_csv(tmp_path / 'T03.csv', shorter)
    inputs = task.read_inputs([tmp_path / 'T03.csv'])
    new = task.preprocess(inputs.columns, {}, None)['inputs']
    old = task.preprocess({'day': jnp.asarray(split.columns['day'][row : row + 1])}, dataset.tables, None)['inputs']
    np.testing.assert_array_equal(new, old)
    task.write_predictions({'forecast': np.zeros((1, 1), np.float32)}, inputs, tmp_path / 'out.csv')
    table = pd.read_csv(tmp_path / 'out.csv')
    assert list(table) == ['ticker', 'date', 'last_close', 'predicted']
    assert table['date'].tolist() == [str(history.dates[cut - 1])]
    closes = feature_values(history, task.config.dataset)[:, 3]
    assert table['last_close'][0] == pytest.approx(closes[cut - 1])
    lowest = closes[history.dates <= np.datetime64(dataset.info['periods']['train'][1])].min()
    assert table['predicted'][0] == pytest.approx(lowest if target == 'price' else closes[cut - 1])


def test_a_ticker_never_seen_has_no_scaler_but_a_relative_one(prepared, tmp_path):
    write_csv(tmp_path / 'NEW.csv', random_history('NEW', rows=100))
    task, _ = task_and_data(prepared)
    with pytest.raises(DataError, match='NEW was not in training, so its minmax scaler was never fitted'):
        task.read_inputs([tmp_path / 'NEW.csv'])
    task, _ = task_and_data(prepared, 'log_return', 'relative')
    split = task.read_inputs([tmp_path / 'NEW.csv'])
    assert task.prices({'forecast': np.zeros((1, 1))}, split) == pytest.approx(split.records['last_close'].to_numpy())
    task.config.per_ticker = True
    with pytest.raises(DataError, match='no model of its own'):
        task.read_inputs([tmp_path / 'NEW.csv'])


def test_files_that_cannot_be_forecast_from_are_named(prepared, tmp_path):
    task, _ = task_and_data(prepared)
    write_csv(tmp_path / 'T01.csv', random_history('T01', rows=15))
    with pytest.raises(DataError, match='T01 has 15 rows; the window of the model needs 20'):
        task.read_inputs([tmp_path / 'T01.csv'])
    (tmp_path / 'T02.csv').write_text('404 Not Found')
    with pytest.raises(DataError, match=r'T02\.csv: its first line'):
        task.read_inputs([tmp_path / 'T02.csv'])
    with pytest.raises(DataError, match=r'T04\.csv cannot be read'):
        task.read_inputs([tmp_path / 'T04.csv'])
    (tmp_path / 'T05.csv').write_text('Date,Open,High,Low,Close,Volume\n')
    with pytest.raises(DataError, match=r'nothing can be predicted from these inputs:\n.*T05\.csv has no usable row'):
        task.read_inputs([tmp_path / 'T05.csv'])
    (tmp_path / 'yf.csv').write_text('Price,Close,High,Low,Open\nTicker,T06,T06,T06,T06\nDate,,,,\n2020-01-02,,,,\n')
    with pytest.raises(DataError, match=r'yf\.csv: T06 has no usable row'):
        task.read_inputs([tmp_path / 'yf.csv'])


@pytest.mark.parametrize('form', ['folder', 'zip', 'files'])
def test_tickers_that_cannot_be_forecast_hold_up_no_others(prepared, tmp_path, capsys, form):
    folder = tmp_path / 'inputs'
    folder.mkdir()
    for ticker, rows in (('T01', 15), ('T02', 100), ('NEW', 100), ('T04', 100)):
        write_csv(folder / f'{ticker}.csv', random_history(ticker, rows=rows))
    (folder / 'T05.csv').write_text('Date,Open,High,Low,Close,Volume\n')
    (folder / 'notes.md').write_text('not prices')
    shutil.make_archive(str(folder), 'zip', folder)
    paths = {'folder': [folder], 'zip': [tmp_path / 'inputs.zip'], 'files': sorted(folder.glob('*.csv'))}
    task, _ = task_and_data(prepared)
    split = task.read_inputs(paths[form])
    assert split.records['ticker'].tolist() == ['T02', 'T04']
    assert split.columns['ticker'].tolist() == [2, 4]
    said = capsys.readouterr().out
    assert 'not predicted, 3:' in said
    for reason in ('T05.csv has no usable row', 'NEW was not in training', 'T01 has 15 rows; the window'):
        assert reason in said
    task.write_predictions({'forecast': np.zeros((2, 1), np.float32)}, split, tmp_path / 'p.csv')
    assert len(pd.read_csv(tmp_path / 'p.csv')) == 2


def written(path, column, value, rows):
    """A file of prices with that value in some rows, 0 being row 2 of the file."""
    write_csv(path, random_history(path.stem, rows=100))
    table = pd.read_csv(path)
    table.loc[rows, column] = value
    table.to_csv(path, index=False)
    return table


@pytest.mark.parametrize(
    ('column', 'value', 'said'), [('Volume', np.nan, 'rows with blanks'), ('High', 1e-3, 'rows whose High is below')]
)
def test_a_forecast_from_before_the_end_of_its_file_says_so(prepared, tmp_path, capsys, column, value, said):
    table = written(tmp_path / 'T02.csv', column, value, range(90, 100))
    task, _ = task_and_data(prepared)
    day, last = table['Date'][89], table['Date'][99]
    with pytest.warns(UserWarning, match=rf'^T02 is forecast from {day}, though .*T02\.csv goes on to {last}$'):
        split = task.read_inputs([tmp_path / 'T02.csv'])
    assert split.records['date'].astype(str).tolist() == [day]
    printed = capsys.readouterr().out
    assert 'T02, rows left out:' in printed
    assert f'10 {said}' in printed
    assert f'T02.csv row 92: {column} is' in printed


def test_old_rows_with_faults_are_left_out_and_named(prepared, tmp_path, capsys, recwarn):
    written(tmp_path / 'T02.csv', 'Open', 0.0, [50])
    write_csv(tmp_path / 'T04.csv', random_history('T04', rows=100))
    (tmp_path / 'other').mkdir()
    write_csv(tmp_path / 'other' / 'T04.csv', random_history('T04', rows=90))
    (tmp_path / 'T05.csv').write_text('404 Not Found')
    task, _ = task_and_data(prepared)
    split = task.read_inputs([*sorted(tmp_path.glob('*.csv')), tmp_path / 'other'])
    assert split.records['ticker'].tolist() == ['T02', 'T04']
    printed = capsys.readouterr().out
    assert 'T02, rows left out:\n  1 rows with a price of zero or less\n' in printed
    assert 'T02.csv row 52: Open is 0.0' in printed
    assert 'not predicted, 2:' in printed
    assert "T05.csv: its first line, '404 Not Found', has no" in printed
    assert f'other/T04.csv: T04 has other rows in {tmp_path}/T04.csv, which is used' in printed
    assert not len(recwarn)


@pytest.mark.parametrize('change', [{'window': 25}, {'horizon': 2}, {'target': 'log_return'}])
def test_runs_of_other_windows_and_targets_are_not_averaged(prepared, change):
    (here, _), (there, _) = task_and_data(prepared), task_and_data(prepared, **change)
    assert here.meaning() != there.meaning()


def test_runs_of_other_quantiles_are_not_averaged(prepared):
    meanings = []
    for quantiles in ((0.1, 0.5, 0.9), (0.25, 0.5, 0.75)):
        config = config_of()
        config.loss.name, config.loss.quantiles = 'quantile', quantiles
        meanings.append(Stocks(config, Stocks.load(config, prepared).info).meaning())
    assert meanings[0] != meanings[1]


def test_walk_forward_gives_one_config_a_fold(prepared):
    config = config_of(split_fractions=(0.5, 0.2, 0.3))
    folds = Stocks.walk_forward(config, prepared, 2)
    assert len(folds) == 2
    assert config.dataset.split_dates == ()
    sizes = [len(Stocks.load(fold, prepared).splits['train']) for fold in folds]
    assert sizes[0] < sizes[1]


def test_walk_forward_goes_by_the_chosen_tickers_alone(tmp_path):
    (tmp_path / 'raw').mkdir()
    write_csv(tmp_path / 'raw' / 'A.csv', random_history('A', rows=300))
    write_csv(tmp_path / 'raw' / 'B.csv', random_history('B', rows=600))
    config = config_of(tickers=('A',))
    TASK.prepare(config, tmp_path / 'raw', tmp_path / 'data', skip_bad=False)
    (fold,) = Stocks.walk_forward(config, tmp_path / 'data', 1)
    periods = Stocks.load(config, tmp_path / 'data').info['periods']
    assert fold.dataset.split_dates == tuple(period[1] for period in periods.values())


@pytest.mark.parametrize('variant', prices.VARIANTS)
def test_every_variant_is_a_config(variant):
    assert demo.get_config(variant).task == 'stocks'
    with pytest.raises(UsageError, match='no variant'):
        prices.get_config('wrong')


@pytest.mark.parametrize('variant', prices.VARIANTS)
def test_the_recipe_as_shipped_takes_one_ticker_of_five_years(tmp_path, variant):
    (tmp_path / 'raw').mkdir()
    write_csv(tmp_path / 'raw' / 'A.csv', random_history('A', rows=1258))
    config = prices.get_config(variant)
    TASK.prepare(config, tmp_path / 'raw', tmp_path / 'data', skip_bad=False)
    training = make_training(config, tmp_path / 'data')
    assert training.schedule(0) == 0
    assert training.to_steps(config.schedule.warmup) < training.total_steps / 10
