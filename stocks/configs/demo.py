"""Prices of AAPL, GOOG, IBM and MSFT, 2000-2013, which come with a package: no download, trains within a minute."""

from ml_collections import ConfigDict

from stocks.configs import prices


def get_config(variant: str = 'classic') -> ConfigDict:
    """The variants of `stocks/configs/prices.py`, on little data."""
    config = prices.get_config(variant)
    config.dataset.name = 'demo'
    config.dataset.min_rows = 1000  # FB has 196, none of them in the training period
    config.model.hidden_size = 32
    config.duration = '5epochs'
    return config
