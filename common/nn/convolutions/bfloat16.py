"""Products in bfloat16 by the CPU's own instructions (AVX512-BF16, AMX), which XLA reaches through oneDNN's kernels.

By default XLA's CPU programs widen bfloat16 to float32 before they multiply. Two compiler options hand convolutions
and products to oneDNN instead, two to eight times faster. On some shapes, strided or grouped ones above all, that
gives wrong numbers in silence. So the options are given to no program that holds another convolution than those for
which thousands of random shapes came out right: two-dimensional, NHWC, 3x3, stride 1, padding 1, no groups.
"""

import re

import jax
import jax.numpy as jnp
from jax import lax

from common.processor import processor
from common.runtime import Options, compute_dtype

_OPTIONS = {'xla_cpu_use_onednn': True, 'xla_cpu_experimental_onednn_custom_call': True}
_INSTRUCTIONS = frozenset({'avx512_bf16', 'amx_bf16'})
_KNOWN_RIGHT = (0, 12)  # the release of jax for which the region was established

# Every convolution of a program as StableHLO prints it, and what those inside the region look like.
_CONVOLUTION = re.compile(r'stablehlo\.convolution\(.*')
_INSIDE = re.compile(
    r'dim_numbers = \[b, 0, 1, f\]x\[0, 1, i, o\]->\[b, 0, 1, f\], window = \{(?:stride = \[1, 1\], )?'
    r'pad = \[\[1, 1\], \[1, 1\]\](?:, lhs_dilate = \[1, 1\])?(?:, rhs_dilate = \[1, 1\])?(?:, reverse = [^}]*)?\} '
    r'\{batch_group_count = 1 : i64, feature_group_count = 1 : i64.*\(tensor<\w+xbf16>, tensor<3x3x\w+xbf16>\)'
)


def available() -> bool:
    """Whether the options may be used: on a CPU with such instructions, under the release they were checked for."""
    on_cpu = jax.default_backend() == 'cpu'
    return (
        on_cpu
        and jax.__version_info__[:2] == _KNOWN_RIGHT
        and bool(_INSTRUCTIONS & set(processor()['features'].split()))
    )


def options(precision: str, path: str) -> Options | None:
    """What to compile the programs of a model with, of that `config.precision` and `config.convolution`."""
    narrow = compute_dtype(precision) == jnp.bfloat16 and path in ('auto', 'bfloat16') and available()
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
