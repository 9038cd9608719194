"""Winograd's F(4x4, 3x3) convolution on the CPU: 36 multiplications an output tile where the direct way needs 144.

An output tile of 4x4 pixels needs 6x6 of input. With the matrices B, G and A below it is
`A^T [(G w G^T) * (B^T x B)] A`: the sums over input channels become 36 matrix products (Lavin and Gray 2016,
arXiv:1509.09308). In float32 the result is rounded 5 to 13 times coarser than the direct convolution's.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from common.nn.convolutions import windows
from common.nn.convolutions.chunks import at_least_float32, map_chunks, shared

# A chunk of the batch is transformed, multiplied and transformed back while it lies in the cache: 36 arrays of
# this many rows. Whole batches take 3 to 8 times longer in the transforms.
TILES_PER_CHUNK = (144, 288)  # at least, at most, for a core (`chunks.shared`)

B = np.array(
    [
        [4, 0, 0, 0, 0, 0],
        [0, -4, 4, -2, 2, 4],
        [-5, -4, -4, -1, -1, 0],
        [0, 1, -1, 2, -2, -5],
        [1, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
)
G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
A = np.array([[1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 1, -1], [1, 2, 4, 8], [1, -2, 4, -8], [0, 0, 0, 1]])

Grid = list[list[jax.Array]]


def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolves with stride 1 and SAME padding, in float32 (float64 for float64 input).

    Args:
        x: `[batch, height, width, channels_in]`, floating.
        w: `[3, 3, channels_in, channels_out]`, of x's dtype.

    Returns:
        `[batch, height, width, channels_out]` of x's dtype.
    """
    return _convolve(x, _sandwich(G, [list(at_least_float32(row)) for row in w]), jnp.matmul)


def input_gradient(g: jax.Array, w: jax.Array) -> jax.Array:
    """Gradient with respect to x, given `g`, the one with respect to the result of `convolve(x, w)`.

    It is g convolved with w flipped and transposed. Columns of G flipped and products with the transpose say the
    same and move no weights in memory.
    """
    u = _sandwich(G[:, ::-1], [list(at_least_float32(row)) for row in w])
    return _convolve(g, u, lambda v, u: lax.dot_general(v, u, (((1,), (1,)), ((), ()))))


def weight_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """Gradient with respect to w, `[3, 3, channels_in, channels_out]`, in float32 (float64 for float64 input)."""
    rows, columns = _tiling(*x.shape[1:3])

    def body(x_chunk: jax.Array, g_chunk: jax.Array) -> Grid:
        # g waits for v, so that what is cut out of each for this chunk is still in the cache when it is transformed.
        v, g_chunk = lax.optimization_barrier((_input_tiles(x_chunk, rows, columns), g_chunk))
        d = lax.optimization_barrier(
            _tiles(_pad(at_least_float32(g_chunk), 0, 4 * rows, 4 * columns), A, rows, columns)
        )
        return jax.tree.map(lambda left, right: left.T @ right, v, d)

    chunks = map_chunks(body, _chunk(rows, columns, x.shape[3] + g.shape[3]), x, g)
    u = jax.tree.map(lambda products: products.sum(0), chunks)
    return jnp.stack([jnp.stack(row) for row in _sandwich(G.T, u)])


def gain(height: int, width: int, channels_in: int, channels_out: int) -> float:
    """Roughly how many times faster than a direct convolution: a model of costs, not a measurement.

    4 times fewer products, except for what overhangs the image, plus the transforms: for each input channel they
    cost as much as products with 56 output channels, and the other way round (fitted to forward passes in float32 at
    16 to 512 channels on a processor with AVX-512).
    """
    rows, columns = _tiling(height, width)
    covered = height * width / (16 * rows * columns)
    return 4 * covered / (1 + 56 / channels_in + 56 / channels_out)


def tiles(batch: int, height: int, width: int) -> int:
    """How many 4x4 tiles cover a batch of images."""
    rows, columns = _tiling(height, width)
    return batch * rows * columns


