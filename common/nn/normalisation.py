"""Batch normalisation with its ReLU or ReLU6, and a max pool after them, over the global batch; made of few passes."""

from collections.abc import Callable, Mapping
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
from common.types import Tree

# Of activations, by name.
RANGES: Mapping[str | None, tuple[Any, Any]] = {'relu': (0, None), 'relu6': (0, 6), None: (None, None)}


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
        how = _How(self.epsilon, axis_name, self.activation, dtype, self.pool, jax.default_backend() == 'cpu')
        y, mean, var = _normalise(x, scale, bias, how)
        if not self.is_initializing():
            for running, batch in ((running_mean, mean), (running_var, var)):
                running.value = self.momentum * running.value + (1 - self.momentum) * lax.stop_gradient(batch)
        return y


def _line(x: jax.Array, slope: jax.Array, intercept: jax.Array, activation: str | None) -> jax.Array:
    y = at_least_float32(x) * slope + intercept
    return jnp.clip(y, *RANGES[activation]) if activation else y


def _inside(g: jax.Array, y: jax.Array, activation: str | None) -> jax.Array:
    """g where y, an activation's input or result, is in its range, and zeros elsewhere."""
    low, high = RANGES[activation]
    return jnp.where(y > low if high is None else (y > low) & (y < high), g, jnp.zeros_like(g))


class _How(NamedTuple):
    """`BatchNorm`'s attributes of these names, and whether the program is for a CPU."""

    epsilon: float
    axis_name: str | None
    activation: str | None
    dtype: Any
    pool: bool
    on_cpu: bool


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(x: jax.Array, scale: jax.Array, bias: jax.Array, how: _How) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalised x, and the mean and variance used (for the running statistics: they pass no gradient on)."""
    return _forward(x, scale, bias, how)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, how: _How) -> tuple[Any, Any]:
    mean, mean_square, again = _two_means(
        at_least_float32, lambda x: jnp.square(at_least_float32(x)), cpu_barrier(x), how.on_cpu
    )
    mean, mean_square = _over_devices((mean, mean_square), how.axis_name)
    var = jnp.maximum(mean_square - jnp.square(mean), 0)
    inverse = lax.rsqrt(var + how.epsilon)
    slope, intercept = cpu_barrier((scale * inverse, bias - mean * scale * inverse))
    chosen = corner = kept = None
    if how.pool:
        chosen, corner = _chosen(again, slope, intercept)
    if how.pool and how.on_cpu:
        chosen, corner = cpu_barrier(chosen), None
    y = _line(again if chosen is None else chosen, slope, intercept, how.activation).astype(how.dtype)
    if not how.on_cpu:
        kept = y if how.activation == 'relu' else None
        chosen, corner = lax.optimization_barrier((chosen, corner))  # without it, chosen would be kept widened
    return (y, mean, var), (x, chosen, corner, kept, scale, bias, mean, var, inverse, slope, intercept)


def _backward(how: _How, residuals: Any, cotangents: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """With n = (x - mean) * inverse and means over the global batch, dx = slope * (g - mean(g) - n * mean(g * n)).

    Those two means are over all devices, for each example moves the statistics of every other. The gradients of
    scale and bias are this device's own sums: whoever takes the mean over devices adds them up.

    With a pool, g is zero but for the elements of x that it has chosen.
    """
    x, chosen, corner, kept, scale, bias, mean, var, inverse, slope, intercept = residuals
    chosen = chosen if how.pool else x
    given, x, chosen = cpu_barrier((cotangents[0], x, chosen))

    def let_through(g: jax.Array, x: jax.Array) -> jax.Array:
        return g if how.activation is None else _inside(g, at_least_float32(x) * slope + intercept, how.activation)

    if kept is None:
        g = cpu_barrier(let_through(given, chosen))
    else:  # where a result is above zero, what it was computed from was too
        again, result = lax.optimization_barrier((given, kept))
        g = _inside(again, result, how.activation)
    mean_g, mean_gx, (g, chosen) = _two_means(
        lambda gx: at_least_float32(gx[0]),
        lambda gx: at_least_float32(gx[0]) * at_least_float32(gx[1]),
        (g, chosen),
        how.on_cpu,
        share=chosen.size / x.size,  # where g is not zero
    )
    mean_gn = (mean_gx - mean * mean_g) * inverse
    count = x.size // x.shape[-1]
    scale_gradient, bias_gradient = (count * mean_gn).astype(scale.dtype), (count * mean_g).astype(bias.dtype)
    mean_g, mean_gn = _over_devices((mean_g, mean_gn), how.axis_name)
    mean_gn = jnp.where(var > 0, mean_gn, 0)  # a variance that was rounded to less, and set to 0, passes nothing on
    # dx as g * slope + x * coefficient + constant: one multiply-add an element for each term.
    coefficient, constant = cpu_barrier((-slope * inverse * mean_gn, slope * (mean * inverse * mean_gn - mean_g)))
    if kept is not None:  # once more from the start: what came of it above XLA would write, to read it here
        g, x = lax.optimization_barrier((given, x))
    if how.on_cpu:
        g = at_least_float32(g)
    if how.pool:
        g = spread(g, cpu_barrier(first_equal(x, chosen)) if corner is None else corner)
        g = jnp.pad(g, [(0, whole - part) for whole, part in zip(x.shape, g.shape, strict=True)])
    if kept is not None:
        g = let_through(g, x)
    g = at_least_float32(g)
    dx = g * slope + at_least_float32(x) * coefficient + constant
    return cpu_barrier(dx.astype(x.dtype)), scale_gradient, bias_gradient


_normalise.defvjp(_forward, _backward)


def _chosen(x: jax.Array, slope: jax.Array, intercept: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of every 2x2 window the first element whose normalised value, not yet rounded to x's dtype, is the largest.

    And in which corner it is, int8.
    """
    (a, y_a), (b, y_b), (c, y_c), (d, y_d) = ((corner, corner * slope + intercept) for corner in corners(x))
    above, below = jnp.where(y_b > y_a, b, a), jnp.where(y_d > y_c, d, c)
    is_below = jnp.maximum(y_c, y_d) > jnp.maximum(y_a, y_b)
    corner = jnp.where(is_below, jnp.where(y_d > y_c, 3, 2), jnp.where(y_b > y_a, 1, 0)).astype(jnp.int8)
    return jnp.where(is_below, below, above).astype(x.dtype), corner


