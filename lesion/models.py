"""The classifiers of skin lesions, by the name that `config.model.name` gives them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nn.cnn import CNN, convolutional_trunk
from common.nn.grad_cam import feature_map
from common.nn.layers import Dropout
from common.nn.lstm import LSTM
from common.runtime import AXIS


class CNNLSTM(nn.Module):
    """The convolutional stages of `CNN`, whose last feature map an LSTM reads as a sequence of positions.

    The sequence goes row by row, each from left to right. The classifier sees the mean of the LSTM's outputs over all
    positions: its last output alone would hardly know of the rows above, since a fresh LSTM forgets half at each step.

    Attributes:
      num_classes: of the logits.
      widths, depth: of the convolutional stages, as in `CNN`; each stage halves height and width.
      hidden_size: units of the LSTM in each direction.
      bidirectional: another LSTM reads the sequence from its end.
      dropout: rate before the logits.
      convolution: the path that convolutions take, see common/nn/conv.py.
      dtype: of the computation; parameters are float32.
      axis_name: of the devices over which BatchNorm takes its statistics.
    """

    num_classes: int
    widths: Sequence[int] = (32, 64, 128, 256)
    depth: int | Sequence[int] = 2
    hidden_size: int = 128
    bidirectional: bool = True
    dropout: float = 0.3
    convolution: str = 'auto'
    dtype: Any = jnp.float32
    axis_name: str | None = AXIS

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [batch, height, width, channels] -> logits float32 [batch, num_classes]."""
        x = convolutional_trunk(
            x,
            self.widths,
            self.depth,
            train=train,
            path=self.convolution,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        x = feature_map(self, x)
        sequence = x.reshape(x.shape[0], -1, x.shape[-1])
        outputs = LSTM(self.hidden_size, bidirectional=self.bidirectional, dtype=self.dtype)(sequence, train=train)
        x = Dropout(self.dropout, self.axis_name)(outputs.mean(1), train=train)
        return nn.Dense(self.num_classes, dtype=jnp.float32)(x.astype(jnp.float32))


MODELS: Mapping[str, Callable[..., nn.Module]] = {'cnn': CNN, 'cnn_lstm': CNNLSTM}