def _convolve(x: jax.Array, u: Grid, product: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """`A^T [u * (B^T x B)] A` over all tiles of x, where `*` is 36 products."""
    batch, height, width, _ = x.shape
    rows, columns = _tiling(height, width)
    u = lax.optimization_barrier(u)

    def body(chunk: jax.Array) -> jax.Array:
        v = lax.optimization_barrier(_input_tiles(chunk, rows, columns))
        m = lax.optimization_barrier(jax.tree.map(product, v, u))
        m = jax.tree.map(lambda tile: tile.reshape(-1, rows, columns, tile.shape[-1]), m)
        half = lax.optimization_barrier(_left(A.T, m))
        y = jnp.stack([jnp.stack(row, axis=3) for row in _right(A.T, half)], axis=2)
        y = y.reshape(-1, 4 * rows, 4 * columns, y.shape[-1])[:, :height, :width]
        # Without this barrier XLA writes the result into the loop's output one scalar at a time.
        return lax.optimization_barrier(y.astype(x.dtype))

    y = map_chunks(body, _chunk(rows, columns, max(u[0][0].shape)), x)
    return y.reshape(-1, *y.shape[2:])[:batch]


def _tiling(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of 4x4 tiles that cover an image; the last ones may overhang."""
    return -(-height // 4), -(-width // 4)


def _chunk(rows: int, columns: int, channels: int) -> int:
    """Examples in a chunk: the most tiles where 64 channels are in use at the same time, fewer where more are."""
    low, high = map(shared, TILES_PER_CHUNK)
    return min(high, max(low, 64 * high // channels)) // (rows * columns)


def _input_tiles(x: jax.Array, rows: int, columns: int) -> Grid:
    return _tiles(_pad(at_least_float32(x), 1, 4 * rows + 2, 4 * columns + 2), B.T, rows, columns)


def _tiles(image: jax.Array, matrix: np.ndarray, rows: int, columns: int) -> Grid:
    """`matrix @ tile @ matrix.T` for tiles starting at every fourth pixel: 6 by 6 arrays `[tiles, channels]`.

    They stay 36 separate arrays: as one stacked array the same work takes up to twice as long.
    """
    taps = range(matrix.shape[1])
    across = []
    for weights in matrix:
        every_fourth = [image[:, :, tap : tap + 4 * columns - 3 : 4] for tap in taps]
        across.append(lax.optimization_barrier(combine(weights, every_fourth)))
    down = [[[part[:, tap : tap + 4 * rows - 3 : 4] for tap in taps] for part in across] for _ in matrix]
    return [
        [combine(weights, parts).reshape(-1, image.shape[-1]) for parts in line]
        for weights, line in zip(matrix, down, strict=True)
    ]


def _sandwich(matrix: np.ndarray, grid: Sequence[Sequence[jax.Array]]) -> Grid:
    """`matrix @ grid @ matrix.T` for a square grid of arrays."""
    return _right(matrix, _left(matrix, grid))


def _left(matrix: np.ndarray, grid: Sequence[Sequence[jax.Array]]) -> Grid:
    return [[combine(weights, column) for column in zip(*grid, strict=True)] for weights in matrix]


def _right(matrix: np.ndarray, grid: Sequence[Sequence[jax.Array]]) -> Grid:
    return [[combine(weights, row) for weights in matrix] for row in grid]


def combine(weights: np.ndarray, arrays: Sequence[jax.Array]) -> jax.Array:
    """The weighted sum, written out so that zeros cost nothing and ones no multiplication."""
    terms = [
        array if weight == 1 else -array if weight == -1 else array * float(weight)
        for weight, array in zip(weights, arrays, strict=True)
        if weight
    ]
    return windows.total(terms)


def _pad(image: jax.Array, before: int, height: int, width: int) -> jax.Array:
    after = (height - before - image.shape[1], width - before - image.shape[2])
    return jnp.pad(image, ((0, 0), (before, after[0]), (before, after[1]), (0, 0)))
