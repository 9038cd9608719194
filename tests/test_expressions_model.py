"""The residual network, the configs, and the demo from drawing to report."""

import dataclasses
import json
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import UsageError
from common.nn.cnn import CNN
from common.nn.residual import ResidualCNN
from common.types import Tree
from expressions import synthetic
from expressions.configs import demo, fer2013, folders
from expressions.task import Expressions
from tests.conftest import run_script

INFO = {
    'class_names': ['angry', 'happy', 'sad'],
    'class_counts': [1, 1, 1],
    'pixel_mean': [0.0],
    'pixel_deviation': [1.0],
}


def count(tree: Tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('size', [(16, 16), (13, 21)])
def test_residual_network_gives_logits_for_any_size(size: tuple[int, int]) -> None:
    model = ResidualCNN(num_classes=7, widths=(6,), depth=1, stem=4, axis_name=None)
    images = np.random.default_rng(0).normal(size=(2, *size, 1)).astype(np.float32)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    apply = jax.jit(partial(model.apply, train=False))
    logits = apply(variables, images)
    assert (logits.shape, logits.dtype) == ((2, 7), np.float32)
    np.testing.assert_allclose(apply(variables, images[1:]), logits[1:], rtol=1e-5, atol=1e-5)


def test_residual_network_has_the_parameters_that_its_widths_and_depth_say() -> None:
    stem, widths, depth, classes = 4, (8, 12), 3, 7
    model = ResidualCNN(num_classes=classes, widths=widths, depth=depth, stem=stem, axis_name=None)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 16, 16, 1)), train=False))['params']
    expected = 9 * stem + 2 * stem  # a convolution and its norm
    channels = stem
    for width in widths:
        for block in range(depth):
            expected += 2 * channels + 9 * channels * width + 2 * width + 9 * width * width
            expected += channels * width if block == 0 else 0  # the shortcut's 1x1
            channels = width
    expected += 2 * channels + channels * classes + classes
    assert count(params) == expected


def stem_of(model: ResidualCNN) -> tuple[Tree, np.ndarray, np.ndarray]:
    """Drawn variables and images, and what the stem makes of these: activated, not yet normalised, pooled by four."""
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    variables = model.init(jax.random.key(0), images, train=False)
    kernel, axes = variables['params']['Conv_0']['kernel'], ('NHWC', 'HWIO', 'NHWC')
    features = np.maximum(jax.lax.conv_general_dilated(images, kernel, (1, 1), 'SAME', dimension_numbers=axes), 0)
    return variables, images, features.reshape(2, 4, 2, 4, 2, 4).mean((2, 4))


def test_blocks_whose_last_convolution_is_zero_pass_their_input_on() -> None:
    model = ResidualCNN(num_classes=3, widths=(4,), depth=2, stem=4, axis_name=None)
    variables, images, pooled = stem_of(model)
    params = variables['params']
    zeros = {name: jax.tree.map(np.zeros_like, params[name]) for name in ('Conv_2', 'Conv_4')}
    logits = model.apply({**variables, 'params': params | zeros}, images, train=False)
    pooled = pooled / (1 + 1e-5)  # by two normalisations, whose running statistics are those of a fresh network
    last = params['Dense_0']
    np.testing.assert_allclose(logits, pooled.mean((1, 2)) @ last['kernel'] + last['bias'], rtol=1e-4, atol=1e-5)


def test_a_shortcut_to_other_channels_follows_the_activation() -> None:
    model = ResidualCNN(num_classes=3, widths=(6,), depth=1, stem=4, axis_name=None)
    variables, images, pooled = stem_of(model)
    params = variables['params']
    changed = {name: jax.tree.map(np.zeros_like, params[name]) for name in ('Conv_2', 'Conv_3')}
    changed['BatchNorm_1'] = params['BatchNorm_1'] | {'bias': np.full(4, -0.2, np.float32)}
    logits = model.apply({**variables, 'params': params | changed}, images, train=False)
    shortcut, last = np.maximum(pooled - 0.2, 0) @ params['Conv_1']['kernel'][0, 0], params['Dense_0']
    expected = np.maximum(shortcut, 0).mean((1, 2)) @ last['kernel'] + last['bias']
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('variant', ['vgg', 'residual', 'cpu'])
def test_every_variant_builds_and_plain_differs_in_augmentation_alone(variant: str) -> None:
    config, plain = fer2013.get_config(variant), fer2013.get_config(f'{variant}-plain')
    assert config.augment.horizontal_flip
    assert not plain.augment
    assert {**config.to_dict(), 'augment': {}} == plain.to_dict()
    task = Expressions(config, INFO)
    shapes = jax.eval_shape(lambda: task.model().init(jax.random.key(0), np.zeros((1, 48, 48, 1)), train=False))
    assert shapes['params']['Dense_2' if variant == 'vgg' else 'Dense_0']['kernel'].shape[1] == 3


def test_published_network_has_its_published_size() -> None:
    config = fer2013.get_config('vgg')
    task = Expressions(config, {**INFO, 'class_names': list('abcdefg'), 'class_counts': [1] * 7})
    params = jax.eval_shape(lambda: task.model().init(jax.random.key(0), np.zeros((1, 48, 48, 1)), train=False))[
        'params'
    ]
    kernels = {name: layer['kernel'].shape for name, layer in params.items() if 'kernel' in layer}
    assert [kernels[f'Conv_{n}'][-1] for n in range(8)] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert [kernels[f'Dense_{n}'] for n in range(3)] == [(512 * 3 * 3, 4096), (4096, 4096), (4096, 7)]


@pytest.mark.parametrize('variant', ['resnet', 'cpu-bare'])
def test_unknown_variants_are_refused(variant: str) -> None:
    with pytest.raises(UsageError, match='variant'):
        fer2013.get_config(variant)


def test_an_unknown_way_to_pool_is_refused() -> None:
    with pytest.raises(UsageError, match=r"config\.model\.pool is 'avg'; it may be average, flatten"):
        CNN(num_classes=3, pool='avg').init(jax.random.key(0), jnp.ones((1, 16, 16, 1)), train=False)


def test_own_folders_get_a_test_split() -> None:
    assert folders.get_config().dataset.split_fractions.test > 0
    assert folders.get_config().dataset.channels == 1
    assert demo.get_config().dataset.name == 'synthetic_faces'


def test_demo_draws_trains_and_reports(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [dataclasses.replace(look, faces=look.faces // 7) for look in synthetic.LOOKS]
    monkeypatch.setattr(synthetic, 'LOOKS', few)
    workdir, data_dir = tmp_path / 'run', f'--data_dir={tmp_path / "data"}'
    small = (
        '--config.dataset.image_size=(16, 16)',
        '--config.model.stem=4',
        '--config.model.widths=(8,)',
        '--config.augment.mixup=0.2',
        '--config.augment.cutmix=1.0',
        '--config.batch_size=16',
        '--config.duration=2epochs',
        '--config.schedule.warmup=2steps',
    )
    train = ('train', '--config=expressions/configs/demo.py', *small, f'--workdir={workdir}', data_dir)
    ended = run_script(*train)
    assert ended.status == 0, ended.stderr
    assert 'Audit of synthetic faces' in ended.stdout
    ended = run_script('evaluate', f'--workdir={workdir}', '--views=flip')
    assert ended.status == 0, ended.stderr
    result = json.loads((workdir / 'evaluation' / 'test' / 'metrics.json').read_text())
    assert set(result['per_class']) == {'angry', 'disgust', 'fear', 'happy', 'sad', 'surprise', 'neutral'}
    assert 0 < result['test_time_augmentation']['log_loss'] < 5
