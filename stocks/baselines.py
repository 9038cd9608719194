"""Forecasts that any model has to beat: drift and a linear autoregression (the naive one is the last close)."""

import numpy as np

LAGS = 5  # a trading week


def fit_drift(closes: np.ndarray) -> float:
    """Mean daily log-return of float64 [rows] closes; 0 where there are fewer than two."""
    return float(np.log(closes[-1] / closes[0]) / (len(closes) - 1)) if len(closes) > 1 else 0.0


def fit_autoregression(closes: np.ndarray, horizon: int) -> np.ndarray:
    """Least squares of the log-return over the horizon on the last LAGS daily log-returns.

    A forecast for each horizon of its own ('direct', Marcellino, Stock and Watson 2006), not one iterated.

    Args:
      closes: float64 [rows], of training alone.
      horizon: rows ahead.

    Returns:
      float64 [1 + LAGS]: the constant, then the coefficients from the latest return backwards. All zero, which
      is the naive forecast, where there are too few rows to determine them.
    """
    regressors = lagged_returns(closes)[:-horizon]
    returns = np.log(closes[horizon:] / closes[:-horizon])
    known = ~np.isnan(regressors).any(axis=1)
    if known.sum() <= 2 * (1 + LAGS):
        return np.zeros(1 + LAGS)
    return np.linalg.lstsq(regressors[known], returns[known], rcond=None)[0]


def lagged_returns(closes: np.ndarray) -> np.ndarray:
    """float64 [rows, 1 + LAGS]: one, then the daily log-returns that end at the row; NaN before there are any."""
    returns = np.diff(np.log(closes))
    table = np.full((len(closes), 1 + LAGS), np.nan)
    table[:, 0] = 1.0
    for lag in range(min(LAGS, len(returns))):
        table[lag + 1 :, 1 + lag] = returns[: len(returns) - lag]
    return table


def baseline_prices(closes: np.ndarray, training: slice, horizon: int) -> dict[str, np.ndarray]:
    """The baselines' forecasts from every row, `horizon` rows ahead, fitted on the rows `training` alone.

    Takes float64 [rows] closes; returns float64 [rows] prices by name. Returns before the first row count as 0.
    """
    drift = fit_drift(closes[training])
    coefficients = fit_autoregression(closes[training], horizon)
    return {
        'drift': closes * np.exp(drift * horizon),
        'autoregression': closes * np.exp(np.nan_to_num(lagged_returns(closes)) @ coefficients),
    }
