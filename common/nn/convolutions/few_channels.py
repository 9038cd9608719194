"""The first convolution of a network on the CPU, 3x3 over one to three channels: too few for a matrix product each."""

import jax
import jax.numpy as jnp
from jax import lax

from common.nn.convolutions.chunks import at_least_float32, map_chunks

MOST = 3  # input channels: beyond, the copies and the unrolled program cost more than they save

# Im2col copies every pixel nine times; a chunk of this many pixels keeps the copies in the cache.
PIXELS_PER_CHUNK = 18432


def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolves with stride 1 and SAME padding by shifted multiply-adds, in float32 (float64 for float64 input).

    Args:
        x: `[batch, height, width, channels_in]`, floating.
        w: `[3, 3, channels_in, channels_out]`, of x's dtype.

    Returns:
        `[batch, height, width, channels_out]` of x's dtype.
    """
    weights = at_least_float32(w).reshape(-1, w.shape[-1])
    shifted = _shifted(at_least_float32(x))
    y = sum(
        (x[..., None] * row for x, row in zip(shifted[1:], weights[1:], strict=True)),
        shifted[0][..., None] * weights[0],
    )
    return y.astype(x.dtype)


def weight_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """Gradient with respect to w, `[3, 3, channels_in, channels_out]`, in float32 (float64 for float64 input).

    An im2col product, written so that the long contraction runs along the rows of the left side.
    """
    _, height, width, channels = x.shape

    def body(x_chunk: jax.Array, g_chunk: jax.Array) -> jax.Array:
        patches = jnp.stack(_shifted(at_least_float32(x_chunk))).reshape(9 * channels, -1)
        patches, g_chunk = lax.optimization_barrier((patches, at_least_float32(g_chunk)))
        return lax.optimization_barrier(patches @ g_chunk.reshape(-1, g.shape[-1]))

    products = map_chunks(body, PIXELS_PER_CHUNK // (height * width), x, g)
    return products.sum(0).reshape(3, 3, channels, -1)


def _shifted(x: jax.Array) -> list[jax.Array]:
    """What each of the 9 * channels weights meets, `[batch, height, width]`, in the kernel's order."""
    _, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [
        x[:, row : row + height, column : column + width, channel]
        for row in range(3)
        for column in range(3)
        for channel in range(channels)
    ]
