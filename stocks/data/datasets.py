"""Prepares a folder of price files once, as ArrayRecord, and loads it as the splits that a config asks for."""

import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from common.data.audit import Audit
from common.data.dataset import Dataset
from common.data.raw import open_raw
from common.data.records import VERSION, preparing, write_records
from common.errors import DataError, UsageError
from stocks.data.csv_files import COLUMNS, History, Reader, price_names
from stocks.data.panel import build, check

DEMO = 'demo'  # the config.dataset.name of the prices that come with a package
DEMO_PACKAGE, DEMO_FILE = 'bokeh_sampledata', 'stocks.csv.gz'
FEATURES = {
    'ticker': tfds.features.Text(),
    'dates': tfds.features.Tensor(shape=(None,), dtype=np.int64),  # days since 1970
    # As bytes, because the format's own lists of numbers are float32.
    'values': tfds.features.Tensor(shape=(None, len(COLUMNS)), dtype=np.float64, encoding='bytes'),
}


def prepare(config: ConfigDict, raw_dir: pathlib.Path | None, data_dir: pathlib.Path, skip_bad: bool) -> Audit:
    """Reads, audits and stores all price files below `raw_dir`; does nothing where they are already prepared.

    What is stored does not depend on windows, splits or scalers, which `load` makes afresh.

    Args:
      config: a config's `dataset` part, read for `name`.
      raw_dir: folder or zip; None for the demo's prices.
      data_dir: holds the prepared data sets by name.
      skip_bad: leaves bad files and rows out instead of refusing them.

    Raises:
      DataError: the raw files have faults; nothing is left behind then.
    """
    check(config)
    final = _prepared_path(config, data_dir)
    if raw_dir is None and config.name != DEMO:
        raise UsageError(
            f'there are no raw files to prepare {config.name} in {final} from: set config.dataset.raw_dir '
            '(experiments.prepare also takes --raw_dir) to a folder or a zip of daily prices, one CSV a ticker, or '
            'give the --data_dir in which they are prepared'
        )
    with preparing(final, final.parent) as written, open_raw(raw_dir or _demo_folder()) as raw:
        audit = Audit.begin(f'daily prices ({config.name})', final / 'audit.json', raw.path, raw.signature())
        if audit.kept:
            return audit
        reader = Reader()
        for name in price_names(raw) if raw_dir else [DEMO_FILE]:
            reader.read(name, raw.read(name))
        reader.add_to(audit)
        if not skip_bad:
            audit.refuse_bad()
        if not reader.histories:
            raise DataError(f'{raw.path} holds no usable prices.\n{audit}')
        write_records(written, config.name, FEATURES, {'tickers': map(_example, reader.histories.values())})
        audit.save(written / 'audit.json')
    return audit


def is_prepared(config: ConfigDict, data_dir: pathlib.Path) -> bool:
    """Whether the prices are there and complete."""
    return (_prepared_path(config, data_dir) / 'audit.json').exists()


def load(config: ConfigDict, data_dir: pathlib.Path) -> Dataset:
    """The prepared prices, split and scaled as `config` says; see `stocks.data.panel.build`."""
    return build(read_histories(config, data_dir), config)


def read_histories(config: ConfigDict, data_dir: pathlib.Path) -> list[History]:
    """All histories that were prepared, sorted by ticker; raises DataError where they are not."""
    path = _prepared_path(config, data_dir)
    if not is_prepared(config, data_dir):
        raise DataError(
            f'{config.name} is not prepared in {path}. Run experiments.prepare with this config, or set '
            'config.dataset.raw_dir.'
        )
    records = tfds.builder_from_directory(str(path)).as_data_source('tickers')
    histories = [
        History(
            ticker=record['ticker'].decode(),
            dates=record['dates'].astype('datetime64[D]'),
            values=record['values'],
        )
        for record in records
    ]
    return sorted(histories, key=lambda history: history.ticker)


def _example(history: History) -> Mapping[str, Any]:
    return {'ticker': history.ticker, 'dates': history.dates.astype(np.int64), 'values': history.values}


def _demo_folder() -> pathlib.Path:
    """Where the package keeps its tables; found without importing it."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError(
            'the demo prices come with the package bokeh-sampledata: install it, or set config.dataset.raw_dir'
        )
    return pathlib.Path(spec.origin).parent / '_data'


def _prepared_path(config: ConfigDict, data_dir: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(data_dir).expanduser() / config.name / VERSION
