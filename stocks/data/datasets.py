"""Prepares a folder of price files once, as ArrayRecord, and loads it as the splits that a config asks for."""

import contextlib
import importlib.util
import io
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from common.data.audit import Audit
from common.data.dataset import Dataset
from common.data.images import exclusive
from common.data.raw import RawFiles, open_raw
from common.errors import DataError, UsageError
from stocks.data.csv_files import COLUMNS, History, Reader, price_names
from stocks.data.panel import build, check

VERSION = '1.0.0'
DEMO = 'demo'  # the config.dataset.name of the prices that come with a package
DEMO_PACKAGE, DEMO_FILE = 'bokeh_sampledata', 'stocks.csv.gz'


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
    home = final.parent
    home.mkdir(parents=True, exist_ok=True)
    with exclusive(home), _open(config, raw_dir, final) as (raw, names), contextlib.ExitStack() as stack:
        audit = Audit.begin(f'daily prices ({config.name})', final / 'audit.json', raw.path, raw.signature())
        if audit.kept:
            return audit
        reader = Reader()
        for name in names:
            reader.read(name, raw.read(name))
        reader.add_to(audit)
        if not skip_bad:
            audit.refuse_bad()
        if not reader.histories:
            raise DataError(f'{raw.path} holds no usable prices.\n{audit}')
        incomplete = home / 'incomplete'
        shutil.rmtree(incomplete, ignore_errors=True)
        stack.callback(shutil.rmtree, incomplete, ignore_errors=True)
        builder = PriceHistories(config.name, list(reader.histories.values()), data_dir=str(incomplete))
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        written = pathlib.Path(builder.data_dir)
        audit.save(written / 'audit.json')
        shutil.rmtree(final, ignore_errors=True)
        written.rename(final)
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


class PriceHistories(tfds.core.GeneratorBasedBuilder):
    """One record for each ticker: its name, its dates (days since 1970) and its values in the order of COLUMNS."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, name: str, histories: Sequence[History], **kwargs: Any):
        self.name = name
        self._histories = histories
        super().__init__(file_format='array_record', **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            'ticker': tfds.features.Text(),
            'dates': tfds.features.Tensor(shape=(None,), dtype=np.int64),
            # As bytes, because the format's own lists of numbers are float32.
            'values': tfds.features.Tensor(shape=(None, len(COLUMNS)), dtype=np.float64, encoding='bytes'),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Iterator[tuple[str, Mapping[str, Any]]]]:
        del dl_manager
        return {'tickers': self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for history in self._histories:
            dates = history.dates.astype('datetime64[D]').astype(np.int64)
            yield history.ticker, {'ticker': history.ticker, 'dates': dates, 'values': history.values}


@contextlib.contextmanager
def _open(
    config: ConfigDict, raw_dir: pathlib.Path | None, prepared: pathlib.Path
) -> Iterator[tuple[RawFiles, list[str]]]:
    """The raw files and which of them hold prices."""
    if raw_dir is None and config.name != DEMO:
        raise UsageError(
            f'there are no raw files to prepare {config.name} in {prepared} from: set config.dataset.raw_dir '
            '(experiments.prepare also takes --raw_dir) to a folder or a zip of daily prices, one CSV a ticker, or '
            'give the --data_dir in which they are prepared'
        )
    with open_raw(raw_dir or _demo_folder()) as raw:
        yield raw, [DEMO_FILE] if raw_dir is None else price_names(raw)


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
