"""3x3 convolutions whose gradients are a forward convolution and products, in x's dtype.

XLA's own gradients are convolutions of unusual layouts, which are slower. In the body of a loop (members of an
ensemble, parts of a batch, several steps a dispatch) XLA for CPUs does not rearrange them, and takes ten to a hundred
times as long. In bfloat16 they are outside the region that is known to be right (`bfloat16`).
"""

import jax
import jax.numpy as jnp
from jax import lax

from common.nn.convolutions import direct
from common.nn.convolutions.chunks import at_least_float32, map_chunks

PIXELS_PER_CHUNK = 9216  # of a product of the weight gradient: its sums are rounded to x's dtype


def input_gradient(g: jax.Array, w: jax.Array) -> jax.Array:
    """Gradient with respect to x, as a forward convolution."""
    return direct.convolve(g, lax.optimization_barrier(jnp.flip(w, (0, 1)).swapaxes(2, 3)))


def weight_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """Gradient with respect to w, `[3, 3, channels_in, channels_out]`, in float32 (float64 for float64 input).

    The products of the nine taps are one for each chunk of the batch, in x's dtype: of x beside itself moved by a
    column either way, with g beside itself moved by a row either way. So x and g are copied three times each, where
    im2col copies x nine times.
    """
    _, height, width, channels = x.shape

    def body(x: jax.Array, g: jax.Array) -> jax.Array:
        left = neighbours(x, axis=2).reshape(-1, 3 * channels)
        right = neighbours(g, axis=1).reshape(-1, 3 * g.shape[-1])
        return lax.optimization_barrier(lax.dot_general(left, right, (((0,), (0,)), ((), ()))))

    products = at_least_float32(map_chunks(body, PIXELS_PER_CHUNK // (height * width), x, g)).sum(0)
    # A pixel of g meets with the tap of row 0 the pixel of x above it; it is x's neighbour below.
    return products.reshape(3, channels, 3, -1)[:, :, ::-1].transpose(2, 0, 1, 3)


def neighbours(x: jax.Array, axis: int) -> jax.Array:
    """`[batch, height, width, 3, channels]`: the pixel before each along an axis, itself, and the one after it."""
    size, precision = x.shape[axis], jnp.finfo(x.dtype)

    def moved(before: int, after: int) -> jax.Array:
        padding = [(before, after) if dimension == axis else (0, 0) for dimension in range(x.ndim)]
        y = jnp.pad(lax.slice_in_dim(x, after, size - before, axis=axis), padding)
        # It is in this precision already; but a copy without arithmetic XLA makes one number at a time.
        return lax.reduce_precision(y, precision.nexp, precision.nmant)

    return lax.optimization_barrier(jnp.stack([moved(1, 0), moved(0, 0), moved(0, 1)], axis=3))
