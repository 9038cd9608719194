"""Which days are for training, validation and test; never shuffled, and the same for all tickers."""

import datetime
import itertools
import math
from collections.abc import Iterable, Mapping

import numpy as np
from ml_collections import ConfigDict

from common.errors import UsageError

SPLITS = ('train', 'validation', 'test')
DAY = np.timedelta64(1, 'D')

type Periods = Mapping[str, tuple[np.datetime64, np.datetime64]]  # by split: its first and its last day


def split_periods(dates: Iterable[np.ndarray], config: ConfigDict) -> Periods:
    """The periods that `config` (a config's `dataset` part) asks for; they follow each other without overlap.

    `split_dates` names the last days of training and validation, and if it has a third, of test. Where it is
    empty, `split_fractions` are fractions of all rows, in the order of their dates: where tickers begin in
    different years, few of them early, that leaves later days for training than fractions of the calendar.

    Args:
      dates: datetime64[D] [rows] of each ticker.
      config: read for `split_dates` and `split_fractions`.

    Raises:
      UsageError: for dates out of order or outside the data, and fractions that do not sum to one.
    """
    days = np.sort(np.concatenate(list(dates)))
    if config.split_dates:
        ends = _parsed(config.split_dates, first=days[0], last=days[-1])
    else:
        fractions = tuple(config.split_fractions)
        if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
            raise UsageError(
                f'config.dataset.split_fractions is {fractions}; write three positive numbers that sum to 1'
            )
        ends = [days[math.ceil(len(days) * part) - 1] for part in (fractions[0], fractions[0] + fractions[1])]
        ends.append(days[-1])
    starts = [days[0], ends[0] + DAY, ends[1] + DAY]
    return dict(zip(SPLITS, zip(starts, ends, strict=True), strict=True))


def walk_forward_dates(dates: Iterable[np.ndarray], config: ConfigDict, folds: int) -> list[tuple[str, str, str]]:
    """Values of `split_dates` that roll training and validation through `folds` consecutive parts of the test period.

    Validation keeps its number of trading days and moves along, directly before the part that is tested; all
    days before it are for training.

    Raises:
      UsageError: as `split_periods` does, or if a part has fewer days than window and horizon need.
    """
    dates = list(dates)
    periods, days = split_periods(dates, config), np.unique(np.concatenate(dates))
    spans = row_spans(days, periods)
    test, length = spans['test'], spans['validation'].stop - spans['validation'].start
    count, needed = test.stop - test.start, config.window + config.horizon
    if folds < 1 or count // folds < needed:
        raise UsageError(
            f'--walk_forward={folds}: {count} days of test, of which a period needs {needed} (window and horizon), '
            f'make at most {count // needed}; give that or fewer, or train with more days of test or a shorter window'
        )
    edges = np.linspace(test.start, test.stop, folds + 1).astype(int)
    return [
        (str(days[start - length - 1]), str(days[start - 1]), str(days[stop - 1]))
        for start, stop in itertools.pairwise(edges)
    ]


def row_spans(dates: np.ndarray, periods: Periods) -> dict[str, slice]:
    """By split, the rows (datetime64[D] [rows], rising) that its period holds, whose ends need be no trading days."""
    return {
        name: slice(int(np.searchsorted(dates, first, 'left')), int(np.searchsorted(dates, last, 'right')))
        for name, (first, last) in periods.items()
    }


def window_ends(span: slice, window: int, horizon: int) -> np.ndarray:
    """int [examples], the last input row of every window that lies in the span together with its target."""
    return np.arange(span.start + window - 1, max(span.stop - horizon, span.start + window - 1))


def _parsed(texts: Iterable[str], first: np.datetime64, last: np.datetime64) -> list[np.datetime64]:
    key, ends = 'config.dataset.split_dates', []
    for text in texts:
        try:
            ends.append(np.datetime64(datetime.date.fromisoformat(str(text))))
        except ValueError as error:
            raise UsageError(f'{key}: {text!r} is no date; write YYYY-MM-DD') from error
    if len(ends) not in (2, 3):
        raise UsageError(f'{key} has {len(ends)} dates; write the last days of training, validation and (or not) test')
    if len(ends) == 2:
        ends.append(last)
    if not first <= ends[0] < ends[1] < ends[2] <= last:
        named = ', '.join(f'{name} until {day}' for name, day in zip(SPLITS, ends, strict=True))
        raise UsageError(
            f'{key}: {named}; these must rise and lie within the prices, which run from {first} to {last} '
            '(what lies after them is the future)'
        )
    return ends
