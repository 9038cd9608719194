"""The forecaster: LSTM layers over the window, and a linear head on its last step."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from common.nn.lstm import LSTM


class Forecaster(nn.Module):
    """Maps windows float32 [batch, window, features] to forecasts float32 [batch, outputs], in scaled units.

    It computes in float32 on every device unless told otherwise: bfloat16 keeps about three digits, and a day's move of
    a price is in the third. The head starts at zero, so that the first forecast of a return is the naive one.
    """

    hidden_size: int  # units of each LSTM layer
    num_layers: int  # LSTM layers
    dropout_rate: float  # between the layers
    num_outputs: int = 1  # 1, or the number of quantiles
    dtype: Any = jnp.float32  # of the LSTM layers' products and outputs

    @nn.compact
    def __call__(self, windows: jax.Array, *, train: bool = False) -> jax.Array:
        hidden = LSTM(self.hidden_size, self.num_layers, self.dropout_rate, dtype=self.dtype)(windows, train=train)
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros, name='head')(hidden[:, -1])
