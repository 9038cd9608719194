"""Layers whose results do not depend on how a batch is spread over devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from common.runtime import AXIS


class Dropout(nn.Module):
    """Dropout with one mask per example, drawn from the example's position in the global batch.

    So a step gives the same numbers on any number of devices. In training it must run inside a function that is
    lifted over `axis_name`, or with `axis_name=None`.

    Attributes:
      rate: probability of zeroing an activation.
      axis_name: the device axis.
      whole: zero whole examples instead of single activations.
    """

    rate: float
    axis_name: str | None = AXIS
    whole: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [batch, ...] -> the same shape and dtype; the identity unless `train`. Needs the PRNG 'dropout'."""
        if not train or self.rate == 0.0 or self.is_initializing():
            return x
        first = lax.axis_index(self.axis_name) * x.shape[0] if self.axis_name else 0
        key = self.make_rng('dropout')
        keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(first + jnp.arange(x.shape[0]))
        shape = (1,) * (x.ndim - 1) if self.whole else x.shape[1:]
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - self.rate, shape))(keys)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))
