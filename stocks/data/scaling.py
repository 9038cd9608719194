"""Scalers of features and targets: fitted on training rows, kept with the run, and able to invert what they did."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from common.errors import DataError

ANY_TICKER = '*'  # the scaler that knows no ticker and so serves all
KINDS = ('minmax', 'standard', 'relative')
TARGETS = ('price', 'log_return')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaler:
    """One ticker's scaler; JSON-able."""

    # 'minmax' and 'standard' are affine in the values themselves, 'relative' in their logarithms, of which the
    # model sees the differences from the last close (prices) or from the window's mean (volume)
    kind: str
    names: Sequence[str]  # of the features
    offset: Sequence[float]  # one value per feature, subtracted
    scale: Sequence[float]  # one value per feature, divided by
    return_scale: float  # standard deviation of the log-return over the horizon

    @property
    def close(self) -> int:
        return list(self.names).index('Close')

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """float64 [rows, features] of prices and volumes, as the scaled float32 that the table holds."""
        if self.kind == 'relative':
            is_volume = np.array([name == 'Volume' for name in self.names])
            values = np.log(values + is_volume)  # days without trade have volume 0
        return ((values - self.offset) / self.scale).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetScaler:
    """Scales the targets of many examples at once and inverts forecasts of them; all arrays are float64."""

    # 'price' (the close at the horizon, scaled as the feature is) or 'log_return' (from the last close to it, in
    # standard deviations)
    target: str
    offset: np.ndarray  # one value per example
    scale: np.ndarray  # likewise

    def scaled(self, prices: np.ndarray, last_close: np.ndarray) -> np.ndarray:
        """Prices at the horizon in scaled units; [examples] each."""
        values = prices if self.target == 'price' else np.log(prices / last_close)
        return (values - self.offset) / self.scale

    def prices(self, scaled: np.ndarray, last_close: np.ndarray) -> np.ndarray:
        """Inverts `scaled`."""
        values = scaled * self.scale + self.offset
        return values if self.target == 'price' else last_close * np.exp(values)


def fit_scalers(
    kind: str, training: Mapping[str, np.ndarray], *, names: Sequence[str], horizon: int, window: int
) -> dict[str, Scaler]:
    """Scalers from training rows alone: one per ticker, or for 'relative' one that serves any ticker.

    Args:
      kind: one of KINDS.
      training: by ticker, float64 [rows, features] of its training rows, rows > horizon.
      names: of the features, Close among them.
      horizon: rows from the last close to the target.
      window: rows that a model sees at once.
    """
    close = list(names).index('Close')
    spreads = {
        ticker: float(np.std(np.log(values[horizon:, close] / values[:-horizon, close])))
        for ticker, values in training.items()
    }
    if kind == 'relative':
        pooled = float(np.sqrt(np.mean(np.square(list(spreads.values()))))) or 1.0
        reach = pooled * math.sqrt(window / horizon)  # about how far a random walk gets within the window
        return {
            ANY_TICKER: Scaler(
                kind=kind,
                names=names,
                offset=[0.0] * len(names),
                scale=[1.0 if name == 'Volume' else reach for name in names],
                return_scale=pooled,
            )
        }
    scalers = {}
    for ticker, values in training.items():
        if kind == 'minmax':
            offset, scale = values.min(axis=0), np.ptp(values, axis=0)
        else:
            offset, scale = values.mean(axis=0), values.std(axis=0)
        scalers[ticker] = Scaler(
            kind=kind,
            names=names,
            offset=offset.tolist(),
            scale=np.where(scale > 0, scale, 1.0).tolist(),  # a feature that never changed in training
            return_scale=spreads[ticker] or 1.0,
        )
    return scalers


def scaler_of(scalers: Mapping[str, Scaler], ticker: str) -> Scaler:
    """Raises DataError for a ticker whose scaler was never fitted."""
    found = scalers.get(ticker) or scalers.get(ANY_TICKER)
    if found is None:
        kind = next(iter(scalers.values())).kind
        raise DataError(
            f'ticker {ticker} was not in training, so its {kind} scaler was never fitted and can neither scale '
            "nor invert it: train with it, or train with config.dataset.scaler='relative', which serves any"
        )
    return found


def target_scaler(
    target: str, scalers: Mapping[str, Scaler], tickers: Sequence[str], codes: np.ndarray
) -> TargetScaler:
    """The scaler of examples whose tickers are `tickers[codes]`; raises DataError as `scaler_of` does."""
    found = [scaler_of(scalers, ticker) for ticker in tickers]
    by_ticker = [(s.offset[s.close], s.scale[s.close]) if target == 'price' else (0.0, s.return_scale) for s in found]
    offset, scale = np.array(by_ticker, dtype=float)[codes].T
    return TargetScaler(target=target, offset=offset, scale=scale)
