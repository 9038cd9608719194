"""Daily prices of your own (--raw_dir: a folder or zip of CSVs); variants: classic, returns, per_ticker."""

from ml_collections import ConfigDict

from common.config import base_config
from common.errors import UsageError

VARIANTS = ('classic', 'returns', 'per_ticker')


def get_config(variant: str = 'classic') -> ConfigDict:
    """How the price is seen and what is forecast.

    `classic`: the min-max scaled price itself, as the usual recipe has it (which seldom beats the last close).
    `returns`: the log-return from the last close, from windows relative to it, one model for all tickers.
    `per_ticker`: the classic recipe with a model of its own for every ticker, trained together.
    """
    if variant not in VARIANTS:
        raise UsageError(f'there is no variant {variant!r}, only {", ".join(VARIANTS)}')
    returns = variant == 'returns'
    config = base_config()
    with config.unlocked():
        config.per_ticker = variant == 'per_ticker'  # one model for every ticker, all trained in one program
    config.task = 'stocks'
    config.dataset = ConfigDict(
        {
            'name': 'prices',
            'raw_dir': '',
            'tickers': (),  # empty: all
            'min_rows': 0,  # shorter histories are left out
            'features': ('Open', 'High', 'Low', 'Close', 'Volume'),
            'adjust': True,  # for splits and dividends, by Adj Close where there is one
            'window': 60,  # rows, trading days
            'horizon': 1,  # rows from the last close to the one forecast
            'target': 'log_return' if returns else 'price',
            'scaler': 'relative' if returns else 'minmax',  # or standard
            'split_fractions': (0.7, 0.15, 0.15),  # of all rows, in the order of time
            'split_dates': (),  # instead: the last days of training and validation, and (or not) of test
        }
    )
    config.model = ConfigDict({'hidden_size': 64, 'num_layers': 2, 'dropout_rate': 0.2})
    config.loss = ConfigDict(
        {
            'name': 'mse',  # huber, quantile
            'delta': 1.0,  # of huber, in scaled units
            'quantiles': (0.05, 0.5, 0.95),  # of quantile
        }
    )
    config.batch_size = 32 if config.per_ticker else 256
    config.duration = '10epochs'
    config.steps_per_dispatch = 20
    config.accumulate_steps = config.cpu_devices = 0
    config.optimizer.gradient_clip = 1.0
    config.schedule.warmup = '5%'
    return config
