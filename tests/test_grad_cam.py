"""Grad-CAM against a model whose answer is known in closed form, and marks that cost a model nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.evaluation.predict import explain
from common.evaluation.restore import restore
from common.nn.cnn import CNN
from common.nn.grad_cam import feature_map, grad_cam
from common.nn.residual import ResidualCNN
from lesion.task import Lesion
from tests.conftest import Trained

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(5, 4, 3, 6)).astype(np.float32)
CLASSES = np.array([0, 1, 2, 1, 0], np.int32)


class Backbone(nn.Module):
    marked: bool

    @nn.compact
    def __call__(self, x):
        return feature_map(self, x) if self.marked else x


class Averaged(nn.Module):
    """Logits are linear in the mean of the features, which are the inputs themselves, of a nested backbone."""

    marked: bool = True

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3)(Backbone(self.marked)(x).mean((1, 2)) ** 2)


def test_heat_maps_of_a_known_model_are_those_of_the_paper():
    model = Averaged()
    variables = model.init(jax.random.key(0), FEATURES, train=False)
    kernel = np.asarray(variables['params']['Dense_0']['kernel'])
    # d logit / d feature = kernel * 2 mean / places, the same at every place: its mean over places is itself.
    gradient = kernel[:, CLASSES].T * 2 * FEATURES.mean((1, 2)) / 12
    expected = np.maximum((FEATURES * gradient[:, None, None]).sum(-1), 0)
    heat = grad_cam(model, variables, FEATURES, CLASSES)
    assert heat.dtype == jnp.float32
    np.testing.assert_allclose(heat, expected / expected.max((1, 2), keepdims=True), atol=1e-5)


def test_where_nothing_speaks_for_the_class_the_map_is_zero():
    model = Averaged()
    variables = {'params': {'Dense_0': {'kernel': -jnp.ones((6, 3)), 'bias': jnp.zeros(3)}}}
    assert not np.any(grad_cam(model, variables, np.abs(FEATURES), CLASSES))


def test_a_model_that_marks_nothing_has_no_map():
    model = Averaged(marked=False)
    assert grad_cam(model, model.init(jax.random.key(0), FEATURES, train=False), FEATURES, CLASSES) is None


@pytest.mark.parametrize('model', [CNN(3, (4, 6), depth=1, dense=(5,)), ResidualCNN(3, (4, 6), depth=1, stem=3)])
def test_a_mark_adds_no_variable_and_every_backbone_has_one(model):
    images = RANDOM.normal(size=(2, 16, 16, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), images, train=False)
    assert set(variables) == {'params', 'batch_stats'}
    heat = grad_cam(model, variables, images, CLASSES[:2])
    assert heat.shape == (2, 4, 4)
    assert float(heat.max()) == pytest.approx(1)


def test_a_step_may_be_a_number_as_the_readme_says(trained: Trained):
    latest = restore(trained.workdir, checkpoint='latest')
    assert restore(trained.workdir, checkpoint=latest.step).step == latest.step


def test_an_image_is_explained_alike_alone_and_among_others(trained: Trained):
    run = restore(trained.workdir)
    split = Lesion.load(run.record.config, trained.data_dir).splits['test']
    together = explain(run, split, {}, np.array([3, 0, 5]), CLASSES[:3])
    assert [heat.shape for heat in together] == [(3, 8, 8)]
    (alone,) = explain(run, split, {}, np.array([0]), CLASSES[1:2])
    np.testing.assert_allclose(alone[0], together[0][1], atol=1e-5)
    (other,) = explain(run, split, {}, np.array([0]), CLASSES[:1])
    assert np.abs(other - alone).max() > 0.01
    inputs = run.task.preprocess({'image': split.columns['image'][[3, 0, 5]]}, {}, None)['inputs']
    np.testing.assert_allclose(together[0], grad_cam(run.model, run.variables, inputs, CLASSES[:3]), atol=1e-5)
