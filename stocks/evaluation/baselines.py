"""Forecasts that any model has to beat: drift and a linear autoregression (the naive one is the last close)."""

import numpy as np

LAGS = 5  # a trading week
LEAST_ROWS = 60  # a quarter; a mean return of fewer days is noise


def baseline_prices(closes: np.ndarray, training: slice, horizon: int) -> dict[str, np.ndarray]:
    """The baselines' forecasts from every row, `horizon` rows ahead, fitted on the rows `training` alone.

    Drift is the last close with the mean log-return added; autoregression is a least-squares fit to the last LAGS
    daily log-returns. Where training rows are fewer than 60, or than twice the horizon and LAGS,
    both are the naive forecast.

    Args:
      closes: float64 [rows].
      training: rows on which to fit.
      horizon: rows ahead.

    Returns:
      float64 [rows] prices by name. Returns before the first row count as zero.
    """
    known = closes[training]
    enough = len(known) >= max(LEAST_ROWS, 2 * horizon + LAGS)
    drift = fit_drift(known) if enough else 0.0
    coefficients = fit_autoregression(known, horizon) if enough else np.zeros(1 + LAGS)
    return {
        'drift': closes * np.exp(drift * horizon),
        'autoregression': closes * np.exp(np.nan_to_num(lagged_returns(closes)) @ coefficients),
    }


def fit_drift(closes: np.ndarray) -> float:
    """Mean daily log-return of float64 [rows] closes."""
    return float(np.log(closes[-1] / closes[0]) / (len(closes) - 1))


def fit_autoregression(closes: np.ndarray, horizon: int) -> np.ndarray:
    """Least squares of the log-return over the horizon on the last LAGS daily log-returns.

    A forecast for each horizon of its own ('direct': Marcellino, Stock and Watson 2006), not one iterated.

    Args:
      closes: float64 [rows].
      horizon: rows ahead.

    Returns:
      float64 [1 + LAGS]: the constant, then the coefficients from the latest return backwards.
    """
    regressors = lagged_returns(closes)[LAGS:-horizon]
    returns = np.log(closes[LAGS + horizon :] / closes[LAGS:-horizon])
    return np.linalg.lstsq(regressors, returns, rcond=None)[0]


def lagged_returns(closes: np.ndarray) -> np.ndarray:
    """float64 [rows, 1 + LAGS]: one, then the daily log-returns that end at the row; NaN before there are any."""
    returns = np.diff(np.log(closes))
    table = np.full((len(closes), 1 + LAGS), np.nan)
    table[:, 0] = 1.0
    for lag in range(min(LAGS, len(returns))):
        table[lag + 1 :, 1 + lag] = returns[: len(returns) - lag]
    return table
