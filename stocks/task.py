"""The stocks task: forecasts of daily prices, always beside the naive forecast."""

import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jax import lax
from ml_collections import ConfigDict

from common.config import choose
from common.data.audit import Audit, Finding, finding_lines
from common.data.dataset import Dataset, Split
from common.data.raw import contents, tell_skipped
from common.errors import DataError, UsageError
from common.findings import Evidence, Report
from common.runtime import compute_dtype
from common.task import Task
from common.types import Array, Batch, Keys, Predictions, Tree
from stocks.data import datasets
from stocks.data.csv_files import FAULTS, History, Reader, price_names
from stocks.data.panel import chosen, feature_values, records_of
from stocks.data.periods import walk_forward_dates
from stocks.data.scaling import Scaler, TargetScaler, scaler_of, target_scaler
from stocks.evaluation import intervals
from stocks.evaluation.forecast_metrics import price_errors, skill
from stocks.evaluation.report import forecast_report
from stocks.models import Forecaster

MEDIAN = 0.5


class Stocks(Task):
    """Windows of daily prices in, the close `horizon` rows later out; one model for all tickers or one for each."""

    notice = 'Research software. It gives no financial advice.'
    better: ClassVar[Mapping[str, str]] = {'rmse': 'min', 'directional_accuracy': 'max', 'skill': 'max'}

    def __init__(self, config: ConfigDict, info: Mapping[str, Any]):
        super().__init__(config, info)
        self._tickers = list(info['tickers'])
        self._scalers = {ticker: Scaler(**fitted) for ticker, fitted in info['scalers'].items()}
        self._quantiles = list(config.loss.quantiles) if config.loss.name == 'quantile' else []
        if self._quantiles and MEDIAN not in self._quantiles:
            raise UsageError(f'config.loss.quantiles is {self._quantiles}; it must hold 0.5, the forecast itself')

    @classmethod
    def prepare(cls, config: ConfigDict, raw_dir: pathlib.Path | None, data_dir: pathlib.Path, skip_bad: bool) -> Audit:
        return datasets.prepare(config.dataset, raw_dir, data_dir, skip_bad)

    @classmethod
    def is_prepared(cls, config: ConfigDict, data_dir: pathlib.Path) -> bool:
        return datasets.is_prepared(config.dataset, data_dir)

    @classmethod
    def load(cls, config: ConfigDict, data_dir: pathlib.Path) -> Dataset:
        return datasets.load(config.dataset, data_dir)

    @classmethod
    def walk_forward(cls, config: ConfigDict, data_dir: pathlib.Path, folds: int) -> list[ConfigDict]:
        """One config for each of `folds` consecutive parts of the test period, to train and judge one by one."""
        histories, _ = chosen(datasets.read_histories(config.dataset, data_dir), config.dataset)
        configs = []
        for dates in walk_forward_dates([history.dates for history in histories], config.dataset, folds):
            rolled = config.copy_and_resolve_references()
            rolled.dataset.split_dates = dates
            configs.append(rolled)
        return configs

    def model(self) -> Forecaster:
        """In float32 where `config.precision` is auto, see `Forecaster`."""
        precision = self.config.precision
        dtype = compute_dtype('float32' if precision == 'auto' else precision)
        return Forecaster(**self.config.model, num_outputs=len(self._quantiles) or 1, dtype=dtype)

    def preprocess(self, batch: Batch, tables: Mapping[str, Array], keys: Keys | None) -> Batch:
        """Adds `inputs` float32 [batch, window, features], cut from the table, or from the batch for new files."""
        del keys
        if 'window' in batch:
            windows = jnp.asarray(batch['window'])
        else:
            length = self.config.dataset.window
            cut = functools.partial(lax.dynamic_slice_in_dim, jnp.asarray(tables['prices']), slice_size=length)
            windows = jax.vmap(cut)(batch['day'] - (length - 1))
        if self.config.dataset.scaler == 'relative':
            windows = windows - self._reference(windows)
        return {**batch, 'inputs': windows}

    def loss(self, outputs: Tree, batch: Batch, train: bool) -> Array:
        del train
        error = batch['target'][:, None] - outputs
        losses = {
            'mse': lambda: error**2,
            'huber': lambda: optax.losses.huber_loss(error, delta=self.config.loss.delta),
            'quantile': lambda: _pinball(error, jnp.asarray(self._quantiles)),
        }
        return choose(losses, self.config.loss.name, 'loss.name')().mean(axis=-1)

    def outputs(self, outputs: Tree, batch: Batch) -> dict[str, Array]:
        """`forecast` float32 [batch, outputs], in scaled units."""
        del batch
        return {'forecast': outputs}

    def members(self, split: Split) -> list[np.ndarray] | None:
        """The rows of every ticker, in the order of `info['tickers']`; None for one model for all.

        Raises:
          DataError: for tickers with fewer training examples than a batch.
        """
        if not self.config.per_ticker:
            return None
        codes = split.columns['ticker']
        rows = [np.flatnonzero(codes == code).astype(np.int32) for code in range(len(self._tickers))]
        batch = self.config.batch_size
        short = [f'{t} has {len(r)}' for t, r in zip(self._tickers, rows, strict=True) if len(r) < batch]
        if split.name == 'train' and short:
            raise DataError(
                f'config.per_ticker needs a batch of {batch} training examples from every ticker; {", ".join(short)}: '
                'lower config.batch_size, or leave short histories out by config.dataset.min_rows or .tickers'
            )
        return rows

    def prices(self, predictions: Predictions, split: Split) -> np.ndarray:
        """The forecast close, float64 [examples]: of quantiles the median."""
        column = self._quantiles.index(MEDIAN) if self._quantiles else 0
        scaled = predictions['forecast'][:, column].astype(float)
        return self._target_scaler(split).prices(scaled, split.records['last_close'].to_numpy())

    def metrics(self, predictions: Predictions, split: Split) -> dict[str, float]:
        records, forecast = split.records, self.prices(predictions, split)
        actual, last_close = records['actual'].to_numpy(), records['last_close'].to_numpy()
        errors, naive = price_errors(actual, forecast, last_close), price_errors(actual, last_close, last_close)
        return {
            'rmse': errors['rmse'],
            'naive_rmse': naive['rmse'],
            'directional_accuracy': errors['directional_accuracy'],
            'skill': skill((forecast - actual) / last_close, 1 - actual / last_close),
        }

    def report(self, evidence: Evidence) -> Report:
        """Also writes tickers.csv; see `stocks.evaluation.report`."""
        predictions, split, scores = evidence.predictions, evidence.split, None
        if evidence.calibration is not None:
            said, validation = evidence.calibration
            scores = intervals.scores(validation.records, self.prices(said, validation))
        forecast, scaler = self.prices(predictions, split), self._target_scaler(split)
        horizon = self.config.dataset.horizon
        report = forecast_report(split.records, forecast, scaler, horizon, scores, evidence.directory)
        if not self._quantiles:
            return report
        below = (split.columns['target'][:, None] <= predictions['forecast']).mean(axis=0)
        shares = dict(zip(map(str, self._quantiles), below.tolist(), strict=True))
        return dataclasses.replace(report, metrics={**report.metrics, 'share_below_quantile': shares})

    def meaning(self) -> Any:
        """All of `info` but the prices themselves, so that runs of older and of newer prices may forecast together.

        The window is there because a history may be too short for one run only, and no evaluation takes both.
        """
        dataset = self.config.dataset
        return {
            **{key: value for key, value in self.info.items() if key != 'prices'},
            'dataset.target': dataset.target,
            'dataset.horizon': dataset.horizon,
            'dataset.window': dataset.window,
            'loss.quantiles': self._quantiles,
        }

    def read_inputs(self, paths: Sequence[pathlib.Path]) -> Split:
        """The last window of every ticker in files, folders and zips; prints what is left out, and why.

        Files, tickers and rows with faults are left out as `prepare` with --skip_bad leaves them out. A ticker whose
        file goes on after its last usable row is warned of.

        Raises:
          DataError: where no ticker can be forecast: those whose history is shorter than the window, that have no
            scaler or model, or lack a feature, cannot.
        """
        reader = Reader()
        files = [file for path in paths for file in contents(path, price_names)]
        histories = [history for name, content in files for history in reader.read(name, content)]
        for ticker, kinds in reader.left_out.items():
            findings = [Finding(kind, FAULTS[kind][0], items) for kind, items in kinds.items()]
            print('\n'.join([f'{ticker}, rows left out:', *map(finding_lines, findings)]))
        found, skipped = [], [*reader.faults['not_a_table'], *reader.faults['repeated_ticker']]
        skipped += [f'{name} has no usable row' for name in reader.faults['no_rows']]
        for history in histories:
            try:
                found.append((history.ticker, *self._last_window(history)))
            except DataError as error:
                skipped.append(str(error))
                continue
            file = reader.files[history.ticker]
            day, last = history.dates[-1], reader.last_days[file]
            if pd.Timestamp(day) < last:
                said = f'{history.ticker} is forecast from {day}, though {file} goes on to {last.date()}'
                warnings.warn(said, stacklevel=2)
        tell_skipped(skipped, everything=not found)
        tickers, windows, records = zip(*found, strict=True)
        codes = [self._tickers.index(ticker) if ticker in self._tickers else -1 for ticker in tickers]
        columns = {'ticker': np.array(codes, np.int32), 'window': np.stack(windows)}
        return Split(name='inputs', columns=columns, records=pd.concat(records, ignore_index=True))

    def write_predictions(self, predictions: Predictions, split: Split, path: pathlib.Path) -> None:
        """`ticker,date,last_close,predicted`: the close `horizon` trading days after `date`, the file's last."""
        table = split.records[['ticker', 'date', 'last_close']].assign(predicted=self.prices(predictions, split))
        table.to_csv(path, index=False, float_format='%.9g')

    def _last_window(self, history: History) -> tuple[np.ndarray, pd.DataFrame]:
        """Scaled window float32 [window, features] and its record."""
        dataset = self.config.dataset
        if self.config.per_ticker and history.ticker not in self._tickers:
            raise DataError(f'ticker {history.ticker} was not in training, so it has no model of its own')
        scaler = scaler_of(self._scalers, history.ticker)
        if len(history) < dataset.window:
            raise DataError(f'{history.ticker} has {len(history)} rows; the window of the model needs {dataset.window}')
        values = feature_values(history, dataset)
        records = records_of(history.dates, values[:, scaler.close], slice(0, 0), dataset.horizon).tail(1)
        records.insert(0, 'ticker', history.ticker)
        return scaler.scaled(values[-dataset.window :]), records

    def _target_scaler(self, split: Split) -> TargetScaler:
        codes, tickers = pd.factorize(split.records['ticker'].astype(str))
        return target_scaler(self.config.dataset.target, self._scalers, list(tickers), codes)

    def _reference(self, windows: jax.Array) -> jax.Array:
        """What relative windows are relative to: the last close, for volumes the mean of the window."""
        names = list(self.config.dataset.features)
        close = names.index('Close')
        is_volume = np.array([name == 'Volume' for name in names])
        return jnp.where(is_volume, windows.mean(axis=1, keepdims=True), windows[:, -1:, close : close + 1])


def _pinball(error: Array, quantiles: Array) -> Array:
    """Loss whose minimum is the quantile (Koenker and Bassett 1978); error is actual less forecast."""
    return jnp.maximum(quantiles * error, (quantiles - 1) * error)


TASK = Stocks
