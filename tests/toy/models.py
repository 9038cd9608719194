"""A small multilayer perceptron."""

import flax.linen as nn
import jax

from common.nn.layers import Dropout
from common.runtime import AXIS


class MLP(nn.Module):
    """One hidden layer.

    Attributes:
      width: of the hidden layer.
      batch_norm: whether it is normalised.
      dropout: rate after it.
    """

    width: int
    batch_norm: bool
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [batch, features] -> [batch]."""
        x = nn.Dense(self.width)(x)
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=AXIS)(x)
        return nn.Dense(1)(Dropout(self.dropout)(nn.tanh(x), train=train))[..., 0]
