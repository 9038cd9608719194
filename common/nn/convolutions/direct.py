"""XLA's own convolution, which accelerators take, and against which the fast ways are checked."""

from collections.abc import Sequence

import jax
from jax import lax

Padding = str | Sequence[tuple[int, int]]  # a name, or zeros (before, after) for each spatial dimension

DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')  # of x, w and the result


def convolve(x: jax.Array, w: jax.Array, stride: int = 1, padding: Padding = 'SAME') -> jax.Array:
    """Convolves x `[batch, height, width, in]` with w `[kernel_height, kernel_width, in / groups, out]`."""
    groups = x.shape[-1] // w.shape[2]
    return lax.conv_general_dilated(
        x, w, (stride, stride), padding, dimension_numbers=DIMENSIONS, feature_group_count=groups
    )


def input_gradient(g: jax.Array, w: jax.Array) -> jax.Array:
    """Gradient of `convolve(x, w)` with respect to x."""
    x = jax.ShapeDtypeStruct((*g.shape[:3], w.shape[2]), g.dtype)
    return jax.linear_transpose(lambda x: convolve(x, w), x)(g)[0]


def weight_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """Gradient of `convolve(x, w)` with respect to a 3x3 w."""
    w = jax.ShapeDtypeStruct((3, 3, x.shape[3], g.shape[3]), g.dtype)
    return jax.linear_transpose(lambda w: convolve(x, w), w)(g)[0]
