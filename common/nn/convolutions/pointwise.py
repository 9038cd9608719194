"""1x1 convolution on the CPU as matrix products, with the weight gradient in chunks that stay in the cache."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from common.nn.convolutions.chunks import at_least_float32, map_chunks

ROWS_PER_CHUNK = 8192  # of the left side, which is transposed for the weight gradient


def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """x `[batch, height, width, channels_in]` times w `[1, 1, channels_in, channels_out]`, of the same dtype."""
    return (x.reshape(-1, x.shape[-1]) @ w[0, 0]).reshape(*x.shape[:-1], w.shape[-1])


def gradients(x: jax.Array, w: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """With respect to x and w, given `g`, the one with respect to the result of `convolve(x, w)`."""
    g = lax.optimization_barrier(g)
    return convolve(g, jnp.swapaxes(w, 2, 3)), _weight_gradient(x, g).astype(w.dtype)


def _weight_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """The narrower side is transposed in memory first, so that the long contraction runs along rows."""
    narrow, wide = (x, g) if x.shape[-1] <= g.shape[-1] else (g, x)
    batch, pixels = x.shape[0], x.shape[1] * x.shape[2]

    def products(narrow: jax.Array, wide: jax.Array, chunks: int) -> jax.Array:
        left, right = (at_least_float32(side).reshape(chunks, -1, side.shape[-1]) for side in (narrow, wide))
        return lax.optimization_barrier(lax.optimization_barrier(left.swapaxes(1, 2)) @ right)

    if x.dtype == at_least_float32(x).dtype:  # as one batched product, since there is nothing to widen in the cache
        sizes = (size for size in range(1, batch + 1) if batch % size == 0 and size * pixels <= ROWS_PER_CHUNK)
        product = products(narrow, wide, batch // max(sizes, default=1)).sum(0)
    else:
        product = map_chunks(partial(products, chunks=1), ROWS_PER_CHUNK // pixels, narrow, wide).sum((0, 1))
    return (product if narrow is x else product.T)[None, None]
