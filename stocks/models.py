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

    Attributes:
      hidden_size: units of each LSTM layer.
      num_layers: LSTM layers.
      dropout_rate: between the layers.
      num_outputs: 1, or the number of quantiles.
      dtype: of the LSTM layers' products and outputs.
    """

    hidden_size: int
    num_layers: int
    dropout_rate: float
    num_outputs: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, windows: jax.Array, *, train: bool = False) -> jax.Array:
        hidden = LSTM(self.hidden_size, self.num_layers, self.dropout_rate, dtype=self.dtype)(windows, train=train)
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros, name='head')(hidden[:, -1])
