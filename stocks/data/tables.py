"""Tables of daily prices in the CSV layouts in which they are published, under one set of column names."""

import gzip
import io
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from common.errors import DataError

PRICES = ('Open', 'High', 'Low', 'Close')
COLUMNS = (*PRICES, 'Volume', 'Adj Close')
HEADERS = {name.lower().replace(' ', ''): name for name in ('Date', *COLUMNS)}
# 118.25, .5, 1,234.5 and 1,234,567 show that points are decimal; 118,25, 43,212 and 1.234,56 may have a decimal comma
DECIMAL_POINT = r'\s*[\d,]*\.\d*\s*|\s*\d{1,3}(?:,\d{3}){2,}\s*'
DECIMAL_COMMA = r'\s*[\d.]*\d,\d+\s*'
TICKERS = ('ticker', 'symbol', 'name')  # the first of them that is there; the others are the company's name or such


def price_tables(name: str, content: bytes) -> tuple[str, dict[str, pd.DataFrame]]:
    """The name of a file's layout, and its tables: one, under '', or of yfinance's layout one under each ticker.

    Commas, semicolons or tabs separate the cells, whichever the first line has most of.

    A table's index is the file's row numbers. Its columns are Date and PRICES, and where the file has them Volume, Adj
    Close and Ticker; Date and Ticker are text, what else is not a number has stayed text too.

    Raises:
      DataError: where the file is no table of daily prices; the message says why, but not the file's name.
    """
    try:
        content = gzip.decompress(content) if name.lower().endswith('.gz') else content
        first = content.partition(b'\n')[0]
        separator = max(',;\t', key=lambda mark: first.count(mark.encode()))
        head = _read(content, sep=separator, header=None, nrows=3, dtype=str).fillna('').to_numpy().tolist()
        lines = {line[0]: line for line in head}
        wide = lines.keys() == {'Price', 'Ticker', 'Date'}
        names = _canonical(['Date', *lines['Price'][1:]] if wide else head[0])
        texts = {place: str for place, column in enumerate(names) if column in ('Date', 'Ticker')}
        header = len(head) - 1 if wide else 0
        columns = range(len(names))
        frame = _read(content, sep=separator, header=header, names=columns, dtype=texts, low_memory=False)
    except UnicodeDecodeError as error:
        raise DataError('it is not written in UTF-8, but perhaps in UTF-16; save it as CSV in UTF-8') from error
    except (ValueError, OSError, EOFError, zlib.error) as error:  # pandas' own errors are ValueErrors
        what = 'it cannot be read as a table of commas, semicolons or tabs'
        raise DataError(f'{what}: {str(error).strip()}') from error
    frame = frame.set_axis(names, axis=1).set_axis(pd.RangeIndex(header + 2, header + 2 + len(frame)))
    if separator != ',':
        _refuse_decimal_commas(frame)
    if wide:
        tickers = np.array(lines['Ticker'])
        places = {ticker: [0, *np.flatnonzero(tickers == ticker)] for ticker in dict.fromkeys(lines['Ticker'][1:])}
        # A day without a trade of this ticker is there for another one.
        tables = {ticker: frame.iloc[:, at].dropna(thresh=2).assign(Ticker=ticker) for ticker, at in places.items()}
    else:
        tables = {'': frame.dropna(how='all')}
    tables = {key: table.loc[:, table.columns.isin(('Date', 'Ticker', *COLUMNS))] for key, table in tables.items()}
    for table in tables.values():
        missing = {'Date', *PRICES} - set(table.columns)
        if missing or table.columns.duplicated().any():
            lack = f'has no {", ".join(sorted(missing))}' if missing else 'names a column twice'
            raise DataError(f'its first line, {",".join(head[0])[:60]!r}, {lack}')
    return 'yfinance' if wide else _layout(names, tables['']), tables


def _read(content: bytes, **options: Any) -> pd.DataFrame:
    return pd.read_csv(
        io.BytesIO(content),
        na_values=[''],
        keep_default_na=False,  # 'null' is text and to be named; NA is a ticker
        skip_blank_lines=False,  # so that row numbers are the file's
        **options,
    )


def _canonical(headers: Sequence[str]) -> list[str]:
    """Adj Close of 'Adj. Close', 'adjusted_close' and 'AdjClose'; Ticker of the first of TICKERS."""
    plain = [re.sub(r'[\W_]', '', header.lower()).replace('adjusted', 'adj') for header in headers]
    ticker = next((name for name in TICKERS if name in plain), None)
    return ['Ticker' if name == ticker else HEADERS.get(name, name) for name in plain]


def _refuse_decimal_commas(frame: pd.DataFrame) -> None:
    """Raises DataError where prices have commas and no price of the file shows that these separate thousands.

    Where commas separate the cells, decimals are hardly written with them, and prices in yen or won like 71,200 are.
    """
    prices = [column.dropna() for name, column in frame.items() if name in (*PRICES, 'Adj Close')]
    texts = [column for column in prices if not pd.api.types.is_numeric_dtype(column)]
    doubtful = [cell for column in texts for cell in column[column.str.fullmatch(DECIMAL_COMMA)]]
    if not doubtful:
        return
    numbers = [column for column in prices if pd.api.types.is_float_dtype(column)]
    points = [*(column.str.fullmatch(DECIMAL_POINT) for column in texts), *(column % 1 != 0 for column in numbers)]
    if not any(column.any() for column in points):
        raise DataError(
            f'the comma of its price {doubtful[0]!r} may be a decimal comma or separate thousands, for no price has a '
            'decimal point; write prices without commas'
        )


def _layout(names: Sequence[str], table: pd.DataFrame) -> str:
    """The name of a recognised layout, for the audit."""
    present: Mapping[str, bool] = {
        'one file with a ticker column': 'Ticker' in table and table['Ticker'].nunique() > 1,
        'Kaggle five-year': 'Ticker' in table,
        'Kaggle huge': 'openint' in names,
        'Yahoo': 'Adj Close' in table,
    }
    return next((layout for layout, here in present.items() if here), 'plain')