def _two_means(
    first: Callable[[Tree], jax.Array],
    second: Callable[[Tree], jax.Array],
    of: Tree,
    on_cpu: bool,
    share: float = 1.0,
) -> tuple[jax.Array, jax.Array, Tree]:
    """The means of two functions of `of` over all axes but the last, times `share`; and `of` for what comes after.

    On a CPU each has a barrier of its own before it: what they share, as x widened, XLA would write to memory.
    Elsewhere they are one operation, for XLA takes a kernel to finish each.
    """

    def mean(x: jax.Array) -> jax.Array:
        return share * x.mean(tuple(range(x.ndim - 1)))

    if on_cpu:
        one, of = cpu_barrier((mean(first(of)), of))
        other, of = cpu_barrier((mean(second(of)), of))
        return one, other, of
    both = first(of), second(of)
    wide = jnp.promote_types(both[0].dtype, both[1].dtype)
    zero, axes = jnp.zeros((), wide), tuple(range(both[0].ndim - 1))
    terms = tuple(each.astype(wide) for each in both)
    one, other = lax.reduce(terms, (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), axes)
    factor = share * both[0].shape[-1] / both[0].size
    return factor * one, factor * other, of


def _over_devices(means: tuple[jax.Array, jax.Array], axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    if axis_name is None or lax.axis_size(axis_name) == 1:
        return means
    first, second = lax.pmean(jnp.stack(means), axis_name)  # one message, not two
    return first, second
