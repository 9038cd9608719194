"""The sections of a forecast's report: beside the baselines, intervals, one ticker at a time."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from common.findings import Cell, Plot, Section, Table
from common.lazy import lazy

plots = lazy('stocks.evaluation.plots')

HEADLINES = ('skill', 'directional_accuracy', 'rmse', 'naive_rmse', 'mape', 'coverage_90')
_NAMES = {'model': 'model', 'naive': 'last close (naive)', 'drift': 'drift', 'autoregression': 'linear autoregression'}


def verdict(metrics: Mapping[str, Any]) -> str:
    """Whether the forecast beats the naive one, as far as the interval of its skill can tell."""
    skill, ends, test = metrics['skill'], metrics['intervals_95'].get('skill'), metrics['diebold_mariano']
    if skill is None:
        return 'The last close was never wrong, so there is nothing to beat.'
    if ends is None:
        return f'These are too few days to tell the model from the naive forecast: its skill is {skill:+.4f} on them.'
    low, high = ends
    if low > 0:
        words = 'The model beats the naive forecast, which repeats the last close'
    elif high < 0:
        words = 'The model is worse than the naive forecast, which repeats the last close'
    else:
        words = 'The model cannot be told from the naive forecast, which repeats the last close'
    return (
        f'{words}: its skill is {skill:+.4f}, 95% interval {low:+.4f} to {high:+.4f}; the Diebold-Mariano statistic is '
        f'{test["statistic"]:+.2f}, p = {test["p_value"]:.3f}.'
    )


def sections(metrics: Mapping[str, Any], predictions: pd.DataFrame) -> list[Section]:
    """Of what goes into metrics.json, and the table of predictions with its 90% interval (NaN: none)."""
    tickers = metrics['tickers']
    known = {ticker: row for ticker, row in tickers.items() if row['skill'] is not None}
    found = [_beside(metrics)]
    if metrics['prediction_intervals']:
        found.append(_intervals(metrics))
    if known:
        skills = {ticker: row['skill'] for ticker, row in known.items()}
        found.append(_over_time(predictions, skills))
        found.append(_tickers(tickers, skills, {ticker: row['skill_interval_95'] for ticker, row in known.items()}))
    found.append(_repetition(metrics, predictions))
    return found


def _beside(metrics: Mapping[str, Any]) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for key, name in _NAMES.items():
        row = metrics['forecasts'][key]
        numbers = (row['rmse'], row['mae'], _percent(row['mape']), row['directional_accuracy'], _signed(row['skill']))
        rows.append((name, *numbers))
    notes = metrics['notes']
    table = Table(
        columns=('forecast', 'RMSE', 'MAE', 'MAPE', 'direction', 'skill'),
        rows=rows,
        caption=f'RMSE and MAE are {notes["prices"]}. Direction: share of right signs, '
        f'{notes["directional_accuracy"]}. Skill: {notes["skill"]}.',
    )
    return Section('Does it beat repeating the last close?', [metrics['verdict'], table])


def _intervals(metrics: Mapping[str, Any]) -> Section:
    rows = [
        (level, _percent(row['coverage']), _percent(row['mean_relative_width']))
        for level, row in metrics['prediction_intervals'].items()
    ]
    table = Table(
        columns=('promised', 'covered', 'mean width, of the last close'),
        rows=rows,
        caption=f'How often the price to come lay inside; intervals are {metrics["notes"]["intervals"]}. Markets '
        'change, so that the promise need not hold: hence the coverage that is measured.',
    )
    return Section('Prediction intervals', [table])


def _over_time(predictions: pd.DataFrame, skills: Mapping[str, float]) -> Section:
    forecasts = Plot(
        name='forecasts',
        figure=plots.forecasts(predictions, skills),
        caption=f'The last {plots.DAYS} days of tickers from the worst skill to the best. A forecast that runs one day '
        'behind the prices repeats the last close, however close the lines look.',
    )
    residuals = Plot(
        name='residuals',
        figure=plots.residuals(predictions),
        caption='Errors should keep around zero; a drift away from it is a bias, a wide stretch a restless market.',
    )
    return Section('Forecasts and errors over time', [forecasts, residuals])


def _tickers(
    tickers: Mapping[str, Mapping[str, Any]], skills: Mapping[str, float], intervals: Mapping[str, list[float] | None]
) -> Section:
    figure = Plot(
        name='skill_by_ticker',
        figure=plots.skill_by_ticker(skills, intervals),
        caption='Right of zero is better than the last close. Blue and orange: the interval leaves zero out. Among '
        'many tickers a few do so by chance: with 95% intervals, one in twenty.',
    )
    rows = []
    for ticker, row in tickers.items():
        ends = row['skill_interval_95']
        interval = f'{ends[0]:+.4f} to {ends[1]:+.4f}' if ends else None
        errors = row['rmse'], row['naive_rmse'], row['directional_accuracy']
        rows.append((ticker, *errors, _signed(row['skill']), interval, row['diebold_mariano']['p_value']))
    table = Table(
        columns=('ticker', 'RMSE', 'naive RMSE', 'direction', 'skill', '95% interval', 'p'),
        rows=rows,
        caption='p: of the Diebold-Mariano test against the last close, two-sided. tickers.csv has more columns.',
    )
    return Section('Ticker by ticker', [figure, table])


def _repetition(metrics: Mapping[str, Any], predictions: pd.DataFrame) -> Section:
    figure = Plot(
        name='returns',
        figure=plots.returns(predictions, metrics['repetition']),
        caption='Left, what a forecast is for: predicted returns over those that came; on the dashed line it would be '
        'perfect. Right, what it is made of: predicted returns over those just seen.',
    )
    return Section('Does it see ahead, or look back?', [metrics['repetition']['sentence'], figure])


def _percent(value: float | None) -> str:
    return '–' if value is None else f'{value:.1%}'


def _signed(value: float | None) -> str:
    return '–' if value is None else f'{value:+.4f}'
