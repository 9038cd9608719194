"""Work on a batch in chunks that stay in a CPU's cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def map_chunks(body: Callable[..., Any], limit: int, *arrays: jax.Array) -> Any:
    """Maps `body` over chunks of the batch, one after another.

    Args:
        body: takes a chunk of each array, returns a pytree of arrays.
        limit: the most examples in a chunk, or half as many again where that divides the batch.
        *arrays: `[batch, ...]`, batch at least 1. A last chunk that is not full is filled up with zeros.

    Returns:
        The results of `body`, each with an axis of chunks in front.
    """
    batch = arrays[0].shape[0]
    limit = min(batch, max(1, limit))
    whole = (size for size in range(limit, limit + limit // 2 + 1) if batch % size == 0)
    size = next(whole, -(-batch // -(-batch // limit)))
    count = -(-batch // size)
    if count == 1:
        return jax.tree.map(lambda result: result[None], body(*arrays))
    if batch != count * size:
        arrays = tuple(jnp.pad(a, ((0, count * size - batch), *((0, 0),) * (a.ndim - 1))) for a in arrays)
    return lax.map(lambda chunk: body(*chunk), tuple(a.reshape(count, size, *a.shape[1:]) for a in arrays))


def shared(limit: int) -> int:
    """What a chunk may hold where cores share the work: four times what suits one that works on its own (`limit`).

    A device of a divided CPU is about a core. Where there is one device, all cores take part in every operation, and of
    smaller chunks XLA computes too much in one of them.
    """
    return limit if jax.local_device_count() > 1 else 4 * limit


def at_least_float32(x: jax.Array) -> jax.Array:
    """x in float32, or in its own dtype if that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
