"""Training steps against plain jax.grad on one device: over devices, masks, parts, dispatches and members."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from common.data.augment import example_keys
from common.data.dataset import Dataset, Split
from common.data.transport import Transport
from common.errors import UsageError
from common.evaluation.evaluate import Evaluator
from common.runtime import DataParallel
from common.training.plan import chunks
from common.training.setup import Training, make_training
from lesion.configs import demo
from lesion.task import Lesion
from tests.toy import datasets as toy_datasets
from tests.toy.configs import toy as toy_config
from tests.toy.task import Toy

RANDOM = np.random.default_rng(0)


def plain_sgd(config: ConfigDict, learning_rate: float = 1.0) -> ConfigDict:
    config.optimizer.update(name='sgd', momentum=0.0, weight_decay=0.0, learning_rate=learning_rate, gradient_clip=0.0)
    config.schedule.name, config.schedule.warmup = 'constant', '0steps'
    return config


@pytest.fixture(scope='module')
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    data_dir = tmp_path_factory.mktemp('toy')
    toy_datasets.prepare(None, data_dir, skip_bad=False)
    return data_dir


def toy(data_dir: pathlib.Path, devices: int = 1, **values) -> Training:
    config = plain_sgd(toy_config.get_config(), 0.1)
    config.steps_per_dispatch = 1
    config.task = 'tests.toy'
    config.update_from_flattened_dict({name.replace('__', '.'): value for name, value in values.items()})
    return make_training(config, data_dir, devices)


def take_steps(training: Training, first: int, last: int, state=None):
    """The state after steps `first` to `last` - 1, and their metrics."""
    state = training.init_state() if state is None else state
    transport, metrics = training.transport('train'), []
    parts = chunks(first, last, last, training.steps_per_dispatch)
    for batch in transport.batches(training.plan.dispatches(parts)):
        state, new = training.train_step(state, transport.shared, batch)
        metrics.append(jax.tree.map(np.asarray, new))
    return jax.tree.map(np.asarray, state), jax.tree.map(lambda *leaves: np.concatenate(leaves), *metrics)


def assert_close(got, want, tolerance):
    """Every leaf within `tolerance` of the largest element of that leaf (at least 1)."""
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(initial=0)
        assert error <= tolerance * max(1, np.abs(b).max(initial=0)), f'{jax.tree_util.keystr(path)}: {error}'


def member(tree, number: int):
    """The part of one member in a tree whose leaves have a leading axis [members]."""
    return jax.tree.map(lambda leaf: leaf[number], tree)


def lesion_training(monkeypatch: pytest.MonkeyPatch, devices: int) -> Training:
    """The demo's CNN with BatchNorm, Dropout, all augmentation, weighted focal loss; plain SGD, learning rate 1."""
    labels = np.arange(40, dtype=np.int32) % 7
    columns = {'image': np.random.default_rng(1).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8), 'label': labels}
    split = Split(name='train', columns=columns, records=pd.DataFrame({'name': range(40)}))
    info = {'class_names': list('abcdefg'), 'class_counts': np.bincount(labels).tolist()}
    info |= {'pixel_mean': [120.0] * 3, 'pixel_deviation': [60.0] * 3}
    splits = {name: dataclasses.replace(split, name=name) for name in ('train', 'validation')}
    monkeypatch.setattr(Lesion, 'load', lambda config, data_dir: Dataset(splits=splits, info=info))
    config = plain_sgd(demo.get_config())
    config.batch_size, config.precision, config.steps_per_dispatch = 16, 'float32', 1
    config.data.sampling = 'uniform'
    config.model.widths, config.model.dense, config.model.dropout = (6, 8), (8,), 0.4
    config.augment.cutout, config.augment.mixup = 0.3, 0.3
    config.loss.class_weights, config.loss.focal_gamma, config.loss.label_smoothing = 'inverse', 2.0, 0.1
    return make_training(config, pathlib.Path(), devices)


def reference_steps(training: Training, stops: tuple[int, ...]):
    """Parameters, statistics and last gradient after each of `stops` steps.

    The same training without the frame's step: jax.grad of the mean loss over the whole batch, on one device.
    """
    model, task = training.model.clone(axis_name=None), training.task
    state = jax.tree.map(jnp.asarray, training.init_state())
    params, collections = state.params, state.collections

    @jax.jit
    def step(params, collections, batch, number):
        keys = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(state.key), number))
        batch = task.preprocess(batch, {}, example_keys(keys[0], jnp.arange(len(batch['label']))))

        def loss(params):
            variables = {'params': params, **collections}
            outputs, updated = model.apply(
                variables, batch['inputs'], train=True, mutable=['batch_stats'], rngs={'dropout': keys[1]}
            )
            return task.loss(outputs, batch, train=True).mean(), updated

        gradient, updated = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - g, params, gradient), updated, gradient

    found = []
    for i in range(max(stops)):
        rows = training.plan.index(i)
        batch = {name: jnp.asarray(column[rows]) for name, column in training.train_split.columns.items()}
        params, collections, gradient = step(params, collections, batch, i)
        if i + 1 in stops:
            found.append((params, collections, gradient))
    return found


