"""The report on a split: every figure beside the same of the baselines, intervals, and tables."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from common.findings import Report
from stocks.data.scaling import TargetScaler
from stocks.evaluation import intervals
from stocks.evaluation.forecast_metrics import (
    diebold_mariano,
    price_errors,
    rank_information_coefficient,
    repetition,
    skill,
    skill_interval,
)
from stocks.evaluation.sections import HEADLINES, sections, verdict

BESIDE_NAIVE = ('mse_scaled', 'rmse', 'mae', 'mape', 'relative_rmse', 'directional_accuracy')
NOTES = {
    'prices': 'in the units of the prepared prices, adjusted where the config says so',
    'skill': '1 - RMSE / RMSE of the last close, of errors relative to the last close, so that dear stocks do not '
    'dominate; its interval is a circular block bootstrap over days, where these make four blocks or more',
    'diebold_mariano': 'positive where the model is better than the last close; squared relative errors',
    'intervals': 'split-conformal, calibrated on the validation split in units of the volatility of the day',
    'directional_accuracy': 'of examples whose price moved; a forecast of no change counts one half',
}


def forecast_report(
    records: pd.DataFrame,
    forecast: np.ndarray,
    scaler: TargetScaler,
    horizon: int,
    calibration_scores: np.ndarray | None,
    directory: pathlib.Path,
) -> Report:
    """Writes predictions.csv and tickers.csv.

    Args:
      records: of the split, as `stocks.data.panel.records_of` makes them, with the ticker.
      forecast: float64 [examples], prices.
      scaler: of the examples' targets.
      horizon: rows ahead.
      calibration_scores: `intervals.scores` of the validation split; None: no intervals.
      directory: exists.
    """
    forecasts = {
        'model': forecast,
        'naive': records['last_close'].to_numpy(),
        'drift': records['drift'].to_numpy(),
        'autoregression': records['autoregression'].to_numpy(),
    }
    table = {name: _figures(records, prices, scaler) for name, prices in forecasts.items()}
    pooled = _against_naive(records, forecast, horizon)
    repeats = repetition(records, forecast)
    half_widths = {} if calibration_scores is None else intervals.calibrate(calibration_scores)
    covered = intervals.coverage(records, forecast, half_widths)
    last_close, actual = records['last_close'].to_numpy(), records['actual'].to_numpy()
    tickers = {
        str(ticker): _figures(rows, forecast[rows.index], None)
        | {f'naive_{key}': value for key, value in _figures(rows, rows['last_close'].to_numpy(), None).items()}
        | _against_naive(rows, forecast[rows.index], horizon)
        for ticker, rows in records.groupby('ticker', observed=True)
    }
    lower, upper = intervals.bounds(records, forecast, half_widths.get(0.9, math.nan))
    predictions = records.assign(predicted=forecast, lower_90=lower, upper_90=upper)
    _write_tables(predictions, tickers, directory)
    headlines: dict[str, float] = {}
    for name in BESIDE_NAIVE:
        headlines |= {name: table['model'][name], f'naive_{name}': table['naive'][name]}
    metrics = {
        **headlines,
        'skill': pooled['skill'],
        'skill_of_drift': table['drift']['skill'],
        'skill_of_autoregression': table['autoregression']['skill'],
        **{f'coverage_{level[:-1]}': figures['coverage'] for level, figures in covered.items()},
        'intervals_95': {'skill': pooled['skill_interval_95']} if pooled['skill_interval_95'] else {},
        'diebold_mariano': pooled['diebold_mariano'],
        'repetition': repeats,
        'rank_information_coefficient': rank_information_coefficient(
            forecast / last_close, actual / last_close, records['date'].to_numpy()
        ),
        'prediction_intervals': covered,
        'forecasts': table,
        'tickers': tickers,
        'notes': NOTES,
    }
    metrics = _finite(metrics)
    metrics['verdict'] = verdict(metrics)
    shown = [name for name in HEADLINES if name in metrics]  # without calibration there is no coverage
    return Report(metrics=metrics, headlines=shown, sections=sections(metrics, predictions))


def _figures(records: pd.DataFrame, prices: np.ndarray, scaler: TargetScaler | None) -> dict[str, float]:
    """Errors of one forecast, with its skill in relative and in price units."""
    actual, last_close = records['actual'].to_numpy(), records['last_close'].to_numpy()
    figures = price_errors(actual, prices, last_close)
    if scaler is not None:
        difference = scaler.scaled(prices, last_close) - scaler.scaled(actual, last_close)
        figures = {'mse_scaled': float(np.mean(difference**2))} | figures
    figures['skill'] = skill((prices - actual) / last_close, (last_close - actual) / last_close)
    figures['skill_in_price_units'] = skill(prices - actual, last_close - actual)
    return figures


def _against_naive(records: pd.DataFrame, forecast: np.ndarray, horizon: int) -> dict[str, Any]:
    actual, last_close = records['actual'].to_numpy(), records['last_close'].to_numpy()
    errors, naive, days = (forecast - actual) / last_close, 1 - actual / last_close, records['date'].to_numpy()
    return {
        'skill': skill(errors, naive),
        'skill_interval_95': skill_interval(errors, naive, days, horizon=horizon),
        'diebold_mariano': diebold_mariano(errors, naive, days, horizon=horizon),
    }


def _write_tables(predictions: pd.DataFrame, tickers: Mapping[str, Any], directory: pathlib.Path) -> None:
    columns = ['ticker', 'date', 'target_date', 'last_close', 'actual', 'predicted', 'lower_90', 'upper_90']
    predictions[columns].to_csv(directory / 'predictions.csv', index=False, float_format='%.9g')
    flat = pd.json_normalize(list(tickers.values()), sep='_').drop(columns='skill_interval_95')
    flat.insert(0, 'ticker', list(tickers))
    ends = [figures['skill_interval_95'] or (math.nan, math.nan) for figures in tickers.values()]
    flat['skill_low'], flat['skill_high'] = zip(*ends, strict=True)
    flat.to_csv(directory / 'tickers.csv', index=False, float_format='%.6g')


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: what is undefined is None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
