"""The textbook CNN: stages of convolution, normalisation and ReLU, then dense layers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.config import choose
from common.errors import UsageError
from common.nn.conv import convolution
from common.nn.grad_cam import feature_map
from common.nn.layers import Dropout
from common.nn.normalisation import BatchNorm
from common.runtime import AXIS

# How a feature map [batch, height, width, channels] becomes vectors.
POOLS = {'average': lambda x: x.mean((1, 2)), 'flatten': lambda x: x.reshape(x.shape[0], -1)}


def convolutional_trunk(module: Any, x: jax.Array, *, train: bool) -> jax.Array:
    """The stages of `CNN`, inside a module whose layers they become and which has its attributes of them.

    Returns:
      [batch, height / 2^stages, width / 2^stages, widths[-1]] of the module's dtype, from x [batch, height, width,
      channels]: the module's last feature map.
    """
    widths, depths, dtype = module.widths, module.depth, module.dtype
    if isinstance(depths, int):
        depths = [depths] * len(widths)
    if len(depths) != len(widths):
        raise UsageError(f'config.model.depth is {depths}; it must have as many numbers as widths {widths}')
    if min(depths, default=0) < 1 or min(widths) < 1:
        raise UsageError(f'config.model.widths is {widths} and depth {depths}; there must be stages, of convolutions')
    conv = partial(nn.Conv, use_bias=False, dtype=dtype, conv_general_dilated=convolution(module.convolution))
    norm = partial(BatchNorm, not train, axis_name=module.axis_name, activation='relu', dtype=dtype)
    x = x.astype(dtype)
    for width, convolutions in zip(widths, depths, strict=True):
        for number in range(1, convolutions + 1):
            x = conv(width, (3, 3))(x)
            x = norm(pool=number == convolutions)(x)
    return feature_map(module, x)


class CNN(nn.Module):
    """A VGG-like network (Simonyan and Zisserman 2015) with BatchNorm; the plain convolutional classifier."""

    num_classes: int  # of the logits
    # channels of each stage; after each, a 2x2 max pool halves height and width
    widths: Sequence[int] = (32, 64, 128, 256)
    depth: int | Sequence[int] = 2  # convolutions in every stage, or one number for each
    dense: Sequence[int] = (256,)  # widths of the hidden dense layers
    dropout: float = 0.5  # rate before every dense layer
    pool: str = 'average'  # of POOLS
    convolution: str = 'auto'  # the path that convolutions take, see common/nn/conv.py
    dtype: Any = jnp.float32  # of the computation; parameters are float32
    axis_name: str | None = AXIS  # of the devices over which BatchNorm takes its statistics

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [batch, height, width, channels] -> logits float32 [batch, num_classes]."""
        x = convolutional_trunk(self, x, train=train)
        x = choose(POOLS, self.pool, 'model.pool')(x)
        for width in self.dense:
            x = Dropout(self.dropout)(x, train=train)
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        x = Dropout(self.dropout)(x, train=train)
        return nn.Dense(self.num_classes, dtype=jnp.float32)(x.astype(jnp.float32))
