"""What the taps of a convolution's kernel meet: windows of a padded array, SAME padding as in TensorFlow."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import lax


def taps(w_shape: Sequence[int]) -> list[tuple[int, int]]:
    """Row and column of every tap of a kernel `[height, width, ...]`."""
    return [(row, column) for row in range(w_shape[0]) for column in range(w_shape[1])]


def before(length: int, side: int, stride: int) -> int:
    """Zeros before the first pixel: half of those with which `ceil(length / stride)` windows fit, rounded down."""
    return max((-(-length // stride) - 1) * stride + side - length, 0) // 2


def padded(x: jax.Array, w_shape: Sequence[int], stride: int) -> jax.Array:
    """x between zeros: whole strides, as many as all windows reach into; so forward and backward read the same."""
    margins = []
    for length, side in zip(x.shape[1:3], w_shape[:2], strict=True):
        whole = stride * (-(-length // stride) + (side - 1) // stride)
        first = before(length, side, stride)
        margins.append((first, whole - length - first))
    return lax.optimization_barrier(jnp.pad(x, ((0, 0), *margins, (0, 0))))


def cut(padded: jax.Array, start: tuple[int, int], size: Sequence[int], stride: int) -> jax.Array:
    """Every `stride`-th pixel from `start` on, `size` of them; beyond the array there are zeros."""
    (row, column), (height, width) = start, size
    return padded[
        :, row : row + stride * (height - 1) + 1 : stride, column : column + stride * (width - 1) + 1 : stride
    ]


def total(terms: Iterable[jax.Array]) -> jax.Array:
    """The sum of terms, from the first on."""
    first, *rest = terms
    return sum(rest, start=first)
