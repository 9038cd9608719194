"""What a device can do at most: measured, and as its maker says."""

import time

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


def measured_peak(dtype: np.dtype, devices: int) -> float:
    """FLOP/s of the best of several large matrix products on as many devices; CPU devices share their cores."""
    size = 2048 if jax.default_backend() == 'cpu' else 8192
    # Random: on a GPU, numbers that are all alike cost less power, and with that less time.
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
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
