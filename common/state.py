"""The state of a training: everything that a step reads and writes, and that a checkpoint keeps."""

import flax.struct
import jax

from common.types import Tree


class TrainState(flax.struct.PyTreeNode, kw_only=True):
    """A pytree; an ensemble's has a leading axis [members] on every leaf.

    Attributes:
      step: int32, optimizer steps taken.
      params: trained parameters, float32.
      collections: what the model updates by itself, e.g. {'batch_stats': running means and variances}.
      opt_state: the optimizer's.
      average: moving average of the parameters, or None where `ema_decay` is 0.
      key: data (uint32) of the PRNG key from which augmentation and dropout of every step are derived.
      learning_rate_scale: float32, lowered by the plateau schedule; 1 otherwise.
    """

    step: jax.Array
    params: Tree
    collections: Tree
    opt_state: Tree
    average: Tree | None
    key: jax.Array
    learning_rate_scale: jax.Array

    @property
    def variables(self) -> dict[str, Tree]:
        """What `module.apply` takes for evaluation."""
        return {'params': self.params if self.average is None else self.average, **self.collections}
