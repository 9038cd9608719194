"""Pooling of 2x2 windows whose gradient neither searches nor adds up windows, as XLA's own does."""

import functools

import jax
import jax.numpy as jnp

from common.errors import UsageError
from common.nn.convolutions.chunks import at_least_float32
from common.runtime import cpu_barrier


def max_pool(x: jax.Array) -> jax.Array:
    """The maxima of 2x2 windows with strides 2x2 and VALID padding, as `flax.linen.max_pool` takes them.

    As there, the gradient goes to the first maximum of a window in row-major order.

    Args:
        x: `[batch, height, width, channels]`.

    Returns:
        `[batch, height // 2, width // 2, channels]` of x's dtype.
    """
    return _max_pool_2x2(_even(x))


def average_pool(x: jax.Array) -> jax.Array:
    """The means of 2x2 windows with strides 2x2 and VALID padding, as `flax.linen.avg_pool` takes them.

    Args:
        x: `[batch, height, width, channels]`.

    Returns:
        `[batch, height // 2, width // 2, channels]` of x's dtype.
    """
    return _average_pool_2x2(_even(x))


def _even(x: jax.Array) -> jax.Array:
    return x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]


def corners(x: jax.Array) -> list[jax.Array]:
    """The four elements of every 2x2 window, in row-major order, widened: a CPU compares narrow ones slowly.

    Raises:
        UsageError: if there is no window.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    if not height or not width:
        raise UsageError(
            'a feature map is too small to be halved once more: give fewer stages (config.model.widths) or larger '
            'images (config.dataset.image_size)'
        )
    return [at_least_float32(x[:, row:height:2, column:width:2]) for row in range(2) for column in range(2)]


def first_equal(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """int8, the first corner of every 2x2 window of x that equals the one `chosen` of the window; else the last."""
    first = jnp.full(chosen.shape, 3, jnp.int8)
    for number, corner in reversed(list(enumerate(corners(x)))[:3]):
        first = jnp.where(corner == at_least_float32(chosen), jnp.int8(number), first)
    return first


def spread(g: jax.Array, first: jax.Array) -> jax.Array:
    """Twice as high and wide: in every 2x2 window the element of g in the corner that `first` says, zeros elsewhere."""
    batch, height, width, channels = g.shape
    corner = jnp.arange(4, dtype=jnp.int8).reshape(2, 1, 2, 1)
    shares = jnp.where(first[:, :, None, :, None] == corner, g[:, :, None, :, None], jnp.zeros((), g.dtype))
    return shares.reshape(batch, 2 * height, 2 * width, channels)


@jax.custom_vjp
def _max_pool_2x2(x: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, corners(x)).astype(x.dtype)


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maxima, and which corner of its window each one is, a byte of it.

    So x need not be written at all where it is a normalisation that can be computed where it is read.
    """
    x = cpu_barrier(x)
    maximum = _max_pool_2x2(x)
    return maximum, first_equal(x, maximum)


def _backward(first: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (spread(g, first),)


_max_pool_2x2.defvjp(_forward, _backward)


@jax.custom_vjp
def _average_pool_2x2(x: jax.Array) -> jax.Array:
    return (functools.reduce(jnp.add, corners(x)) / 4).astype(x.dtype)


def _average_backward(_: None, g: jax.Array) -> tuple[jax.Array]:
    batch, height, width, channels = g.shape
    shares = jnp.broadcast_to(g[:, :, None, :, None] / 4, (batch, height, 2, width, 2, channels))
    return (shares.reshape(batch, 2 * height, 2 * width, channels),)


_average_pool_2x2.defvjp(lambda x: (_average_pool_2x2(x), None), _average_backward)
