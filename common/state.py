"""The state of a training: everything that a step reads and writes, and that a checkpoint keeps."""

import flax.struct
import jax

from common.types import Tree


class TrainState(flax.struct.PyTreeNode, kw_only=True):
    """A pytree; an ensemble's has a leading axis [members] on every leaf."""

    step: jax.Array  # int32, optimizer steps taken
    params: Tree  # trained parameters, float32
    collections: Tree  # what the model updates by itself, e.g. {'batch_stats': running means and variances}
    opt_state: Tree  # the optimizer's
    average: Tree | None  # moving average of the parameters, or None where `ema_decay` is 0
    key: jax.Array  # data (uint32) of the PRNG key from which augmentation and dropout of every step are derived
    learning_rate_scale: jax.Array  # float32, lowered by the plateau schedule; 1 otherwise

    @property
    def variables(self) -> dict[str, Tree]:
        """What `module.apply` takes for evaluation."""
        return {'params': self.params if self.average is None else self.average, **self.collections}
