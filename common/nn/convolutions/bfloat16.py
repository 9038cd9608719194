"""Products in bfloat16 by the CPU's own instructions (AVX512-BF16, AMX), which XLA reaches through oneDNN's kernels.

By default XLA's CPU programs widen bfloat16 to float32 before they multiply. Two compiler options hand convolutions
and products to oneDNN instead, two to eight times faster. On some shapes, strided or grouped ones above all, that
gives wrong numbers in silence. So the options are given to no program that holds another convolution than those for
which thousands of random shapes came out right, of 1x3 some hundreds: two-dimensional, NHWC, 3x3 or 1x3, stride 1,
SAME padding, no groups.
"""

import re

import jax
import jax.numpy as jnp
from jax import lax

from common.nn.convolutions.chunks import at_least_float32, map_chunks
from common.processor import processor
from common.runtime import Options, compute_dtype

_OPTIONS = {'xla_cpu_use_onednn': True, 'xla_cpu_experimental_onednn_custom_call': True}
# Products in bfloat16 for one in float32 that these instructions do in the same time, about.
_SPEEDS = {'amx_bf16': 8, 'avx512_bf16': 2}
PIXELS_PER_CHUNK = 9216  # of a product of the weight gradient: its sums are rounded to bfloat16
_KNOWN_RIGHT = (0, 12)  # the release of jax for which the region was established

# Every convolution of a program as StableHLO prints it, and what those inside the region look like.
_CONVOLUTION = re.compile(r'stablehlo\.convolution\(.*')
_INSIDE = re.compile(
    r'dim_numbers = \[b, 0, 1, f\]x\[0, 1, i, o\]->\[b, 0, 1, f\], window = \{(?:stride = \[1, 1\], )?'
    r'pad = \[\[(?:1, 1(?=.*, tensor<3x3x)|0, 0(?=.*, tensor<1x3x))\], \[1, 1\]\]'
    r'(?:, lhs_dilate = \[1, 1\])?(?:, rhs_dilate = \[1, 1\])?(?:, reverse = [^}]*)?\} '
    r'\{batch_group_count = 1 : i64, feature_group_count = 1 : i64.*\(tensor<\w+xbf16>, tensor<[13]x3x\w+xbf16>\)'
)


def speed() -> int:
    """How many products in bfloat16 take the time of one in float32; 0 where the options are not to be used.

    They are used on a CPU with such instructions, under the release for which the region was established.
    """
    if jax.default_backend() != 'cpu' or jax.__version_info__[:2] != _KNOWN_RIGHT:
        return 0
    features = processor()['features'].split()
    return max((_SPEEDS[feature] for feature in features if feature in _SPEEDS), default=0)


def options(precision: str, path: str) -> Options | None:
    """What to compile the programs of a model with, of that `config.precision` and `config.convolution`."""
    narrow = compute_dtype(precision) == jnp.bfloat16 and path in ('auto', 'bfloat16') and speed() > 0
    return compiler_options if narrow else None


def compiler_options(program: jax.stages.Lowered) -> dict[str, bool]:
    """The options for one program: none unless it convolves in bfloat16, and inside the region only."""
    narrow = [line for line in _CONVOLUTION.findall(program.as_text()) if 'bf16' in line]
    return _OPTIONS if narrow and all(map(_INSIDE.search, narrow)) else {}


def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolves with stride 1 and SAME padding; x `[batch, height, width, channels]`, w `[3, 3, in, out]`."""
    return lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def input_gradient(g: jax.Array, w: jax.Array) -> jax.Array:
    """Gradient with respect to x, as a forward convolution, since only those are fast and inside the region."""
    return convolve(g, lax.optimization_barrier(jnp.flip(w, (0, 1)).swapaxes(2, 3)))


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
