"""Depthwise convolution on the CPU as shifted multiply-adds; XLA's grouped one is 10 to 80 times slower there."""

import jax
import jax.numpy as jnp
from jax import lax

from common.nn.convolutions import windows
from common.nn.convolutions.chunks import at_least_float32, map_chunks

# The weight gradient reads a chunk once for each weight of the kernel, so that it has to stay in a core's cache.
ELEMENTS_PER_CHUNK = 2**16
MOST_TERMS = 20  # products of rows that it adds up before anything is written


def convolve(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
    """Convolves each channel with a kernel of its own, SAME padding as in TensorFlow (the odd pixel comes last).

    Computed in float32 (float64 for float64 input).

    Args:
        x: `[batch, height, width, channels]`, floating.
        w: `[kernel_height, kernel_width, 1, channels]`, of x's dtype.
        stride: between windows, in both directions.

    Returns:
        `[batch, ceil(height / stride), ceil(width / stride), channels]` of x's dtype.
    """
    padded = windows.padded(x, w.shape, stride)
    size = [-(-length // stride) for length in x.shape[1:3]]
    y = windows.total(
        at_least_float32(windows.cut(padded, (row, column), size, stride)) * at_least_float32(w[row, column, 0])
        for row, column in windows.taps(w.shape)
    )
    return lax.optimization_barrier(y.astype(x.dtype))


def gradients(x: jax.Array, w: jax.Array, g: jax.Array, stride: int) -> tuple[jax.Array, jax.Array]:
    """With respect to x and w, given `g`, the one with respect to the result of `convolve(x, w, stride)`."""
    g = lax.optimization_barrier(g)
    return _input_gradient(g, w, x.shape, stride), _weight_gradient(x, g, w.shape, stride).astype(w.dtype)


def _input_gradient(g: jax.Array, w: jax.Array, x_shape: tuple[int, ...], stride: int) -> jax.Array:
    """Pixels of x at each offset within a stride meet taps of their own, so each offset is a convolution of g."""
    before = [windows.before(length, side, stride) for length, side in zip(x_shape[1:3], w.shape[:2], strict=True)]
    size = g.shape[1:3]
    # How far the windows below reach beyond g.
    low = [-((first - (side - 1)) // stride) for first, side in zip(before, w.shape[:2], strict=True)]
    high = [(stride - 1 + first) // stride for first in before]
    padded = lax.optimization_barrier(jnp.pad(g, ((0, 0), *zip(low, high, strict=True), (0, 0))))

    def at(row_offset: int, column_offset: int) -> jax.Array:
        terms = []
        for row, column in windows.taps(w.shape):
            (down, no_row), (right, no_column) = (
                divmod(offset + first - tap, stride)
                for offset, first, tap in zip((row_offset, column_offset), before, (row, column), strict=True)
            )
            if not no_row and not no_column:
                part = windows.cut(padded, (down + low[0], right + low[1]), size, 1)
                terms.append(at_least_float32(part) * at_least_float32(w[row, column, 0]))
        zero = jnp.zeros((x_shape[0], *size, x_shape[3]), at_least_float32(g).dtype)
        return lax.optimization_barrier((windows.total(terms) if terms else zero).astype(g.dtype))

    if stride == 1:
        return at(0, 0)
    rows = [jnp.stack([at(row, column) for column in range(stride)], axis=3) for row in range(stride)]
    dx = jnp.stack(rows, axis=2).reshape(x_shape[0], stride * size[0], stride * size[1], x_shape[3])
    return dx[:, : x_shape[1], : x_shape[2]]


def _weight_gradient(x: jax.Array, g: jax.Array, w_shape: tuple[int, ...], stride: int) -> jax.Array:
    """For each tap the sum of a product; a loop over taps, for written out they take minutes to compile."""
    padded = windows.padded(x, w_shape, stride)
    # By rows and columns of strides, so that a tap begins at an offset within one and needs no slice with a step.
    strides = padded.reshape(
        len(padded), padded.shape[1] // stride, stride, padded.shape[2] // stride, stride, padded.shape[3]
    )
    starts = jnp.array([(*divmod(row, stride), *divmod(column, stride)) for row, column in windows.taps(w_shape)])

    height = g.shape[1]
    terms = max(count for count in range(1, MOST_TERMS + 1) if height % count == 0)
    rows = height // terms

    def body(strides: jax.Array, g: jax.Array) -> jax.Array:
        size = (g.shape[0], rows, 1, g.shape[2], 1, g.shape[3])

        def at(start: jax.Array) -> jax.Array:
            row, down, column, right = start
            products = (
                at_least_float32(
                    lax.dynamic_slice(strides, (0, row + first, down, column, right, 0), size)[:, :, 0, :, 0]
                )
                * at_least_float32(g[:, first : first + rows])
                for first in range(0, height, rows)
            )
            # Behind a barrier the sum over what remains is a loop over vectors; fused, one over single numbers.
            return lax.optimization_barrier(windows.total(products)).sum((0, 1, 2))

        return lax.map(at, starts)

    limit = ELEMENTS_PER_CHUNK // (height * g.shape[2] * g.shape[3])
    return map_chunks(body, limit, strides, g).sum(0).reshape(w_shape)
