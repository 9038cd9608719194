"""Grad-CAM: where in its last feature map a classifier found what speaks for a class."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from common.types import Array, Tree

_NAME = 'feature_map'


def feature_map(module: nn.Module, x: jax.Array) -> jax.Array:
    """Marks x, a backbone's last feature map [batch, height, width, channels], for `grad_cam`; returns it as it is.

    Outside of `grad_cam` this adds nothing to the computation, and no variable to the model.
    """
    module.sow('intermediates', _NAME, x)
    if module.has_variable('perturbations', _NAME):
        x = x + module.get_variable('perturbations', _NAME)
    return x


def grad_cam(model: nn.Module, variables: Tree, inputs: Tree, classes: Array) -> jax.Array | None:
    """What speaks for a class, over the places of the last feature map (Selvaraju et al. 2017, arXiv:1610.02391).

    A place's weight is ReLU(sum over channels of activation times the mean gradient of the class's logit).

    Args:
      model: maps `inputs` to logits [batch, num_classes], and marks its last feature map with `feature_map`.
      variables: of the model.
      inputs: of a batch, as `Task.preprocess` gives them.
      classes: int [batch], the class of each example to look for.

    Returns:
      float32 [batch, height, width] of the feature map, the largest weight of each example 1, or all 0 where
      nothing speaks for the class. None for a model that marks no feature map.
    """

    def see(perturbations: Tree) -> tuple[jax.Array, Tree]:
        added = {'perturbations': perturbations} if perturbations else {}
        logits, sown = model.apply({**variables, **added}, inputs, train=False, mutable=['intermediates'])
        marked = {path: value for path, value in flatten_dict(sown).items() if path[-1] == _NAME}
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), marked

    shapes = jax.eval_shape(see, {})[1]
    if not shapes:
        return None
    path, (shape,) = list(shapes.items())[-1]
    zeros = unflatten_dict({path[1:]: jnp.zeros(shape.shape, shape.dtype)})
    gradients, marked = jax.grad(see, has_aux=True)(zeros)
    gradient = flatten_dict(gradients)[path[1:]].astype(jnp.float32)
    activation = marked[path][0].astype(jnp.float32)
    weights = nn.relu((activation * gradient.mean((1, 2), keepdims=True)).sum(-1))
    largest = weights.max((1, 2), keepdims=True)
    return weights / jnp.where(largest > 0, largest, 1.0)
