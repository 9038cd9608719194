"""Gradients of a 3x3 convolution in bfloat16 by Winograd's F(4, 3) along the columns of an image alone.

Four rows of the result need six of the input, and six products for each of the kernel's three columns where the direct
way needs twelve. The sums of rows are rounded to bfloat16, so that the processor's own instructions multiply them.
Hence one direction alone, for two would be rounded three times as coarsely; and gradients alone, so that what a model
says is rounded as it is directly.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from common.nn.convolutions import direct
from common.nn.convolutions.chunks import at_least_float32, map_chunks, shared
from common.nn.convolutions.products import neighbours
from common.nn.convolutions.winograd import combine

# About that many at a time, for a core (`chunks.shared`): in fewer it is slower, and whole batches are no faster and
# take more memory. A chunk is cut out behind a barrier, for otherwise each of the six sums looks its rows up in the
# whole batch and takes twice as long.
PIXELS_PER_CHUNK = 9216

# As polynomials (Toom and Cook), evaluated at 0, a, -a, b, -b and infinity. With 1 and 2, as in float32, a gradient is
# rounded to 0.9 % of its size, with these to 0.6 %; by direct products to 0.16 %.
_A, _B = 3 / 4, 3 / 2
_AA, _BB, _AABB = _A**2, _B**2, _A**2 * _B**2
_INPUT = np.array(
    [
        [_AABB, 0, -_AA - _BB, 0, 1, 0],
        [0, -_A * _BB, -_BB, _A, 1, 0],
        [0, _A * _BB, -_BB, -_A, 1, 0],
        [0, -_B * _AA, -_AA, _B, 1, 0],
        [0, _B * _AA, -_AA, -_B, 1, 0],
        [0, _AABB, 0, -_AA - _BB, 0, 1],
    ]
)
_KERNEL = np.array(
    [
        np.array([1, 0, 0]) / _AABB,
        np.array([1, _A, _AA]) / (2 * _AA * (_AA - _BB)),
        np.array([1, -_A, _AA]) / (2 * _AA * (_AA - _BB)),
        np.array([1, _B, _BB]) / (2 * _BB * (_BB - _AA)),
        np.array([1, -_B, _BB]) / (2 * _BB * (_BB - _AA)),
        [0, 0, 1],
    ]
)
_RESULT = np.array([[1, p, p**2, p**3] for p in (0, _A, -_A, _B, -_B)] + [[0, 0, 0, 1]])


def input_gradient(g: jax.Array, w: jax.Array) -> jax.Array:
    """Gradient with respect to x `[batch, height, width, channels_in]`, given `g`, the one of the convolution's result.

    It is g convolved with w flipped and transposed.
    """
    batch, height, width, _ = g.shape
    rows = list(at_least_float32(jnp.flip(w, (0, 1)).swapaxes(2, 3)))
    kernels = lax.optimization_barrier([combine(weights, rows).astype(g.dtype)[None] for weights in _KERNEL])

    def body(g: jax.Array) -> jax.Array:
        tiles = _input_tiles(lax.optimization_barrier(g))
        around = [(0, 0), (1, 1)]
        products = [direct.convolve(*pair, padding=around) for pair in zip(tiles, kernels, strict=True)]
        products = [at_least_float32(product) for product in lax.optimization_barrier(products)]
        x = jnp.stack([combine(weights, products).astype(g.dtype) for weights in _RESULT.T], axis=2)
        return lax.optimization_barrier(x.reshape(len(x), -1, width, x.shape[-1])[:, :height])

    x = map_chunks(body, shared(PIXELS_PER_CHUNK) // (height * width), g)
    return x.reshape(-1, *x.shape[2:])[:batch]


def weight_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """Gradient with respect to w, `[3, 3, channels_in, channels_out]`, in float32 (float64 for float64 input)."""
    _, height, width, channels = x.shape

    def body(x: jax.Array, g: jax.Array) -> list[jax.Array]:
        x, g = lax.optimization_barrier((x, g))
        left = [neighbours(tile, axis=2).reshape(-1, 3 * channels) for tile in _input_tiles(x)]
        four = [at_least_float32(row) for row in _fours(g)]
        right = [combine(weights, four).astype(g.dtype).reshape(-1, g.shape[-1]) for weights in _RESULT]
        right = lax.optimization_barrier(right)
        products = [lax.dot_general(a, b, (((0,), (0,)), ((), ()))) for a, b in zip(left, right, strict=True)]
        return lax.optimization_barrier(products)

    chunks = map_chunks(body, shared(PIXELS_PER_CHUNK) // (height * width), x, g)
    products = [at_least_float32(product).sum(0) for product in chunks]
    return jnp.stack([combine(weights, products).reshape(3, channels, -1) for weights in _KERNEL.T])


def gain(height: int, channels_in: int, channels_out: int) -> float:
    """Roughly how many times faster than gradients by direct products: a model of costs, not a measurement.

    Half as many products, except for what overhangs the image, plus the sums of rows: for each input channel they cost
    as much as products with 24 output channels, and the other way round (fitted to 32 to 512 channels on a processor
    with AVX512-BF16).
    """
    covered = height / (4 * -(-height // 4))
    return 2 * covered / (1 + 24 / channels_in + 24 / channels_out)


def _fours(x: jax.Array) -> list[jax.Array]:
    """Every fourth row of x, from the first, second, third and fourth one on; zeros fill the last four up."""
    batch, height, *rest = x.shape
    count = -(-height // 4)
    x = jnp.pad(x, ((0, 0), (0, 4 * count - height), (0, 0), (0, 0))).reshape(batch, count, 4, *rest)
    return [x[:, :, row] for row in range(4)]


def _input_tiles(x: jax.Array) -> Sequence[jax.Array]:
    """The sums over every four rows of x with the one before and the one after: 6 arrays of a quarter of its rows."""
    four = [at_least_float32(row) for row in _fours(x)]
    zero = jnp.zeros_like(four[0][:, :1])
    before = jnp.concatenate([zero, four[3][:, :-1]], axis=1)
    after = jnp.concatenate([four[0][:, 1:], zero], axis=1)
    tiles = [combine(weights, [before, *four, after]).astype(x.dtype) for weights in _INPUT]
    return lax.optimization_barrier(tiles)
