"""EfficientNet-Lite0 with its ImageNet weights gives the outputs that PyTorch gave."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nn.efficientnet import Backbone, EfficientNetLite0
from common.nn.layers import Dropout
from common.nn.pretrained import imagenet
from lesion.configs import ham10000

# By PyTorch 2.13.0 on the CPU in float64, from the same weights: features and logits of `images`.
REFERENCE = np.load(pathlib.Path(__file__).parent / 'fixtures' / 'efficientnet_lite0.npz')
PARITY = 5e-6  # largest difference, of the largest number; 1e-6 was seen


@pytest.fixture(scope='module')
def variables():
    tree = {}
    for name, array in imagenet().items():
        *path, leaf = name.split('.')
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = jnp.asarray(array)
    return tree


def images(height, width):
    """uint8 [3, height, width, 3]: waves and spirals."""
    row, column, colour = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing='ij')
    phases = [
        0.05 * (k + 1) * row + 0.03 * (k + 2) * column + 2.1 * colour + 0.002 * (k + 1) * row * column / 10
        for k in range(3)
    ]
    return np.stack([np.round(127.5 + 127.5 * np.sin(phase)).astype(np.uint8) for phase in phases])


def test_the_weights_are_all_of_the_networks_variables(variables):
    model = EfficientNetLite0(1000, axis_name=None)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)), train=False))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == 4_652_008  # as published


@pytest.mark.parametrize(('height', 'width'), [(224, 224), (150, 200)])
def test_features_and_logits_are_those_of_pytorch(variables, height, width):
    mean, deviation = ham10000.get_config('efficientnet_lite0').dataset.normalisation
    x = (images(height, width).astype(np.float32) - mean) / deviation
    parts = jax.tree.map(lambda tree: tree['backbone'], variables, is_leaf=lambda tree: 'backbone' in tree)
    features = Backbone(axis_name=None).apply(parts, x, train=False)
    logits = nn.Dense(1000).apply({'params': variables['params']['classifier']}, features)
    for name, actual in (('features', features), ('logits', logits)):
        expected = REFERENCE[f'{name}_{height}x{width}']
        np.testing.assert_allclose(actual, expected, rtol=0, atol=PARITY * np.abs(expected).max())


def test_stochastic_depth_leaves_out_whole_examples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    y = Dropout(0.25, whole=True).apply({}, x, train=True, rngs={'dropout': jax.random.key(0)})
    kept = np.asarray(y).reshape(4000, -1)
    np.testing.assert_allclose(np.unique(kept), [0, 1 / 0.75], rtol=1e-6)
    assert (kept.min(1) == kept.max(1)).all()
    assert kept.mean() == pytest.approx(1, abs=0.03)
