"""Layers whose results do not depend on how a batch is spread over devices and cut into parts."""

import contextlib
import contextvars
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.errors import UsageError
from common.types import Array

_first: contextvars.ContextVar[Array | int] = contextvars.ContextVar('first', default=0)


@contextlib.contextmanager
def examples_from(first: Array | int) -> Iterator[None]:
    """Says, while a model is traced, at which position of the global batch the examples that it is given begin."""
    token = _first.set(first)
    try:
        yield
    finally:
        _first.reset(token)


class Dropout(nn.Module):
    """Dropout with one mask per example, drawn from the example's position in the global batch (`examples_from`).

    So a step gives the same numbers on any number of devices, and with `accumulate_steps`.
    """

    rate: float  # probability of zeroing an activation
    whole: bool = False  # zero whole examples instead of single activations

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [batch, ...] -> the same shape and dtype; the identity unless `train`. Needs the PRNG 'dropout'."""
        if not train or self.rate == 0.0 or self.is_initializing():
            return x
        if not 0 <= self.rate < 1:
            raise UsageError(f'a dropout rate is {self.rate}; it must be from 0 to below 1 (config.model)')
        key = self.make_rng('dropout')
        positions = _first.get() + jnp.arange(x.shape[0])
        keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
        shape = (1,) * (x.ndim - 1) if self.whole else x.shape[1:]
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - self.rate, shape))(keys)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))
