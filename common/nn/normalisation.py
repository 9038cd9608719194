"""Batch normalisation with its ReLU or ReLU6, and a max pool after them, over the global batch; made of few passes."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from jax import lax

from common.nn.convolutions.chunks import at_least_float32
from common.nn.pooling import corners, first_equal, max_pool, spread
from common.runtime import cpu_barrier

RANGES = {'relu': (0, None), 'relu6': (0, 6), None: (None, None)}  # of activations, by name


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) over all axes but the last, with an optional ReLU after it.

    Variables are named and updated as by `flax.linen.BatchNorm`: parameters 'scale' and 'bias', and in 'batch_stats'
    the running 'mean' and 'var' (biased, as in Flax), all `[channels]`. No gradient flows through running statistics.
    Reverse-mode differentiation only.

    Under `jax.pmap` each device's gradients are those that make `pmean(grad(loss))` the gradient of the mean loss.
    """

    use_running_average: bool  # normalise by the running statistics instead of the batch's, and leave them as they are
    momentum: float = 0.9  # how much of the running statistics a batch keeps
    epsilon: float = 1e-5  # added to the variance
    axis_name: str | None = None  # the device axis over which statistics are taken
    activation: str | None = None  # 'relu', 'relu6' (no more than 6; Krizhevsky 2010) or None
    # of the result, by default that of inputs and parameters promoted; statistics are float32 at least
    dtype: Any = None
    pool: bool = False  # whether a 2x2 max pool with strides 2x2 and VALID padding follows, in 4 dimensions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[..., channels]` -> the same shape, or with `pool` half the height and width."""
        if self.activation not in RANGES:
            raise ValueError(f"BatchNorm: activation is {self.activation!r}; it must be 'relu', 'relu6' or None")
        shape = x.shape[-1:]
        scale = self.param('scale', nn.initializers.ones, shape, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        if self.use_running_average:
            slope = scale * lax.rsqrt(running_var.value + self.epsilon)
            y = _line(x, slope, bias - running_mean.value * slope, self.activation).astype(dtype)
            return max_pool(y) if self.pool else y
        axis_name = None if self.is_initializing() else self.axis_name
        # Elsewhere than on a CPU XLA computes the normalisation where the pool reads it.
        fused = self.pool and jax.default_backend() == 'cpu'
        how = _How(self.epsilon, axis_name, self.activation, dtype, pool=fused)
        y, mean, var = _normalise(x, scale, bias, how)
        if self.pool and not fused:
            y = max_pool(y)
        if not self.is_initializing():
            for running, batch in ((running_mean, mean), (running_var, var)):
                running.value = self.momentum * running.value + (1 - self.momentum) * lax.stop_gradient(batch)
        return y


def _line(x: jax.Array, slope: jax.Array, intercept: jax.Array, activation: str | None) -> jax.Array:
    y = at_least_float32(x) * slope + intercept
    return jnp.clip(y, *RANGES[activation]) if activation else y


class _How(NamedTuple):
    """`BatchNorm`'s attributes of these names."""

    epsilon: float
    axis_name: str | None
    activation: str | None
    dtype: Any
    pool: bool


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(x: jax.Array, scale: jax.Array, bias: jax.Array, how: _How) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalised x, and the mean and variance used (for the running statistics: they pass no gradient on)."""
    return _forward(x, scale, bias, how)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, how: _How) -> tuple[Any, Any]:
    x = cpu_barrier(x)
    # Each sum has a barrier of its own before it: what two of them share, as x widened, XLA would write to memory.
    mean, again = cpu_barrier((_mean(at_least_float32(x)), x))
    mean_square, again = cpu_barrier((_mean(jnp.square(at_least_float32(again))), again))
    mean, mean_square = _over_devices((mean, mean_square), how.axis_name)
    var = jnp.maximum(mean_square - jnp.square(mean), 0)
    inverse = lax.rsqrt(var + how.epsilon)
    slope, intercept = cpu_barrier((scale * inverse, bias - mean * scale * inverse))
    chosen = cpu_barrier(_chosen(again, slope, intercept)) if how.pool else None
    y = _line(again if chosen is None else chosen, slope, intercept, how.activation).astype(how.dtype)
    return (y, mean, var), (x, chosen, scale, bias, mean, var, inverse, slope, intercept)


def _backward(how: _How, residuals: Any, cotangents: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """With n = (x - mean) * inverse and means over the global batch, dx = slope * (g - mean(g) - n * mean(g * n)).

    Those two means are over all devices, for each example moves the statistics of every other. The gradients of
    scale and bias are this device's own sums: whoever takes the mean over devices adds them up.

    With a pool, g is zero but for the elements of x that it has chosen.
    """
    x, chosen, scale, bias, mean, var, inverse, slope, intercept = residuals
    chosen = chosen if how.pool else x
    share = chosen.size / x.size
    g, x, chosen = cpu_barrier((cotangents[0], x, chosen))
    if how.activation is not None:
        low, high = RANGES[how.activation]
        y = at_least_float32(chosen) * slope + intercept
        inside = y > low if high is None else (y > low) & (y < high)
        g = cpu_barrier(jnp.where(inside, g, jnp.zeros_like(g)))
    mean_g, g, chosen = cpu_barrier((share * _mean(at_least_float32(g)), g, chosen))
    mean_gx, g, chosen = cpu_barrier((share * _mean(at_least_float32(g) * at_least_float32(chosen)), g, chosen))
    mean_gn = (mean_gx - mean * mean_g) * inverse
    count = x.size // x.shape[-1]
    scale_gradient, bias_gradient = (count * mean_gn).astype(scale.dtype), (count * mean_g).astype(bias.dtype)
    mean_g, mean_gn = _over_devices((mean_g, mean_gn), how.axis_name)
    mean_gn = jnp.where(var > 0, mean_gn, 0)  # a variance that was rounded to less, and set to 0, passes nothing on
    # dx as g * slope + x * coefficient + constant: one multiply-add an element for each term.
    coefficient, constant = cpu_barrier((-slope * inverse * mean_gn, slope * (mean * inverse * mean_gn - mean_g)))
    g = at_least_float32(g)
    if how.pool:
        g = spread(g, cpu_barrier(first_equal(x, chosen)))
        g = jnp.pad(g, [(0, whole - part) for whole, part in zip(x.shape, g.shape, strict=True)])
    dx = g * slope + at_least_float32(x) * coefficient + constant
    return cpu_barrier(dx.astype(x.dtype)), scale_gradient, bias_gradient


_normalise.defvjp(_forward, _backward)


def _chosen(x: jax.Array, slope: jax.Array, intercept: jax.Array) -> jax.Array:
    """Of every 2x2 window the first element whose normalised value, not yet rounded to x's dtype, is the largest."""
    (a, y_a), (b, y_b), (c, y_c), (d, y_d) = ((corner, corner * slope + intercept) for corner in corners(x))
    above, below = jnp.where(y_b > y_a, b, a), jnp.where(y_d > y_c, d, c)
    is_below = jnp.maximum(y_c, y_d) > jnp.maximum(y_a, y_b)
    return jnp.where(is_below, below, above).astype(x.dtype)


def _mean(x: jax.Array) -> jax.Array:
    return x.mean(tuple(range(x.ndim - 1)))


def _over_devices(means: tuple[jax.Array, jax.Array], axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    if axis_name is None or lax.axis_size(axis_name) == 1:
        return means
    first, second = lax.pmean(jnp.stack(means), axis_name)  # one message, not two
    return first, second
