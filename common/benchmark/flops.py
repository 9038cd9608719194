"""Floating-point operations: what a step asks for, and what the device can do."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Dense peaks of one device in FLOP/s, as the makers' data sheets give them; NVIDIA's float32 is TF32, jax's default.
DATASHEET = {
    'NVIDIA A100-SXM4-40GB': {'bfloat16': 312e12, 'float32': 156e12},
    'NVIDIA A100-SXM4-80GB': {'bfloat16': 312e12, 'float32': 156e12},
    'NVIDIA H100 80GB HBM3': {'bfloat16': 989e12, 'float32': 495e12},
    'NVIDIA H200': {'bfloat16': 989e12, 'float32': 495e12},
    'NVIDIA L4': {'bfloat16': 121e12, 'float32': 60e12},
    'TPU v4': {'bfloat16': 275e12},
    'TPU v5 lite': {'bfloat16': 197e12},
    'TPU v5p': {'bfloat16': 459e12},
    'TPU v6 lite': {'bfloat16': 918e12},
}


def flops(function: Callable, *args: Any) -> float:
    """Operations in the matrix products and convolutions of `function(*args)` over all devices.

    They are counted in the traced program, not in the compiled one: there XLA counts the body of a loop once, however
    often it runs, and a fast convolution would count for less than the model asks for. A padded position counts like
    any other; the zeros of a dilated input do not.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        params, name = equation.params, equation.primitive.name
        shapes = [variable.aval.shape for variable in equation.invars if hasattr(variable.aval, 'shape')]
        if name == 'dot_general':
            (contracted, _), _ = params['dimension_numbers']
            depth = math.prod(shapes[0][axis] for axis in contracted)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
        elif name == 'conv_general_dilated':
            kernel = params['dimension_numbers'].rhs_spec  # output channels, input channels, positions
            taps = math.prod(shapes[1][axis] for axis in kernel[1:]) / math.prod(params['lhs_dilation'])
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * taps
        else:
            inner = [_count(sub) for sub in _programs(params)]
            times = {'scan': lambda p: p['length'], 'shard_map': lambda p: p['mesh'].size}.get(name, lambda p: 1)
            total += times(params) * (max(inner) if name == 'cond' else sum(inner))
    return total


def _programs(params: dict[str, Any]) -> Iterator[Any]:
    """The programs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, list | tuple) else [value]:
            item = getattr(item, 'jaxpr', item)
            if hasattr(item, 'eqns'):
                yield item


def measured_peak(dtype: np.dtype, devices: int) -> float:
    """FLOP/s of the best of several large matrix products on as many devices; CPU devices share their cores."""
    size = 2048 if jax.default_backend() == 'cpu' else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(6):
        begin = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    return 2.0 * size**3 / min(seconds[1:]) * (1 if jax.default_backend() == 'cpu' else devices)


def datasheet_peak(dtype: np.dtype, devices: int) -> float | None:
    """FLOP/s that the maker promises for as many devices; None for a kind not listed."""
    peak = DATASHEET.get(jax.devices()[0].device_kind, {}).get(str(dtype))
    return peak * devices if peak else None