# Tolerances are relative to the largest element of a leaf. Float32 sums in another order differ by about 1e-6;
# with a learning rate of 1 that grows from step to step.
@pytest.mark.parametrize('devices', [1, 2, 4])
def test_gradients_equal_the_full_batch_gradient_of_one_device(monkeypatch, references, devices):
    training = lesion_training(monkeypatch, devices)
    start = training.init_state()
    first = jax.tree.map(np.asarray, start.params)
    for (params, collections, gradient), (begin, end), tolerance in zip(
        references, [(0, 1), (1, 5)], (3e-6, 3e-4), strict=True
    ):
        start, metrics = take_steps(training, begin, end, start)
        assert_close(start.params, params, tolerance)
        assert_close(start.collections, collections, tolerance)
        norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
        np.testing.assert_allclose(metrics['gradient_norm'][-1], norm, rtol=100 * tolerance)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), start.params, first)
    assert min(jax.tree.leaves(moved)) > 1e-3  # no leaf was left out


@pytest.fixture(scope='module')
def references():
    """What one device computes without the frame's step: after one step, and after five."""
    with pytest.MonkeyPatch.context() as patch:
        return reference_steps(lesion_training(patch, 1), (1, 5))


def masked(training: Training, mask: np.ndarray, fill: float):
    """The parameters after one step on a batch whose rows with mask 0 hold `fill`."""
    rows = np.arange(len(mask), dtype=np.int32)
    columns = {name: np.array(training.train_split.columns[name][rows]) for name in ('x', 'target', 'group')}
    columns['x'][mask == 0] = fill
    columns['target'][mask == 0] = -fill
    split = Split(name='train', columns=columns, records=pd.DataFrame({'row': rows}))
    transport = Transport(split, {}, training.parallel, 'streaming')
    batch = training.parallel.put(transport.host_batch(rows[None], mask[None]))
    state, metrics = training.train_step(training.init_state(), transport.shared, batch)
    return jax.tree.map(np.asarray, state.params), metrics


@pytest.mark.parametrize('devices', [1, 4])
def test_padded_examples_never_count(toy_data, devices):
    training = toy(toy_data, devices, model__batch_norm=False, model__dropout=0.0, augment__jitter=0.0)
    mask = np.array([1, 1, 0, 1, 1, 0, 0, 0], np.float32)  # of four devices, the last has padding only
    params, metrics = masked(training, mask, 1e3)
    other, _ = masked(training, mask, -7.0)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)

    start, split = training.init_state().params, training.train_split.columns
    x, y = split['x'][:8][mask == 1], split['target'][:8][mask == 1]
    model = training.model

    def loss(params):
        return ((model.apply({'params': params}, x, train=False) - y) ** 2).mean()

    value, gradient = jax.value_and_grad(loss)(jax.tree.map(np.asarray, start))
    assert_close(params, jax.tree.map(lambda p, g: np.asarray(p) - 0.1 * g, start, gradient), 1e-6)
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-6)


