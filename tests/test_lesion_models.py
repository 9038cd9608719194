"""The lesion classifiers against plain NumPy."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from common.evaluation.restore import example_inputs
from common.nn.cnn import CNN, convolutional_trunk
from common.nn.efficientnet import EfficientNetLite0
from common.nn.layers import Dropout
from common.nn.normalisation import BatchNorm
from common.nn.residual import ResidualCNN
from common.runtime import AXIS
from common.types import Tree
from lesion.configs import ham10000
from lesion.models import CNNLSTM
from lesion.task import Lesion

TRUNK = {'widths': (4, 6), 'depth': (1, 2)}
IMAGES = np.random.default_rng(0).normal(size=(2, 12, 20, 3)).astype(np.float32)


class Trunk(nn.Module):
    """The convolutional stages alone."""

    widths: tuple[int, ...]
    depth: tuple[int, ...]
    convolution: str = 'direct'
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return convolutional_trunk(self, x, train=False)


def initialised(model: nn.Module) -> Tree:
    return jax.jit(partial(model.init, train=False))(jax.random.key(0), IMAGES)


def read_sequence(steps: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """A textbook LSTM over [time, features], one example, one step at a time; [time, hidden]."""
    hidden = cell = np.zeros(weights['recurrent_kernel'].shape[0])
    outputs = []
    for x in steps:
        gates = x @ weights['input_kernel'] + hidden @ weights['recurrent_kernel'] + weights['bias']
        i, f, g, o = np.split(gates, 4)
        cell = expit(f) * cell + expit(i) * np.tanh(g)
        hidden = expit(o) * np.tanh(cell)
        outputs.append(hidden)
    return np.array(outputs)


@pytest.mark.parametrize('bidirectional', [False, True])
def test_cnn_lstm_reads_the_feature_map_row_by_row_and_classifies_the_mean(bidirectional: bool) -> None:
    model = CNNLSTM(num_classes=3, **TRUNK, hidden_size=5, bidirectional=bidirectional, axis_name=None)
    variables = initialised(model)
    logits = model.apply(variables, IMAGES, train=False)
    params = jax.tree.map(np.asarray, variables['params'])
    features = np.asarray(Trunk(**TRUNK).apply(variables, IMAGES))
    assert features.shape == (2, 3, 5, 6)
    for image, expected in zip(features, logits, strict=True):
        sequence = np.array([image[row, column] for row in range(3) for column in range(5)])
        outputs = [read_sequence(sequence, params['LSTM_0']['layer_0'])]
        if bidirectional:
            outputs.append(read_sequence(sequence[::-1], params['LSTM_0']['layer_0_backward']))
        mean = np.concatenate([output.mean(0) for output in outputs])
        found = mean @ params['Dense_0']['kernel'] + params['Dense_0']['bias']
        np.testing.assert_allclose(expected, found, rtol=1e-4, atol=1e-6)


def test_both_networks_share_the_names_and_shapes_of_the_convolutional_stages() -> None:
    def stages(model: nn.Module) -> dict[str, Tree]:
        params = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGES)['params']
        return {n: jax.tree.map(jnp.shape, p) for n, p in params.items() if n.startswith(('Conv', 'BatchNorm'))}

    one = stages(CNN(num_classes=3, **TRUNK, axis_name=None))
    assert one == stages(CNNLSTM(num_classes=3, **TRUNK, axis_name=None))
    assert one['Conv_2'] == {'kernel': (3, 3, 6, 6)}
    assert len(one) == 6


def test_dropout_of_the_classifier_is_active_in_training_alone() -> None:
    model = CNNLSTM(num_classes=3, **TRUNK, dropout=0.5, axis_name=None)
    variables = initialised(model)

    @jax.jit
    def train(seed: int) -> jax.Array:
        rngs = {'dropout': jax.random.key(seed)}
        return model.apply(variables, IMAGES, train=True, mutable=['batch_stats'], rngs=rngs)[0]

    assert np.abs(train(0) - train(1)).max() > 1e-3
    model.apply(variables, IMAGES, train=False)  # needs no randomness


@pytest.mark.parametrize('metadata', [False, True])
@pytest.mark.parametrize('variant', list(ham10000.VARIANTS))
def test_every_variant_builds_at_the_size_of_its_images_with_and_without_metadata(variant: str, metadata: bool) -> None:
    config = ham10000.get_config(variant)
    config.model.metadata = metadata
    info = {'class_names': list('abc'), 'class_counts': [1, 1, 1], 'pixel_mean': [0.0], 'pixel_deviation': [1.0]}
    info['metadata'] = {'age': ['50', '60'], 'sex': ['female'], 'localization': []}
    task = Lesion(config, info)
    columns = {'image': np.zeros((1, *config.dataset.image_size, 3), np.uint8), 'metadata': np.zeros((1, 3), np.int32)}
    inputs = example_inputs(task, columns, {})
    logits = jax.eval_shape(lambda: task.model().init_with_output(jax.random.key(0), inputs, train=False)[0])
    assert (logits.shape, logits.dtype) == ((1, 3), np.float32)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Every layer in the order in which it is called."""
    called = []

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        called.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)), train=False))
    return called


MODELS = {
    'cnn': CNN(3, widths=(4,), dense=(5, 4), dropout=0.4),
    'cnn_lstm': CNNLSTM(3, widths=(4,), hidden_size=4, dropout=0.4),
    'residual': ResidualCNN(3, widths=(4,), stem=4, dropout=0.4),
    'efficientnet': EfficientNetLite0(3, dropout=0.4, drop_connect=0.2),
}


@pytest.mark.parametrize('name', MODELS)
def test_batch_statistics_are_those_of_all_devices(name: str) -> None:
    norms = [layer for layer in layers_of(MODELS[name]) if isinstance(layer, BatchNorm)]
    assert {norm.axis_name for norm in norms} == {AXIS}
    wanted = {(0.99, 1e-3)} if name == 'efficientnet' else {(0.9, 1e-5)}  # as those weights were trained
    assert {(norm.momentum, norm.epsilon) for norm in norms} == wanted


@pytest.mark.parametrize('name', MODELS)
def test_dropout_comes_before_every_dense_layer(name: str) -> None:
    layers = [layer for layer in layers_of(MODELS[name]) if isinstance(layer, nn.Dense | Dropout)]
    before = [layers[number - 1] for number, layer in enumerate(layers) if isinstance(layer, nn.Dense)]
    assert [(type(layer), layer.rate, layer.whole) for layer in before] == [(Dropout, 0.4, False)] * len(before)


def test_stochastic_depth_grows_with_the_depth_of_a_block() -> None:
    *drops, _ = (layer for layer in layers_of(MODELS['efficientnet']) if isinstance(layer, Dropout))
    numbers = [2, 4, 6, 7, 9, 10, 12, 13, 14]  # of the 16 blocks, those that add to what they are given
    assert all(drop.whole for drop in drops)
    np.testing.assert_allclose([drop.rate for drop in drops], 0.2 * np.array(numbers) / 16)
