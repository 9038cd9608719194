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

from common.processor import processor
from common.runtime import Options, compute_dtype

_OPTIONS = {'xla_cpu_use_onednn': True, 'xla_cpu_experimental_onednn_custom_call': True}
# Products in bfloat16 for one in float32 that these instructions do in the same time, about.
_SPEEDS = {'amx_bf16': 8, 'avx512_bf16': 2}
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
