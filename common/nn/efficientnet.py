"""EfficientNet-Lite0, the small image network that comes with ImageNet weights (common/nn/pretrained.py)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nn.conv import convolution
from common.nn.grad_cam import feature_map
from common.nn.layers import Dropout
from common.nn.normalisation import BatchNorm
from common.runtime import AXIS

# Of each stage: blocks, kernel side, stride of the first block, expansion of channels, channels.
type Stages = Sequence[tuple[int, int, int, int, int]]
LITE0: Stages = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946) without squeeze-and-excitation, and with ReLU6.

    So the authors made it for small devices: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet
    (lite). Its ImageNet weights want pixels as (x - 127) / 128. The parameters lie in 'backbone' and 'classifier'.
    """

    num_classes: int  # of the logits
    stages: Stages = LITE0  # of blocks; the weights are for those of Lite0
    dropout: float = 0.2  # rate before the classifier
    # rate at which the last block leaves an example as it was, in training (stochastic depth, Huang et al. 2016,
    # arXiv:1603.09382); earlier blocks do so in proportion to their depth
    drop_connect: float = 0.0
    convolution: str = 'auto'  # the path that convolutions take, see common/nn/conv.py
    dtype: Any = jnp.float32  # of the computation; parameters are float32
    axis_name: str | None = AXIS  # of the devices over which BatchNorm takes its statistics

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [batch, height, width, 3] -> logits float32 [batch, num_classes]."""
        settings = (self.stages, self.drop_connect, self.convolution, self.dtype, self.axis_name)
        backbone = Backbone(*settings, name='backbone')
        x = Dropout(self.dropout)(backbone(x, train=train), train=train)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name='classifier')(x)


class Backbone(nn.Module):
    """All of EfficientNet-Lite0 up to the pooled features; attributes as there."""

    stages: Stages = LITE0
    drop_connect: float = 0.0
    convolution: str = 'auto'
    dtype: Any = jnp.float32
    axis_name: str | None = AXIS

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [batch, height, width, 3] -> features float32 [batch, 1280]."""
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype, conv_general_dilated=convolution(self.convolution))
        norm = partial(BatchNorm, not train, 0.99, 1e-3, self.axis_name, dtype=self.dtype)
        x = conv(32, (3, 3), 2, name='stem')(x.astype(self.dtype))
        x = norm(activation='relu6', name='stem_norm')(x)
        number, count = 0, sum(stage[0] for stage in self.stages)
        for blocks, side, stride, expansion, channels in self.stages:
            for block in range(blocks):
                x = Block(
                    channels,
                    side,
                    stride if block == 0 else 1,
                    expansion,
                    self.drop_connect * number / count,
                    conv=conv,
                    norm=norm,
                    name=f'block{number}',
                )(x, train=train)
                number += 1
        x = norm(activation='relu6', name='head_norm')(conv(1280, (1, 1), name='head')(x))
        x = feature_map(self, x)
        return x.astype(jnp.float32).mean((1, 2))


class Block(nn.Module):
    """An inverted residual (Sandler et al. 2018, arXiv:1801.04381): more channels, a depthwise convolution, fewer."""

    channels: int  # of the result
    side: int  # of the depthwise kernel
    stride: int  # of the depthwise convolution
    expansion: int  # channels between, as a multiple of the input's
    drop: float  # rate at which an example skips the block
    conv: Any  # the network's layers
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [batch, height, width, in] -> [batch, ceil(height / stride), ceil(width / stride), channels]."""
        y, wide = x, self.expansion * x.shape[-1]
        if self.expansion > 1:
            y = self.norm(activation='relu6', name='expand_norm')(self.conv(wide, (1, 1), name='expand')(y))
        y = self.conv(wide, (self.side, self.side), self.stride, feature_group_count=wide, name='depthwise')(y)
        y = self.norm(activation='relu6', name='depthwise_norm')(y)
        y = self.norm(name='project_norm')(self.conv(self.channels, (1, 1), name='project')(y))
        if self.stride > 1 or x.shape[-1] != self.channels:
            return y
        return x + Dropout(self.drop, whole=True)(y, train=train)
