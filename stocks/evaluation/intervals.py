"""Prediction intervals by split-conformal calibration, scaled by the volatility of the day."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

LEVELS = (0.80, 0.90, 0.95)


def scores(records: pd.DataFrame, forecast: np.ndarray) -> np.ndarray:
    """float64 [examples]: absolute errors in units of `volatility`, the ticker's own of that day, times last close.

    What is left after that is alike for all tickers and days, calm or not (Lei et al. 2018, section 5.2).
    """
    unit = (records['last_close'] * records['volatility']).to_numpy()
    return np.abs(records['actual'].to_numpy() - forecast) / unit


def calibrate(calibration_scores: np.ndarray) -> dict[float, float]:
    """The half-width of each level's interval, in the units of `scores`.

    It is the score of rank ceil((n + 1) level), which covers a new exchangeable example with at least that
    probability (Vovk et al. 2005; Lei et al. 2018). Days are not exchangeable: hence the coverage that is measured.
    Where there are too few scores for a level, the interval is infinite.
    """
    ordered = np.sort(calibration_scores)
    ranks = {level: math.ceil((len(ordered) + 1) * level) for level in LEVELS}
    return {level: float(ordered[rank - 1]) if rank <= len(ordered) else math.inf for level, rank in ranks.items()}


def bounds(records: pd.DataFrame, forecast: np.ndarray, half_width: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper price, float64 [examples] each; a price never falls below zero."""
    reach = half_width * (records['last_close'] * records['volatility']).to_numpy()
    return np.maximum(forecast - reach, 0.0), forecast + reach


def coverage(
    records: pd.DataFrame, forecast: np.ndarray, half_widths: Mapping[float, float]
) -> dict[str, dict[str, float]]:
    """By level in percent: the share of examples inside, and the mean width relative to the last close."""
    result = {}
    actual, last_close = records['actual'].to_numpy(), records['last_close'].to_numpy()
    for level, half_width in half_widths.items():
        lower, upper = bounds(records, forecast, half_width)
        result[f'{level:.0%}'] = {
            'coverage': float(np.mean((lower <= actual) & (actual <= upper))),
            'mean_relative_width': float(np.mean((upper - lower) / last_close)),
        }
    return result
