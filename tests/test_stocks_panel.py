"""Splits by date without a leak, windows cut on the device, scalers that see training rows only and invert."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from common.config import RunRecord
from common.data.transport import complete
from common.errors import DataError, UsageError
from stocks.configs import prices
from stocks.data.csv_files import History
from stocks.data.panel import build, feature_values, records_of
from stocks.data.periods import split_periods, walk_forward_dates
from stocks.evaluation.baselines import LAGS, baseline_prices
from stocks.task import Stocks

SETTINGS = [('price', 'minmax'), ('price', 'standard'), ('log_return', 'minmax'), ('log_return', 'relative')]


def random_history(ticker, rows=400, start='2015-01-01', seed=0):
    random = np.random.default_rng([seed, *ticker.encode()])
    close = 50 * np.exp(np.cumsum(random.normal(0, 0.02, rows)))
    around = close[:, None] * np.exp(random.normal(0, 0.01, (rows, 3)))
    around[:, 1:] = np.sort(around[:, 1:])[:, ::-1]  # High, Low
    volume = random.integers(0, 10000, rows)
    adjusted = close * np.linspace(0.5, 1, rows)
    dates = np.busday_offset(start, np.arange(rows), roll='forward').astype('M8[D]')
    return History(ticker=ticker, dates=dates, values=np.column_stack([around, close, volume, adjusted]))


def config_of(target='price', scaler='minmax', **changes):
    config = prices.get_config()
    config.dataset.update({'window': 20, 'horizon': 3, 'target': target, 'scaler': scaler} | changes)
    return config


def histories():
    return [random_history('A'), random_history('B', rows=300, start='2015-04-01'), random_history('C', rows=380)]


def batches(config, dataset, name):
    """All examples of a split as the device would see them."""
    split = dataset.splits[name]
    task = Stocks(config, json.loads(json.dumps(dataset.info)))
    shared = jax.tree.map(
        jax.numpy.asarray, {'columns': dict(split.columns), 'parts': {}, 'tables': dict(dataset.tables)}
    )
    index = np.arange(len(split), dtype=np.int32)
    return jax.jit(lambda index: task.preprocess(complete({'index': index}, shared), shared['tables'], None))(index)


@pytest.mark.parametrize(('target', 'scaler'), SETTINGS)
def test_prices_after_training_change_no_scaler_and_no_training_batch(target, scaler):
    config = config_of(target, scaler)
    before = histories()
    end = split_periods([history.dates for history in before], config.dataset)['train'][1]
    after = [
        dataclasses.replace(h, values=np.where((h.dates > end)[:, None], h.values * 3 + 7, h.values)) for h in before
    ]
    old, new = build(before, config.dataset), build(after, config.dataset)
    assert json.dumps(dict(old.info) | {'prices': ''}) == json.dumps(dict(new.info) | {'prices': ''})
    for name in ('inputs', 'target', 'ticker'):
        np.testing.assert_array_equal(batches(config, old, 'train')[name], batches(config, new, 'train')[name])
    assert old.splits['train'].records.equals(new.splits['train'].records)
    assert not np.array_equal(
        batches(config, old, 'validation')['target'], batches(config, new, 'validation')['target']
    )


@pytest.mark.parametrize('part', ['train', 'validation', 'test'])
def test_a_run_knows_its_prices_of_every_split_and_minds_no_later_ones(part):
    config, data = (
        config_of('log_return', 'relative', split_dates=('2015-10-30', '2016-02-26', '2016-05-31')),
        histories(),
    )
    trained = build(data, config.dataset)
    record = RunRecord(
        config=config, info=trained.info, columns={}, tables={}, groups=None, data_dir='', environment={}
    )
    last = np.datetime64(trained.info['periods'][part][1])

    def changed(here):
        values = np.where(here(data[0].dates)[:, None], data[0].values * 1.01, data[0].values)
        return build([dataclasses.replace(data[0], values=values), *data[1:]], config.dataset)

    with pytest.raises(DataError, match=r'not the one that run was trained on: .*prices differ'):
        record.check_data(changed(lambda dates: dates == last).info, pathlib.Path('run'))
    record.check_data(changed(lambda dates: dates > np.datetime64('2016-05-31')).info, pathlib.Path('run'))
    earlier = {name: fact for name, fact in record.info.items() if name != 'prices'}  # as runs had it before
    dataclasses.replace(record, info=earlier).check_data(trained.info, pathlib.Path('run'))


def test_no_row_is_seen_from_both_sides_of_a_border():
    config, data = config_of(), histories()
    window, horizon = config.dataset.window, config.dataset.horizon
    dataset = build(data, config.dataset)
    touched = {}
    for name, split in dataset.splits.items():
        rows = split.columns['day'][:, None] + np.arange(1 - window, horizon + 1)
        touched[name] = set(rows.ravel().tolist())
    assert not touched['train'] & touched['validation']
    assert not touched['validation'] & touched['test']
    for code in range(len(data)):
        ends = [split.columns['day'][split.columns['ticker'] == code] for split in dataset.splits.values()]
        assert ends[1].min() - ends[0].max() == window + horizon
        assert ends[2].min() - ends[1].max() == window + horizon
    latest = {name: split.records['target_date'].max() for name, split in dataset.splits.items()}
    assert latest['train'] < dataset.splits['validation'].records['date'].min()
    assert latest['validation'] < dataset.splits['test'].records['date'].min()


@pytest.mark.parametrize(('target', 'scaler'), SETTINGS)
def test_windows_and_targets_are_those_cut_by_hand(target, scaler):
    config, data = config_of(target, scaler), histories()
    window, horizon, names = config.dataset.window, config.dataset.horizon, list(config.dataset.features)
    dataset = build(data, config.dataset)
    train_end = np.datetime64(dataset.info['periods']['train'][1])
    spreads = []
    for history in data:
        close = feature_values(history, config.dataset)[history.dates <= train_end][:, 3]
        spreads.append(np.std(np.log(close[horizon:]) - np.log(close[:-horizon])))
    pooled = np.sqrt(np.mean(np.square(spreads)))
    batch, records = batches(config, dataset, 'test'), dataset.splits['test'].records
    assert len(records) > 50
    for row in range(0, len(records), 7):
        record = records.iloc[row]
        history = next(h for h in data if h.ticker == record['ticker'])
        values = feature_values(history, config.dataset)
        training = values[history.dates <= train_end]
        day = int(np.flatnonzero(history.dates == record['date'].to_datetime64())[0])
        cut = values[day - window + 1 : day + 1]
        if scaler == 'minmax':
            offset, scale = training.min(0), training.max(0) - training.min(0)
            expected = (cut - offset) / scale
        elif scaler == 'standard':
            offset, scale = training.mean(0), training.std(0)
            expected = (cut - offset) / scale
        else:
            logs = np.log(cut / cut[-1, 3]) / (pooled * np.sqrt(window / horizon))
            volume = np.log(cut[:, 4] + 1)
            expected = np.column_stack([logs[:, :4], volume - volume.mean()])
        np.testing.assert_allclose(batch['inputs'][row], expected, rtol=1e-4, atol=2e-5)
        last, actual = values[day, 3], values[day + horizon, 3]
        if target == 'price':
            wanted = (actual - offset[names.index('Close')]) / scale[names.index('Close')]
        else:
            spread = pooled if scaler == 'relative' else spreads[data.index(history)]
            wanted = np.log(actual / last) / spread
        np.testing.assert_allclose(batch['target'][row], wanted, rtol=1e-5, atol=1e-6)
        assert record['last_close'] == last
        assert record['actual'] == actual


def test_adjusting_takes_splits_out_of_prices_and_keeps_the_value_traded():
    config, history = config_of().dataset, random_history('A')
    values = history.values.copy()
    values[:200, :4] *= 2  # a split, 2 for 1, that Adj Close knows
    values[:200, 4] /= 2
    split = dataclasses.replace(history, values=values)
    np.testing.assert_allclose(feature_values(split, config), feature_values(history, config))
    np.testing.assert_allclose(feature_values(history, config)[:, 3], history.values[:, 5])
    config.adjust = False
    np.testing.assert_array_equal(feature_values(history, config), history.values[:, :5])


@pytest.mark.parametrize(('target', 'scaler'), SETTINGS)
def test_scaled_targets_invert_to_prices(target, scaler):
    config = config_of(target, scaler)
    dataset = build(histories(), config.dataset)
    task = Stocks(config, json.loads(json.dumps(dataset.info)))
    split = dataset.splits['validation']
    predictions = {'forecast': split.columns['target'][:, None]}
    np.testing.assert_allclose(task.prices(predictions, split), split.records['actual'], rtol=1e-6)


def test_the_device_holds_no_more_than_the_table():
    data = histories()
    dataset = build(data, config_of().dataset)
    assert {name: table.shape for name, table in dataset.tables.items()} == {'prices': (sum(map(len, data)), 5)}
    assert all(column.ndim == 1 for split in dataset.splits.values() for column in split.columns.values())


def test_baselines_are_those_of_a_direct_least_squares():
    close = np.exp(np.random.default_rng(0).normal(size=300).cumsum() * 0.02)
    horizon, end = 2, 200
    drift = np.mean(np.diff(np.log(close[:end])))
    rows, wanted = [], []
    for t in range(LAGS, end - horizon):
        rows.append([1.0] + [np.log(close[t - k] / close[t - k - 1]) for k in range(LAGS)])
        wanted.append(np.log(close[t + horizon] / close[t]))
    coefficients = np.linalg.solve(np.array(rows).T @ rows, np.array(rows).T @ wanted)
    last = [1.0] + [np.log(close[250 - k] / close[249 - k]) for k in range(LAGS)]
    found = baseline_prices(close, slice(0, end), horizon)
    assert found['drift'][250] == pytest.approx(close[250] * np.exp(2 * drift))
    assert found['autoregression'][250] == pytest.approx(close[250] * np.exp(np.dot(last, coefficients)))


def test_volatility_is_that_of_riskmetrics_and_the_last_return_spans_the_horizon():
    history, horizon = random_history('A', rows=200), 4
    closes = history.values[:, 3]
    records = records_of(history.dates, closes, slice(0, 150), horizon)
    squares = np.diff(np.log(closes)) ** 2
    for row in (1, 20, 199):
        variance = np.average(squares[:row], weights=0.94 ** np.arange(row)[::-1])
        assert records['volatility'][row] == pytest.approx(np.sqrt(horizon * variance))
    assert records['last_return'][:horizon].isna().all()
    np.testing.assert_allclose(records['last_return'][horizon:], np.log(closes[horizon:] / closes[:-horizon]))


def test_volatility_knows_only_the_past():
    data = [random_history('A')]
    first = build(data, config_of().dataset)
    values = data[0].values.copy()
    values[300:] *= 1.7
    second = build([dataclasses.replace(data[0], values=values)], config_of().dataset)
    day = data[0].dates[299]
    for split in first.splits:
        a, b = (
            records[records['date'] <= day] for records in (first.splits[split].records, second.splits[split].records)
        )
        np.testing.assert_array_equal(a['volatility'], b['volatility'])


def test_splits_follow_the_dates_asked_for():
    dates = ('2015-10-30', '2016-02-26', '2016-06-30')
    dataset = build(histories(), config_of(split_dates=dates).dataset)
    assert [period[1] for period in dataset.info['periods'].values()] == list(dates)
    assert dataset.splits['test'].records['target_date'].max() <= np.datetime64(dates[2])
    open_end = build(histories(), config_of(split_dates=dates[:2]).dataset)
    assert open_end.splits['test'].records['target_date'].max() == histories()[0].dates[-1]


def test_fractions_are_of_all_rows_in_the_order_of_their_dates():
    dates = [random_history('A').dates, random_history('Y', rows=100, start='2016-04-01').dates]
    periods = split_periods(dates, config_of(split_fractions=(0.6, 0.3, 0.1)).dataset)
    rows = np.concatenate(dates)
    shares = [np.mean((first <= rows) & (rows <= last)) for first, last in periods.values()]
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.005)


def test_histories_of_just_enough_rows_are_kept_and_the_others_named():
    info = build(histories(), config_of(min_rows=380).dataset).info
    assert (info['tickers'], info['left_out']) == (['A', 'C'], {'B': 300})


@pytest.mark.parametrize('tickers', [('A', 'C'), ('C', 'A', 'C'), ('A,C',), ('C, A',)])
def test_tickers_may_be_written_as_a_tuple_or_with_commas(tickers):
    assert build(histories(), config_of(tickers=tickers).dataset).info['tickers'] == ['A', 'C']


def test_walk_forward_parts_follow_each_other_and_cover_the_test_period():
    config, data = config_of(), [history.dates for history in histories()]
    days = np.unique(np.concatenate(data))

    def days_of(period):
        return days[(days >= period[0]) & (days <= period[1])]

    whole = split_periods(data, config.dataset)
    folds = walk_forward_dates(data, config.dataset, 3)
    tested = []
    for dates in folds:
        config.dataset.split_dates = dates
        periods = split_periods(data, config.dataset)
        tested.append(days_of(periods['test']))
        assert len(days_of(periods['validation'])) == len(days_of(whole['validation']))
        assert days_of(periods['validation'])[-1] < tested[-1][0]
    np.testing.assert_array_equal(np.concatenate(tested), days_of(whole['test']))
    assert max(map(len, tested)) - min(map(len, tested)) <= 1


def test_walk_forward_parts_too_short_for_a_window_are_refused_with_the_most_that_fit():
    config, data = config_of(), [history.dates for history in histories()]
    days = np.unique(np.concatenate(data))
    test = np.count_nonzero(days >= split_periods(data, config.dataset)['test'][0])
    most = test // (config.dataset.window + config.dataset.horizon)
    assert len(walk_forward_dates(data, config.dataset, most)) == most
    for folds in (most + 1, 0):
        with pytest.raises(UsageError, match=rf'--walk_forward={folds}: .* at most {most}; give that or fewer'):
            walk_forward_dates(data, config.dataset, folds)


def test_walk_forward_ends_where_a_saturday_ends_the_splits():
    config, data = config_of(), [history.dates for history in histories()]
    fridays, saturdays = ('2015-10-30', '2016-02-26', '2016-06-17'), ('2015-10-31', '2016-02-27', '2016-06-18')
    config.dataset.split_dates = fridays
    expected = walk_forward_dates(data, config.dataset, 2)
    assert expected[0][:2] == fridays[:2]
    assert expected[-1][2] == fridays[2]
    config.dataset.split_dates = saturdays
    assert walk_forward_dates(data, config.dataset, 2) == expected


@pytest.mark.parametrize(
    ('changes', 'error', 'told'),
    [
        ({'window': 350}, DataError, 'B has 300 rows'),
        ({'split_dates': ('2015-03-01', '2016-01-01')}, DataError, 'Tickers must overlap in time'),
        ({'split_dates': ('2015-10-30', '2015-11-05')}, DataError, 'validation has no examples'),
        ({'split_dates': ('2016-01-01', '2031-01-01')}, UsageError, 'is the future'),
        ({'split_dates': ('2016-03-01', '2016-01-01')}, UsageError, 'must rise'),
        ({'split_dates': ('tomorrow', '2016-01-01')}, UsageError, "'tomorrow' is no date"),
        ({'split_dates': ('2015', '2016')}, UsageError, "'2015' is no date; write YYYY-MM-DD"),
        ({'split_dates': (2015, 2016)}, UsageError, '2015 is no date; write YYYY-MM-DD'),
        ({'split_dates': ('2016-01-01',)}, UsageError, 'has 1 dates'),
        ({'split_fractions': (0.9, 0.2, 0.1)}, UsageError, 'sum to 1'),
        ({'tickers': ('A', 'Z')}, UsageError, r'names Z; there are A, B, C'),
        ({'min_rows': 1000}, UsageError, 'min_rows'),
        ({'features': ('Open', 'High')}, UsageError, 'must contain Close'),
        ({'features': ('Close', 'Mood')}, UsageError, "'Mood' is none of"),
        ({'scaler': 'relative'}, UsageError, 'knows no scale of prices'),
        ({'horizon': 0}, UsageError, 'at least one'),
    ],
)
def test_what_cannot_be_is_refused_in_words(changes, error, told):
    with pytest.raises(error, match=told):
        build(histories(), config_of(**changes).dataset)


def test_a_ticker_too_young_for_training_is_no_obstacle_to_a_relative_scaler():
    data = [random_history('A'), random_history('Y', rows=100, start='2016-04-01')]
    with pytest.raises(DataError, match='Y runs from'):
        build(data, config_of().dataset)
    dataset = build(data, config_of('log_return', 'relative').dataset)
    assert 'Y' not in set(dataset.splits['train'].records['ticker'])
    assert 'Y' in set(dataset.splits['test'].records['ticker'])
    young = dataset.splits['test'].records.query('ticker == "Y"')
    np.testing.assert_allclose(young['drift'], young['last_close'])
    np.testing.assert_allclose(young['autoregression'], young['last_close'])


def test_the_first_row_of_a_history_has_a_volatility_too():
    history = random_history('A', rows=100)
    records = records_of(history.dates, history.values[:, 3], slice(0, 80), 3)
    assert records['volatility'][0] == 1e-4
    assert records['volatility'].notna().all()
