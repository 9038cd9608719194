"""Reads daily prices from CSV files and names what is wrong in them."""

import collections
import dataclasses
import pathlib

import numpy as np
import pandas as pd

from common.data.audit import Audit
from common.data.raw import RawFiles
from common.errors import DataError
from stocks.data.tables import COLUMNS, price_tables

ENDINGS = ('.csv', '.txt', '.csv.gz')
LONG_GAP = np.timedelta64(7, 'D')
SPLIT = np.log(1.15)  # between a day's move of Close and of Adj Close; ordinary dividends stay far below
THOUSANDS = r'\s*[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?\s*'  # not 118,25, 0,985 or 1.234,567, which stay text
LARGE_MOVE = np.log(1.4)  # without Adj Close: the smallest usual split, 3 for 2, moves the price by more

FAULTS = {  # kind: (meaning, whether prepare stops on it)
    'not_a_table': ('files that are no table of daily prices', True),
    'unreadable_date': ('rows whose date is not written YYYY-MM-DD', True),
    'non_numeric': ('rows with text where a number belongs', True),
    'non_positive_price': ('rows with a price of zero or less', True),
    'negative_volume': ('rows with a volume below zero', True),
    'high_below_low': ('rows whose High is below their Low (left out)', False),
    'contradictory_date': ('rows that contradict an earlier row of the same date', True),
    'repeated_ticker': ('files that bring a ticker once more, with other rows', True),
    'repeated_history': ('files that bring a ticker once more, with the very same rows (used once)', False),
    'no_rows': ('files, or tickers of a file, without a usable row (left out)', False),
    'no_volume': ('files without Volume (to train on them, leave it out of config.dataset.features)', False),
    'blank': ('rows with blanks (left out)', False),
    'repeated_row': ('rows that are there twice (left out once)', False),
    'unsorted': ('histories not in the order of their dates (sorted)', False),
    'long_gap': ('gaps of more than a week (kept: windows count rows, not days)', False),
    'constant_column': ('columns that never change', False),
    'split': ('days on which Close moves and Adj Close does not: splits or spin-offs, no crashes', False),
    'possible_split': (
        'moves by a factor of 1.4 and more in a day, with no Adj Close to tell splits from crashes',
        False,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """The daily prices of one ticker."""

    ticker: str
    dates: np.ndarray  # datetime64[D] [rows], strictly increasing
    # float64 [rows, 6] in the order of COLUMNS, finite, but for a Volume that the file lacks, which is NaN; prices are
    # positive; where the file lacks Adj Close, that is Close
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.dates)


class Reader:
    """Reads price files one by one and remembers their faults; what cannot be used is left out.

    Attributes:
      faults: by kind, one string per fault with file and row. Row 1 of a file is its header.
      left_out: those of rows that are left out, by ticker (for rows without one, by file) and kind.
      histories: by ticker.
      files: by ticker, the file of its history.
      last_days: by file, the last day of all its rows; those left out and those of other tickers count too.
      formats: how many files there were of each layout.
    """

    def __init__(self) -> None:
        self.faults: dict[str, list[str]] = {kind: [] for kind in FAULTS}
        self.left_out: dict[str, dict[str, list[str]]] = collections.defaultdict(lambda: collections.defaultdict(list))
        self.histories: dict[str, History] = {}
        self.files: dict[str, str] = {}
        self.last_days: dict[str, pd.Timestamp] = {}
        self.formats: collections.Counter[str] = collections.Counter()

    def read(self, name: str, content: bytes) -> list[History]:
        """The histories in one file, by its name and bytes; also added to `histories`."""
        try:
            layout, tables = price_tables(name, content)
        except DataError as error:
            self.faults['not_a_table'].append(f'{name}: {error}')
            return []
        self.formats[layout] += 1
        judged = {ticker: self._judged_rows(name, table) for ticker, table in tables.items()}
        self.last_days[name] = pd.Series([table['Date'].max() for table in judged.values()], dtype='M8[s]').max()
        return [history for ticker, table in judged.items() for history in self._histories(name, ticker, table)]

    def add_to(self, audit: Audit) -> None:
        """Adds the findings so far."""
        histories = list(self.histories.values())
        layouts = {layout: {'files': files} for layout, files in self.formats.items()}
        lengths = [len(history) for history in histories]
        audit.count(layouts=layouts, tickers=len(histories), rows=sum(lengths))
        if histories:
            audit.count(
                rows_per_ticker=f'{min(lengths)} to {max(lengths)}',
                first_date=str(min(history.dates[0] for history in histories)),
                last_date=str(max(history.dates[-1] for history in histories)),
            )
        for kind, (meaning, fatal) in FAULTS.items():
            audit.add(kind, meaning, self.faults[kind], fatal=fatal)

    def _histories(self, name: str, only: str, frame: pd.DataFrame) -> list[History]:
        """Those in one table of judged rows, of the ticker `only` if that is not empty, that are not known yet."""
        tickers, frame = _tickers(name, frame), frame[frame['Usable']]
        if frame.empty:
            self.faults['no_rows'].append(f'{name}: {only}' if only else name)
            return []
        lost = {*tickers.dropna()} - {*tickers[frame.index]}
        self.faults['no_rows'] += [f'{name}: {ticker}' for ticker in sorted(lost)]
        if 'Volume' not in frame:
            self.faults['no_volume'].append(name)
        found = []
        for ticker, rows in frame.groupby(tickers, sort=True):
            where = f'{name} ({ticker})' if 'Ticker' in frame else name
            history = self._history(str(ticker), where, rows)
            if history is None:
                continue
            known = self.histories.setdefault(history.ticker, history)
            if known is history:
                self.files[history.ticker] = name
                self._examine(where, history, adjusted='Adj Close' in frame)
                found.append(history)
            elif _same(known, history):
                self.faults['repeated_history'].append(f'{name}: {ticker}')
            else:
                used = self.files[history.ticker]
                self.faults['repeated_ticker'].append(f'{name}: {ticker} has other rows in {used}, which is used')
        return found

    def _judged_rows(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows with their dates and numbers parsed; `Usable` are those without a fault."""
        numbers = [column for column in COLUMNS if column in frame]
        values = pd.DataFrame({column: _parsed(frame[column]) for column in numbers})
        days = frame['Date'].str[:10]
        days = days.where(days.str.len() >= len('20200102'))  # a year or a month would be taken for its first day
        dates = pd.to_datetime(days, format='ISO8601', errors='coerce')
        cells = {  # a row is named under the first of its faults
            'blank': frame[[*frame.columns.intersection(['Ticker']), 'Date', *numbers]].isna(),
            'unreadable_date': dates.isna().to_frame('Date'),
            'non_numeric': ~np.isfinite(values),
            'non_positive_price': values.drop(columns='Volume', errors='ignore') <= 0,
            'negative_volume': values.filter(['Volume']) < 0,
            'high_below_low': (values['High'] < values['Low']).to_frame('High'),
        }
        usable = pd.Series(True, index=frame.index)
        tickers = _tickers(name, frame).fillna(name)
        for kind, bad in cells.items():
            bad = bad[usable & bad.any(axis=1)]
            columns = bad.columns[bad.to_numpy().argmax(axis=1)] if len(bad) else []
            for row, column in zip(bad.index, columns, strict=True):
                cell = frame.at[row, column]
                what = 'blank' if kind == 'blank' else repr(cell) if isinstance(cell, str) else str(cell)
                whose = f' of {frame.at[row, "Ticker"]}' if 'Ticker' in frame and column != 'Ticker' else ''
                self._leave_out(tickers[row], kind, f'{name} row {row}: {column}{whose} is {what}')
            usable[bad.index] = False
        return frame.assign(Date=dates, **values, Usable=usable)

    def _leave_out(self, ticker: str, kind: str, fault: str) -> None:
        self.faults[kind].append(fault)
        self.left_out[ticker][kind].append(fault)

    def _history(self, ticker: str, where: str, rows: pd.DataFrame) -> History | None:
        """Sorts one ticker's rows by date and keeps the first of each; None where they are no daily prices."""
        dates, index = rows['Date'].to_numpy(dtype='datetime64[D]'), rows.index.to_numpy()
        closes = rows['Adj Close' if 'Adj Close' in rows else 'Close']
        values = rows.assign(**{'Adj Close': closes}).reindex(columns=list(COLUMNS)).to_numpy(dtype=float)
        backwards = np.flatnonzero(np.diff(dates) < np.timedelta64(0, 'D'))
        if len(backwards):
            self.faults['unsorted'].append(f'{where} row {index[backwards[0] + 1]} predates the one above')
        order = np.argsort(dates, kind='stable')
        dates, values, index = dates[order], values[order], index[order]
        unique, first, which = np.unique(dates, return_index=True, return_inverse=True)
        same = ((values == values[first[which]]) | np.isnan(values)).all(axis=1)
        if 2 * np.count_nonzero(~same) > len(unique):
            self.faults['not_a_table'].append(
                f'{where} has {len(dates)} rows for {len(unique)} dates: bars of hours or minutes, or several tickers '
                'without a column Ticker; bring one row a day'
            )
            return None
        for row in np.setdiff1d(np.arange(len(dates)), first):
            kind = 'repeated_row' if same[row] else 'contradictory_date'
            fault = f'{where} row {index[row]}: {dates[row]} is also row {index[first[which[row]]]}'
            self._leave_out(ticker, kind, fault)
        return History(ticker=ticker, dates=unique, values=values[first])

    def _examine(self, where: str, history: History, *, adjusted: bool) -> None:
        """Looks for what is no error in itself but may deceive a forecast."""
        dates, values = history.dates, history.values
        for row in np.flatnonzero(np.diff(dates) > LONG_GAP):
            self.faults['long_gap'].append(f'{where}: nothing from {dates[row]} to {dates[row + 1]}')
        for column, name in enumerate(COLUMNS[: len(COLUMNS) if adjusted else -1]):
            if len(dates) > 1 and np.ptp(values[:, column]) == 0:
                self.faults['constant_column'].append(f'{where}: {name} is always {values[0, column]:g}')
        close, adjusted_close = np.diff(np.log(values[:, [COLUMNS.index('Close'), -1]]), axis=0).T
        moves = np.abs(close - adjusted_close) > SPLIT if adjusted else np.abs(close) > LARGE_MOVE
        for row in np.flatnonzero(moves):
            move = f'{where}: {dates[row + 1]} Close moves by {np.expm1(close[row]):+.1%}'
            if adjusted:
                move += f', Adj Close by {np.expm1(adjusted_close[row]):+.1%}'
            self.faults['split' if adjusted else 'possible_split'].append(move)


def price_names(raw: RawFiles) -> list[str]:
    """The files that are to be read, by their endings; raises DataError where there is none."""
    names = [name for name in raw.names if name.lower().endswith(ENDINGS)]
    if not names:
        raise DataError(f'{raw.path} holds no .csv or .txt file; bring one with daily prices for each ticker')
    return names


def _tickers(name: str, frame: pd.DataFrame) -> pd.Series:
    """Of every row of a file."""
    return frame['Ticker'] if 'Ticker' in frame else pd.Series(_ticker(name), index=frame.index)


def _ticker(name: str) -> str:
    """BRK.B of folder/BRK.B.csv, AAPL of aapl.us.txt."""
    stem = pathlib.PurePath(name).name
    for ending in ('.csv.gz', '.csv', '.txt', '.us', '_data'):
        stem = stem[: -len(ending)] if stem.lower().endswith(ending) else stem
    return stem.upper()


def _parsed(column: pd.Series) -> pd.Series:
    """As float64, NaN for what is no number; 1,000.5 is one, TRUE is none."""
    if pd.api.types.infer_dtype(column) == 'boolean':  # of TRUE, FALSE and blanks
        column = column.astype('string')
    if not pd.api.types.is_numeric_dtype(column):
        column = column.mask(column.str.fullmatch(THOUSANDS, na=False), column.str.replace(',', ''))
    return pd.to_numeric(column, errors='coerce').astype(float)


def _same(a: History, b: History) -> bool:
    return np.array_equal(a.dates, b.dates) and np.array_equal(a.values, b.values, equal_nan=True)
