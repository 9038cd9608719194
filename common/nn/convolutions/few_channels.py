"""The first convolution of a network on the CPU, 3x3 over one to three channels: too few for a matrix product each."""

import jax
import jax.numpy as jnp
from jax import lax

from common.nn.convolutions import direct, windows
from common.nn.convolutions.chunks import at_least_float32

MOST = 3  # input channels: beyond, the copies and the unrolled program cost more than they save


def convolve(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
    """Convolves by shifted multiply-adds in float32 (float64 for float64 input), SAME padding as in TensorFlow.

    Args:
        x: `[batch, height, width, channels_in]`, floating.
        w: `[3, 3, channels_in, channels_out]`, of x's dtype.
        stride: between windows, in both directions.

    Returns:
        `[batch, ceil(height / stride), ceil(width / stride), channels_out]` of x's dtype.
    """
    size = [-(-length // stride) for length in x.shape[1:3]]
    rows = at_least_float32(w).reshape(-1, w.shape[-1])
    met = _met(at_least_float32(x), size, stride)
    return windows.total(x[..., None] * row for x, row in zip(met, rows, strict=True)).astype(x.dtype)


def gradients(x: jax.Array, w: jax.Array, g: jax.Array, stride: int) -> tuple[jax.Array, jax.Array]:
    """With respect to x and w, given `g`, the one with respect to the result of `convolve(x, w, stride)`."""
    # Images need no gradient, so that XLA's own does for x, widened since narrow ones may be wrong (bfloat16.py).
    pull_back = jax.linear_transpose(lambda x: direct.convolve(x, at_least_float32(w), stride), at_least_float32(x))
    dx = pull_back(at_least_float32(g))[0].astype(x.dtype)
    return dx, weight_gradient(x, lax.optimization_barrier(g), stride).astype(w.dtype)


def weight_gradient(x: jax.Array, g: jax.Array, stride: int = 1) -> jax.Array:
    """Gradient with respect to w, `[3, 3, channels_in, channels_out]`, in float32 (float64 for float64 input).

    A matrix product for each example, in x's dtype: what its taps meet, one a row, times its g.
    """
    met = jnp.stack(_met(x, g.shape[1:3], stride), axis=1).reshape(len(x), -1, g.shape[1] * g.shape[2])
    met, g = lax.optimization_barrier((met, g))
    products = lax.optimization_barrier(met @ g.reshape(len(g), -1, g.shape[-1]))
    return at_least_float32(products).sum(0).reshape(3, 3, x.shape[-1], -1)


def _met(x: jax.Array, size: tuple[int, ...] | list[int], stride: int) -> list[jax.Array]:
    """What each of the 9 * channels weights meets, `[batch, *size]`, in the kernel's order."""
    x = windows.padded(x, (3, 3), stride)
    return [
        windows.cut(x, tap, size, stride)[..., channel]
        for tap in windows.taps((3, 3))
        for channel in range(x.shape[-1])
    ]
