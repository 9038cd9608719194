"""From price histories to the splits, the scaled tables and the records that training and evaluation need."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from common.data.dataset import Dataset, Split
from common.errors import DataError, UsageError
from stocks.data.csv_files import COLUMNS, History
from stocks.data.periods import Periods, row_spans, split_periods, window_ends
from stocks.data.scaling import KINDS, TARGETS, Scaler, fit_scalers, scaler_of, target_scaler
from stocks.data.tables import PRICES
from stocks.evaluation.baselines import baseline_prices

FEATURES = (*PRICES, 'Volume')
DECAY = 0.94  # of the exponentially weighted variance of daily returns (RiskMetrics 1996)
LEAST_VOLATILITY = 1e-4  # one basis point: a price that stood still may move all the same


def build(histories: Sequence[History], config: ConfigDict) -> Dataset:
    """The data set that `config` (a config's `dataset` part) makes of all the histories that were prepared.

    An example is a window of rows with a target `horizon` rows after it. It belongs to a split if every row it
    touches lies in the split's period: windows on both sides of a border end `window + horizon` rows apart, and
    no row is seen from both.

    Table: `prices` float32 [rows of all tickers, features], scaled, one history after the other. Columns: `ticker`
    int32; `day` int32, the row in the table at which the window ends; `target` float32, scaled. Records: the
    ticker and what `records_of` says.

    Raises:
      UsageError: for config values that contradict each other or the data.
      DataError: for histories that are too short or do not overlap in time.
    """
    check(config)
    histories, left_out = chosen(histories, config)
    periods = split_periods([history.dates for history in histories], config)
    spans = [row_spans(history.dates, periods) for history in histories]
    values = [feature_values(history, config) for history in histories]
    scalers = _fitted(histories, values, spans, periods, config)
    scaled = [scaler_of(scalers, h.ticker).scaled(v) for h, v in zip(histories, values, strict=True)]
    records = [
        records_of(history.dates, v[:, list(config.features).index('Close')], span['train'], config.horizon)
        for history, v, span in zip(histories, values, spans, strict=True)
    ]
    starts = np.cumsum([0] + [len(history) for history in histories])
    tickers = [history.ticker for history in histories]
    table = pd.concat(records, ignore_index=True)
    codes = np.repeat(np.arange(len(tickers), dtype=np.int32), np.diff(starts))
    table.insert(0, 'ticker', pd.Categorical.from_codes(codes, tickers))
    scaler = target_scaler(config.target, scalers, tickers, codes)
    targets = scaler.scaled(table['actual'].to_numpy(), table['last_close'].to_numpy()).astype(np.float32)
    splits = {}
    for name in periods:
        ends = [
            start + window_ends(span[name], config.window, config.horizon)
            for start, span in zip(starts, spans, strict=False)
        ]
        days = np.concatenate(ends).astype(np.int32)
        _check_split(name, len(days), periods, config)
        splits[name] = Split(
            name=name,
            columns={'ticker': codes[days], 'day': days, 'target': targets[days]},
            records=table.iloc[days].reset_index(drop=True),
        )
    info = {
        'tickers': tickers,
        'scalers': {ticker: dataclasses.asdict(fitted) for ticker, fitted in scalers.items()},
        'periods': {name: [str(day) for day in period] for name, period in periods.items()},
        'left_out': left_out,
        'prices': _fingerprint(histories, values, spans),
    }
    return Dataset(splits=splits, info=info, tables={'prices': np.concatenate(scaled)})


def chosen(histories: Sequence[History], config: ConfigDict) -> tuple[list[History], dict[str, int]]:
    """The tickers asked for that are long enough, sorted, and the rows of those left out as too short."""
    present = {history.ticker: history for history in histories}
    # A flag's AAPL,MSFT is one name.
    named = {ticker.strip() for names in config.tickers for ticker in str(names).split(',')} - {''}
    missing = sorted(named - present.keys())
    if missing:
        raise UsageError(f'config.dataset.tickers names {", ".join(missing)}; there are {", ".join(sorted(present))}')
    asked = [present[ticker] for ticker in sorted(named or present)]
    found = [history for history in asked if len(history) >= config.min_rows]
    if not found:
        raise UsageError(f'no ticker has the {config.min_rows} rows that config.dataset.min_rows asks for')
    return found, {h.ticker: len(h) for h in asked if len(h) < config.min_rows}


def feature_values(history: History, config: ConfigDict) -> np.ndarray:
    """float64 [rows, features], adjusted for splits and dividends where `config.adjust` says so.

    Adjusting scales the prices of a day by Adj Close / Close, so that a split is no crash and a dividend no
    loss, and divides the volume by the same, so that the value traded stays. All later prices, errors and
    forecasts are then in adjusted units.

    Raises:
      DataError: where Volume is a feature and the history has none.
    """
    columns = dict(zip(COLUMNS, history.values.T, strict=True))
    if 'Volume' in config.features and np.isnan(columns['Volume']).any():
        raise DataError(
            f'{history.ticker} has no Volume: leave it out of config.dataset.features, or the ticker out of '
            'config.dataset.tickers'
        )
    ratio = columns['Adj Close'] / columns['Close'] if config.adjust else np.ones(len(history))
    adjusted = {name: columns[name] * ratio for name in PRICES} | {'Volume': columns['Volume'] / ratio}
    return np.stack([adjusted[name] for name in config.features], axis=1)


def records_of(dates: np.ndarray, closes: np.ndarray, training: slice, horizon: int) -> pd.DataFrame:
    """What evaluation needs to know of every row of a history, as the last row of a window.

    Args:
      dates: datetime64[D] [rows].
      closes: float64 [rows].
      training: rows on which the baselines are fitted.
      horizon: rows ahead.

    Returns:
      date and last_close of the row; target_date and actual, `horizon` rows later (NaT and NaN at the end);
      last_return, the log-return over the `horizon` rows before; volatility, the exponentially weighted standard
      deviation of log-returns over the horizon, from rows up to this one; drift and autoregression, the
      baselines' prices.
    """
    ahead = np.arange(len(closes)) + horizon
    known = ahead < len(closes)
    ahead = np.minimum(ahead, len(closes) - 1)
    returns = pd.Series(np.log(closes)).diff()
    variance = (returns**2).ewm(alpha=1 - DECAY).mean()
    volatility = np.fmax(np.sqrt(horizon * variance), LEAST_VOLATILITY)  # of the first row too, which has no return
    columns = {
        'date': dates,
        'target_date': np.where(known, dates[ahead], np.datetime64('NaT', 'D')),
        'last_close': closes,
        'actual': np.where(known, closes[ahead], np.nan),
        'last_return': np.log(closes) - np.log(pd.Series(closes)).shift(horizon).to_numpy(),
        'volatility': volatility.to_numpy(),
    }
    return pd.DataFrame(columns | baseline_prices(closes, training, horizon))


def check(config: ConfigDict) -> None:
    """Raises UsageError for values that no data could satisfy."""
    options = {'features': FEATURES, 'scaler': KINDS, 'target': TARGETS}
    for key, allowed in options.items():
        asked = config.features if key == 'features' else [config[key]]
        for value in asked:
            if value not in allowed:
                raise UsageError(f'config.dataset.{key}: {value!r} is none of {", ".join(allowed)}')
    if 'Close' not in config.features:
        raise UsageError('config.dataset.features must contain Close, which is what is forecast')
    for key in ('window', 'horizon'):
        if config[key] < 1:
            raise UsageError(f'config.dataset.{key} is {config[key]}; it counts rows, at least one')
    if config.scaler == 'relative' and config.target == 'price':
        raise UsageError(
            "config.dataset.scaler 'relative' knows no scale of prices: with it use target 'log_return', or use "
            "scaler 'minmax' or 'standard' with target 'price'"
        )


def _fitted(
    histories: Sequence[History],
    values: Sequence[np.ndarray],
    spans: Sequence[Mapping[str, slice]],
    periods: Periods,
    config: ConfigDict,
) -> dict[str, Scaler]:
    """Scalers from the training rows, after a look whether there are enough of them."""
    need = config.window + config.horizon
    for history in histories:
        if len(history) < need:
            raise DataError(
                f'{history.ticker} has {len(history)} rows; a window of {config.window} and a horizon of '
                f'{config.horizon} need {need}: shorten config.dataset.window, or leave out short histories by '
                'config.dataset.min_rows'
            )
    training = {history.ticker: v[span['train']] for history, v, span in zip(histories, values, spans, strict=True)}
    enough = {ticker: v for ticker, v in training.items() if len(v) >= need}
    if not enough or (len(enough) < len(training) and config.scaler != 'relative'):
        short = next(history for history in histories if history.ticker not in enough)
        first, last = periods['train']
        raise DataError(
            f'{short.ticker} runs from {short.dates[0]} to {short.dates[-1]} and has {len(training[short.ticker])} '
            f'rows in the training period, {first} to {last}; it needs {need}. Tickers must overlap in time: '
            'set config.dataset.tickers, .min_rows or .split_dates so that they do'
        )
    return fit_scalers(config.scaler, enough, names=list(config.features), horizon=config.horizon, window=config.window)


def _fingerprint(
    histories: Sequence[History], values: Sequence[np.ndarray], spans: Sequence[Mapping[str, slice]]
) -> str:
    """Of dates and prices to the last day of test, so that a run can tell whether they are still those it knows."""
    digest = hashlib.sha256()
    for history, v, span in zip(histories, values, spans, strict=True):
        stop = span['test'].stop
        digest.update(history.dates[:stop].tobytes() + v[:stop].tobytes())
    return digest.hexdigest()[:16]


def _check_split(name: str, examples: int, periods: Periods, config: ConfigDict) -> None:
    if not examples:
        first, last = periods[name]
        raise DataError(
            f'{name} has no examples: no ticker has {config.window + config.horizon} rows from {first} to {last}, '
            'as window and horizon need; give it more days by config.dataset.split_fractions or .split_dates'
        )
