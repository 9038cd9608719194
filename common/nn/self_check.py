"""Whether a model's fast convolutions give the numbers of XLA's own on this machine, on the model's own shapes."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from tqdm import tqdm

from common.nn import conv
from common.nn.convolutions import bfloat16
from common.nn.convolutions.choices import Layer, settle
from common.nn.convolutions.direct import DIMENSIONS
from common.processor import processor

# Relative L2 distance from the direct convolution in float32. Winograd rounds to 3e-6 there; a result in bfloat16,
# to 2e-3, and gradients by sums of rows to 7e-3. A wrong one is off by a tenth or more.
TOLERANCE = {'float64': 1e-10, 'float32': 1e-4, 'bfloat16': 2.5e-2, 'float16': 1e-2}


def check(layers: Mapping[Layer, str], cache: pathlib.Path) -> dict[str, str]:
    """Settles the ways: 'direct' where the fast one gives other numbers than XLA's own, with a warning.

    Args:
        layers: as `choices.recorded` gives them.
        cache: the folder that keeps what was found, by processor, release of jaxlib, flags of XLA and source of the
            convolutions.

    Returns:
        The ways that layers take from now on.
    """
    file = cache / f'convolutions-{_fingerprint()}.json'
    known: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):  # not there yet, or cut short
        known = json.loads(file.read_text(encoding='utf-8'))
    fast = {f'{layer} {way}': (layer, way) for layer, way in layers.items() if way != 'direct'}
    new = tqdm([name for name in fast if name not in known], 'checking convolutions', disable=None, leave=False)
    found = known | {name: distance(*fast[name]) for name in new}
    ways = {str(layer): way for layer, way in layers.items()}
    for name, (layer, _) in fast.items():
        if found[name] > TOLERANCE[layer.dtype]:
            ways[str(layer)] = 'direct'
            warnings.warn(
                f'the convolution {name} gives other numbers than the direct one on this machine (relative distance '
                f'{found[name]:.1e}): it is computed directly',
                stacklevel=2,
            )
    settle(ways)
    if found != known:
        # Where the folder is full or not to be written, they are checked again next time.
        with contextlib.suppress(OSError):
            _keep(found, file)
    return ways


def _keep(found: Mapping[str, float], file: pathlib.Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f'.{os.getpid()}.partial')  # others may write theirs meanwhile
    try:
        partial.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def distance(layer: Layer, way: str) -> float:
    """The largest relative L2 distance of the fast result and both gradients from the direct ones; inf for NaN.

    They are in float32 (float64 in float64), of uniform random numbers.
    """
    random = np.random.default_rng(0)
    size = [-(-length // layer.stride) for length in layer.x_shape[1:3]]
    y_shape = (layer.x_shape[0], *size, layer.w_shape[3])
    drawn = [
        (random.random(shape, np.float32) - 0.5).astype(jnp.dtype(layer.dtype))
        for shape in (layer.x_shape, layer.w_shape, y_shape)
    ]
    fast = _compiled(layer, way, drawn, with_options=True)(*drawn)
    # Channels of a depthwise convolution do not meet, and direct it is slow: every seventh, from the last on, must do.
    some = slice(None, None, -7 if layer.groups > 1 else 1)
    dtype = jnp.promote_types(layer.dtype, jnp.float32)
    wide = [array[..., some].astype(dtype, copy=False) for array in drawn]
    layer = layer._replace(x_shape=wide[0].shape, w_shape=wide[1].shape)
    plain = _compiled(layer, 'direct', wide, with_options=False)(*wide)
    worst = 0.0
    for one, other in zip(fast, plain, strict=True):
        one, other = np.asarray(one)[..., some].astype(dtype, copy=False), np.asarray(other)
        apart = float(np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-30))
        worst = max(worst, apart if np.isfinite(apart) else np.inf)
    return worst


def _compiled(layer: Layer, way: str, arrays: list[np.ndarray], *, with_options: bool) -> Any:
    convolve = functools.partial(
        conv.convolution(way),
        window_strides=(layer.stride, layer.stride),
        padding='SAME',
        dimension_numbers=DIMENSIONS,
        feature_group_count=layer.groups,
    )

    def run(x: jax.Array, w: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        y, pull_back = jax.vjp(convolve, x, w)
        return y, *pull_back(g)

    lowered = jax.jit(run).lower(*arrays)
    return lowered.compile(compiler_options=bfloat16.compiler_options(lowered) if with_options else None)


def _fingerprint() -> str:
    files = [pathlib.Path(conv.__file__), *sorted(pathlib.Path(bfloat16.__file__).parent.glob('*.py'))]
    sources = [file.read_text(encoding='utf-8') for file in files]
    facts = json.dumps([jaxlib.version.__version__, processor(), os.environ.get('XLA_FLAGS', ''), *sources])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]