@pytest.mark.parametrize('devices', [1, 4])
@pytest.mark.parametrize('batch_size', [1, 7, 64])
def test_evaluation_gives_every_example_once_whatever_the_batch(toy_data, devices, batch_size):
    training = toy(toy_data, devices)
    state = take_steps(training, 0, 3)[0]
    split = training.dataset.splits['validation']
    assert len(split) == 41
    parallel = DataParallel(jax.devices()[:devices])
    evaluate = Evaluator(training.task, training.model, parallel)
    transport = Transport(split, {}, parallel, 'resident' if batch_size == 7 else 'streaming')
    [said] = evaluate(state.variables, transport, [np.arange(41)], batch_size)
    expected = training.model.apply(state.variables, split.columns['x'], train=False)
    np.testing.assert_allclose(said['value'], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(said['loss'], (expected - split.columns['target']) ** 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('devices', [1, 4])
def test_accumulating_over_parts_equals_the_whole_batch(toy_data, devices):
    values = {'model__batch_norm': False, 'model__dropout': 0.3}
    whole, metrics = take_steps(toy(toy_data, 1, **values), 0, 5)
    parts, same = take_steps(toy(toy_data, devices, accumulate_steps=2, **values), 0, 5)
    assert_close(parts.params, whole.params, 1e-6)
    assert_close(same, metrics, 1e-5)


def test_parts_are_as_many_as_keep_to_the_cache_where_the_config_leaves_them_open(toy_data):
    values = {'batch_size': 64, 'model__dropout': 0.3}  # BatchNorm's statistics tell how the batch was cut
    open_, metrics = take_steps(toy(toy_data, accumulate_steps=0, **values), 0, 3)
    four, same = take_steps(toy(toy_data, accumulate_steps=4, **values), 0, 3)
    whole, _ = take_steps(toy(toy_data, **values), 0, 3)
    jax.tree.map(np.testing.assert_array_equal, (open_.params, metrics), (four.params, same))
    assert not np.array_equal(open_.params['Dense_0']['kernel'], whole.params['Dense_0']['kernel'])


def test_running_statistics_have_seen_every_part_of_a_batch(toy_data):
    training = toy(toy_data, accumulate_steps=4, augment__jitter=0.0)
    layer = jax.tree.map(np.asarray, training.init_state().params['Dense_0'])
    state, _ = take_steps(training, 0, 1)
    mean = np.zeros_like(layer['bias'])
    for x in training.train_split.columns['x'][training.plan.index(0)].reshape(4, -1, 3):
        mean = 0.9 * mean + 0.1 * (x @ layer['kernel'] + layer['bias']).mean(0)
    assert_close(state.collections['batch_stats']['BatchNorm_0']['mean'], mean, 1e-6)


def test_the_loss_that_is_told_is_that_of_evaluation_whatever_is_minimised(toy_data, monkeypatch):
    loss = Toy.loss
    monkeypatch.setattr(Toy, 'loss', lambda *args, train: (3 if train else 1) * loss(*args, train=train))
    _, metrics = take_steps(toy(toy_data), 0, 2)
    np.testing.assert_allclose(metrics['objective'], 3 * metrics['loss'], rtol=1e-6)


def test_a_step_takes_the_memory_of_the_state_that_it_is_given(toy_data):
    training = toy(toy_data, ema_decay=0.9)
    state, transport = training.init_state(), training.transport('train')
    training.train_step(state, transport.shared, next(iter(transport.batches(training.plan.dispatches([(0, 1)])))))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_steps_in_one_dispatch_equal_single_steps(toy_data):
    single, metrics = take_steps(toy(toy_data, 2, ema_decay=0.9), 0, 10)
    together, same = take_steps(toy(toy_data, 2, ema_decay=0.9, steps_per_dispatch=4), 0, 10)  # 4 + 4 + 1 + 1
    assert_close(together, single, 1e-6)
    assert_close(same, metrics, 1e-5)
    assert len(metrics['loss']) == 10


def test_average_follows_its_recurrence(toy_data):
    training = toy(toy_data, ema_decay=0.3)
    state = training.init_state()
    average = np.asarray(state.params['Dense_0']['kernel'], np.float64)
    for step in range(8):
        state, _ = take_steps(training, step, step + 1, state)
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * state.params['Dense_0']['kernel']
    assert decay == 0.3
    np.testing.assert_allclose(state.average['Dense_0']['kernel'], average, rtol=1e-5, atol=1e-6)
    assert state.variables['params'] is state.average


# A product over stacked members rounds differently from single ones: 1e-6 a step, growing.
def test_an_ensemble_equals_its_seeds_trained_alone(toy_data):
    together, metrics = take_steps(toy(toy_data, 2, ensemble=3, seed=5), 0, 6)
    for number in range(3):
        alone, own = take_steps(toy(toy_data, 2, seed=5 + number), 0, 6)
        assert_close(member(together, number), alone, 1e-5)
        assert_close(member(jax.tree.map(np.transpose, metrics), number), own, 1e-5)
    assert together.step.tolist() == [6, 6, 6]


def test_an_ensemble_of_models_by_group_is_refused(toy_data):
    with pytest.raises(UsageError, match='cannot be had together; set ensemble to 1'):
        toy(toy_data, 2, ensemble=2, dataset__by_group=True)


def test_models_by_group_equal_each_trained_alone(toy_data):
    training = toy(toy_data, 2, dataset__by_group=True)
    together, _ = take_steps(training, 0, 6)
    said = training.evaluate(together, 'validation')['value']
    group = training.dataset.splits['validation'].columns['group']
    for number in range(toy_datasets.GROUPS):
        only = toy(toy_data, 2, dataset__only_group=number)
        alone, _ = take_steps(only, 0, 6)
        assert_close(member(together, number), alone, 1e-5)
        np.testing.assert_allclose(said[group == number], only.evaluate(alone, 'validation')['value'], atol=1e-5)


def test_an_ensemble_predicts_the_mean_of_its_members(toy_data):
    training = toy(toy_data, 2, ensemble=2)
    state, _ = take_steps(training, 0, 3)
    x, target = (training.dataset.splits['validation'].columns[name] for name in ('x', 'target'))
    single = [training.model.apply(member(state.variables, number), x, train=False) for number in range(2)]
    said = training.evaluate(state, 'validation')
    np.testing.assert_allclose(said['value'], np.mean(single, 0), atol=1e-5)
    np.testing.assert_allclose(said['loss'], np.mean([(one - target) ** 2 for one in single], 0), atol=1e-4)
