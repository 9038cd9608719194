"""Figures of a forecast: against the prices, its errors over time, its skill, and whether it repeats yesterday."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.dates as mdates
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.evaluation.plots import FAINT, INK, PALETTE, dress, legend, new_figure

DAYS = 120  # that a zoom shows
PANELS = 6  # tickers that one figure shows; with more, they are spread from the worst skill to the best
BLUE, ORANGE = PALETTE[:2]


def forecasts(records: pd.DataFrame, skills: Mapping[str, float]) -> Figure:
    """Actual and predicted prices of the last 120 days, with the 90% interval where there is one.

    Args:
      records: ticker, target_date, last_close, actual, predicted, lower_90 and upper_90 (NaN: none).
      skills: by ticker.
    """
    ranked = sorted(skills, key=lambda ticker: skills[ticker])
    chosen = [ranked[i] for i in np.unique(np.linspace(0, len(ranked) - 1, PANELS).round().astype(int))]
    columns = min(2, len(chosen))
    lines = -(-len(chosen) // columns)
    figure = new_figure(5.6 * columns, 2.9 * lines)
    for axes, ticker in zip(np.ravel(figure.subplots(lines, columns)), chosen, strict=False):
        rows = records[records['ticker'] == ticker].tail(DAYS)
        days = rows['target_date'].to_numpy()
        axes.fill_between(days, rows['lower_90'], rows['upper_90'], color=BLUE, alpha=0.15, lw=0, label='90% interval')
        axes.plot(days, rows['last_close'], color=FAINT, lw=1, ls='--', label='Naive: last close')
        axes.plot(days, rows['actual'], color=INK, lw=1.2, label='Actual')
        axes.plot(days, rows['predicted'], color=BLUE, lw=1.2, label='Predicted')
        _dates(axes)
        dress(axes, f'{ticker}: skill {skills[ticker]:+.3f}', '', 'Price')
    for empty in figure.axes[len(chosen) :]:
        empty.set_visible(False)
    legend(figure.axes[0])
    return figure


def residuals(records: pd.DataFrame) -> Figure:
    """Relative errors over time: of each day the median over tickers, and the range of the middle 90%."""
    relative = (records['actual'] - records['predicted']) / records['last_close']
    by_day = relative.groupby(records['target_date'].to_numpy()).quantile([0.05, 0.5, 0.95]).unstack()
    days = by_day.index.to_numpy()
    figure = new_figure(9, 3.4)
    axes = figure.add_subplot()
    if records['ticker'].nunique() > 1:
        axes.fill_between(days, by_day[0.05], by_day[0.95], color=BLUE, alpha=0.2, lw=0, label='90% of tickers')
    axes.plot(days, by_day[0.5], color=BLUE, lw=0.8, label='Median')
    axes.axhline(0, color=INK, lw=0.8)
    _dates(axes)
    dress(axes, 'Actual less predicted', '', 'Fraction of last close')
    legend(axes)
    return figure


def skill_by_ticker(skills: Mapping[str, float], intervals: Mapping[str, Sequence[float] | None]) -> Figure:
    """Skill of every ticker with its 95% interval (None: none), worst below; the naive forecast is at zero."""
    names = sorted(skills, key=lambda ticker: skills[ticker])
    values = np.array([skills[name] for name in names])
    ends = np.array([intervals[name] or (np.nan, np.nan) for name in names])
    figure = new_figure(6.4, 1.4 + 0.17 * len(names))
    axes = figure.add_subplot()
    colours = [BLUE if low > 0 else ORANGE if high < 0 else INK for low, high in ends]
    axes.hlines(range(len(names)), ends[:, 0], ends[:, 1], colors=colours, lw=1.4)
    axes.scatter(values, range(len(names)), c=colours, s=14, zorder=3)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-1, len(names))
    dress(axes, 'Skill against the last close, with 95% interval', '1 - RMSE / RMSE of naive', '')
    axes.tick_params(axis='y', labelsize=6.5)
    return figure


def returns(records: pd.DataFrame, repetition: Mapping[str, Any]) -> Figure:
    """Predicted returns over realised ones, which they should follow, and over those just seen, which they repeat."""
    last_close = records['last_close']
    predicted = np.log(records['predicted'].clip(lower=1e-12) / last_close)
    realised = np.log(records['actual'] / last_close)
    figure = new_figure(9, 4.4)
    panels = (
        ('correlation_with_next', realised, 'Realised return'),
        ('correlation_with_last', records['last_return'], 'Return just seen'),
    )
    for axes, (key, other, label) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.scatter(other, predicted, s=4, color=BLUE, alpha=min(1.0, 2000 / len(records)), lw=0, rasterized=True)
        correlation = repetition[key]
        dress(axes, '' if correlation is None else f'Correlation {correlation:+.3f}', label, 'Predicted return')
        axes.axhline(0, color=INK, lw=0.8)
    reach = float(np.abs(realised).max())
    figure.axes[0].plot([-reach, reach], [-reach, reach], color=FAINT, lw=1, ls='--', zorder=0)
    return figure


def _dates(axes: Axes) -> None:
    locator = mdates.AutoDateLocator(maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))
